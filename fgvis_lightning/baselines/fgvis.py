"""FGVis as an attribution method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from fgvis_lightning.api import explain_with
from fgvis_lightning.baselines.base import Method
from fgvis_lightning.data.inputs import as_targets
from fgvis_lightning.engine.precision import undisturbed
from fgvis_lightning.errors import InputError
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.results.explanation import Explanation


def explain_normalized(
    network: nn.Module, images: Tensor, targets: Any, kind: type[FGVis] = FGVis, **options: Any
) -> Explanation:
    """Explain normalized images (B,C,H,W) for classes, one for all or (B,), with `FGVis` on the images' device.

    Raises:
        InputError: if a target is not a class, if their number is not that of the images, or if there is a mean or
            standard deviation among the options; see also `as_targets`.
    """
    if given := sorted({"mean", "std", "size"} & options.keys()):
        raise InputError(f"Expected images that go into the network as they are, but got {' and '.join(given)}.")
    count, size, device = images.shape[1], tuple(images.shape[-2:]), images.device
    where: Any = {"accelerator": device.type} | ({} if device.type == "cpu" else {"devices": [device.index or 0]})
    with undisturbed():
        model = kind.of(network, mean=(0.0,) * count, std=(1.0,) * count, size=size, **options)
        classes = as_targets(targets, len(images), model.classifier)
        if len(classes) != len(images):
            raise InputError(f"Expected one target for each image, but got {len(classes)} for {len(images)}.")
        return explain_with(model, images.detach().clone().float(), classes, None, **where)


@dataclass(frozen=True)
class FGVisMethod(Method):
    """The map of `FGVis`, see `Explanation.saliency`; comparisons store complete masks.

    For ``lam: auto`` it is the solver's ranking, for a fixed λ the evidence, both averaged over the channels.

    Args:
        game: the game; all arguments are those of `FGVis`.
        lam: weight λ ≥ 0 of the mask's size; ``auto`` finds the smallest evidence that reaches ``level``.
        level: for ``lam: auto``, the score to reach as a share of the image's own.
        iterations: maximum number of optimizer steps for each image.
        seeds: number of runs for each image, which are averaged.
        gate: ``strict`` or ``restoring``.
        patience: number of iterations without progress after which an image is finished early; 0 for never.
        tolerance: smallest progress.
        defended: whether the gradient is gated.
        exempt: nonlinearities without a gate.
        gated: additional nonlinearities to gate.
        score: score of the target class, ``probability`` or ``log_probability``.
        reference: what the mask shows where it is 0; ``black`` only works in comparisons, which know the network's
            normalization.
        noise: standard deviation of the noise added to e in each iteration.
        seed: seed of the noise, and of the perturbations of the first run.
        optimizer: optimizer of the mask.
        fold: whether to fold batch normalization into convolutions.
        fused: whether to fuse gates with their activations.
    """

    kind = FGVis
    game: Literal["preservation", "deletion", "generation", "repression"] = "preservation"
    lam: float | Literal["auto"] = "auto"
    level: float | None = None
    iterations: int | None = None
    seeds: int | None = None
    gate: Literal["strict", "restoring"] | None = None
    patience: int = 100
    tolerance: float | None = None
    defended: bool = True
    exempt: list[str] | None = None
    gated: list[str] | None = None
    score: Literal["probability", "log_probability"] = "log_probability"
    reference: Literal["zero", "blurred", "noise", "black"] = "zero"
    noise: float | None = None
    seed: int = 0
    optimizer: Callable[[Iterable[Any]], Optimizer] | None = None
    fold: bool = True
    fused: bool = True

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        if self.reference == "black":
            raise InputError(
                "Expected another reference than black outside of comparisons, which alone know the network's "
                "normalization. Use zero, blurred or noise."
            )
        found = explain_normalized(network, images, targets, self.kind, **vars(self))
        return found.saliency().to(images.device)

    def module(self, classifier: Classifier, name: str, parameters: dict[str, Any]) -> FGVis:
        return self.kind.of(classifier, **vars(self))
