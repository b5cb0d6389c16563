"""Coverage: the nonlinearities that a pass met, which of them are gated, and the share of closed gates."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """One gated call.

    Attributes:
        name: the activation, e.g. ``relu6``.
        module: path of the innermost module that was running, e.g. ``blocks.0.act``; empty for the network itself.
    """

    name: str
    module: str


@dataclass
class Coverage:
    """Nonlinearities that the last pass met, and how many of their calls were gated.

    Attributes:
        calls: number of activation calls by name, e.g. ``{"relu6": 33}``.
        gated: how many of them have a gate; 0 for exempt ones and in an undefended pass.
        layers: the gated calls in the order in which they ran.
        operators: activations by operator, as the dispatcher saw them when the network was checked.
        exempt: what is without a gate by design or because the user lists it as exempt, by kind, e.g.
            ``{"pooling": 1, "exempt": 2}``, as found when the network was checked.
        gate_free: whether a path from the image to the logits meets no gate, or several layers in a row meet none (see
            `fgvis_lightning.defense.graph`).
        closed: share of closed gates (B,L) in [0,1] for each image and layer, where it has been measured.
    """

    calls: Counter[str] = field(default_factory=Counter)
    gated: Counter[str] = field(default_factory=Counter)
    layers: tuple[Layer, ...] = ()
    operators: Counter[str] = field(default_factory=Counter)
    exempt: Counter[str] = field(default_factory=Counter)
    gate_free: bool = False
    closed: Tensor | None = None

    def __str__(self) -> str:
        if not self.calls:
            return "no nonlinearities"
        parts = [
            f"{count} {name}" + ("" if self.gated[name] == count else f" ({self.gated[name]} gated)")
            for name, count in self.calls.items()
        ]
        lines = [f"{self.gated.total()} of {self.calls.total()} nonlinearity calls gated: {', '.join(parts)}"]
        if self.exempt:
            lines.append("without a gate: " + ", ".join(f"{n} {kind}" for kind, n in self.exempt.items()))
        if self.gate_free:
            lines.append(GATE_FREE)
        if self.closed is not None and self.layers:
            shares = ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in self.stages().items())
            lines.append(f"closed gates: {shares}")
        return "\n".join(lines)

    def to_json(self, index: int) -> str:
        """Serialize the coverage, with the closed gates of one image."""
        closed = [] if self.closed is None else [round(share, 6) for share in self.closed[index].tolist()]
        layers = [(layer.name, layer.module) for layer in self.layers]
        return json.dumps({**vars(self), "layers": layers, "closed": closed})

    @classmethod
    def from_json(cls, text: str) -> Coverage:
        """Read what `to_json` wrote: a coverage of one image.

        Raises:
            ValueError: the text is something else.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            values |= {name: Counter(values[name]) for name in ("calls", "gated", "operators", "exempt")}
            values["layers"] = tuple(Layer(name, module) for name, module in values["layers"])
            values["closed"] = torch.tensor([values["closed"]]) if values["closed"] else None
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a coverage: {error}") from error

    def stages(self) -> dict[str, float]:
        """Mean share of closed gates by stage of the network: the beginning of the modules' paths."""
        assert self.closed is not None
        shares: dict[str, list[float]] = {}
        for layer, share in zip(self.layers, self.closed.mean(0).tolist(), strict=True):
            shares.setdefault(_stage(layer), []).append(share)
        return {stage: sum(values) / len(values) for stage, values in shares.items()}


GATE_FREE = (
    "A path from the image to the logits meets no gate, or several layers in a row meet none: there the gradient is "
    "the ordinary one, and adversarial evidence can arise."
)


def _stage(layer: Layer) -> str:
    """``features.3`` of ``features.3.conv.act``, ``layer1`` of ``layer1.0.relu``, ``relu`` of a network's own call."""
    names = layer.module.split(".")
    numbered = len(names) > 1 and names[1].isdigit() and names[0] in {"features", "blocks", "stages"}
    return ".".join(names[: 1 + numbered]) or layer.name
