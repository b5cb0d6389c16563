"""FGVis as one method among others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fgvis_lightning.api import explain_with
from fgvis_lightning.baselines.base import Method
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.results.explanation import Explanation


def explain_normalized(
    network: nn.Module, images: Tensor, targets: Sequence[int], kind: type[FGVis] = FGVis, **options: Any
) -> Explanation:
    """Explain normalized images (B,C,H,W) for classes (B,), -1 for the predicted one, by `FGVis` on their device."""
    count, size, device = images.shape[1], tuple(images.shape[-2:]), images.device
    where: Any = {"accelerator": device.type} | ({} if device.type == "cpu" else {"devices": [device.index or 0]})
    with torch.inference_mode(False), torch.enable_grad():
        model = kind.of(network, mean=(0.0,) * count, std=(1.0,) * count, size=size, **options)
        return explain_with(model, images.detach().clone().float(), targets, len(images), **where)


@dataclass(frozen=True)
class FGVisMethod(Method):
    """The evidence of `FGVis`, as a mean over the color channels; in a comparison, its masks are kept whole.

    Args:
        game: what is looked for; all arguments are those of `FGVis`.
        lam: weight λ ≥ 0 of the mask's size; ``auto`` finds the smallest evidence that reaches ``level``.
        level: for ``lam: auto``, the score to reach as a share of the image's own.
        iterations: steps of the optimizer for each image, at most.
        seeds: runs of each image, whose mean the evidence is.
        gate: ``strict`` or ``restoring``.
        patience: an image is finished earlier when this many iterations have brought no progress; 0 for never.
        tolerance: what is progress.
        defended: whether the gradient is gated.
        exempt: nonlinearities to leave without a gate.
        gated: nonlinearities to gate beside those that always are.
        score: of the target class, ``probability`` or ``log_probability``.
        reference: what the mask uncovers where it is 0; ``black`` needs a network that knows its normalization, and is
            for comparisons.
        noise: standard deviation of the noise added to e in each iteration.
        seed: of the noise and of the disturbances of the first run.
        optimizer: of the mask.
        fold: whether batch normalization is folded into convolutions.
        fused: whether gates are fused with their activations.
    """

    kind: ClassVar[type[FGVis]] = FGVis
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
        found = explain_normalized(network, images, targets.tolist(), self.kind, **self._options())
        return found.saliency().to(images.device)

    def module(self, classifier: Classifier, name: str, parameters: dict[str, Any]) -> FGVis:
        loaded: Any = classifier  # which FGVis takes, although its command line does not
        return self.kind.of(loaded, **self._options())

    def _options(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}
