"""FGVis as one method among others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.explainer import FGVis, sgd
from fgvis_lightning.memory import explain_with
from fgvis_lightning.network import Classifier


@dataclass(frozen=True)
class FGVisMethod(Method):
    """The evidence of `FGVis`, as a mean over the color channels; in a comparison, its masks are kept whole.

    Args:
        game: this and the rest as in `FGVis`.
        lam: likewise.
        level: likewise.
        iterations: likewise.
        patience: likewise.
        tolerance: likewise.
        defended: likewise.
        exempt: likewise.
        gated: likewise.
        score: likewise.
        reference: likewise; ``black`` needs a network that knows its normalization, and is for comparisons.
        noise: likewise.
        seed: likewise.
        optimizer: likewise.
    """

    game: Literal["preservation", "deletion", "generation", "repression"] = "deletion"
    lam: float | Literal["auto"] = "auto"
    level: float | None = None
    iterations: int = 500
    patience: int = 100
    tolerance: float | None = None
    defended: bool = True
    exempt: list[str] | None = None
    gated: list[str] | None = None
    score: Literal["probability", "log_probability"] = "log_probability"
    reference: Literal["zero", "blurred", "noise", "black"] = "zero"
    noise: float | None = None
    seed: int = 0
    optimizer: Callable[[Iterable[Any]], Optimizer] = sgd

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        model = FGVis(network, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), **self._options())
        device = images.device
        where = (
            {"accelerator": "cpu"} if device.type == "cpu" else {"accelerator": device.type, "devices": [device.index]}
        )
        found = explain_with(model, images.detach().float(), targets.tolist(), len(images), **where)
        return found.saliency().to(device)

    def module(self, classifier: Classifier, name: str, parameters: dict[str, Any]) -> FGVis:
        loaded: Any = classifier  # which FGVis takes, although its command line does not
        return FGVis(loaded, **self._options())

    def _options(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}
