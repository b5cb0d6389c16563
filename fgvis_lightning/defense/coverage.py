"""Coverage: the nonlinearities of a pass, the gated ones among them, and the share of closed gates."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

DIGITS = 6
"""Decimals of stored shares of closed gates."""


@dataclass(frozen=True)
class Layer:
    """One gated call.

    Attributes:
        name: the activation, e.g. ``relu6``.
        module: path of the innermost running module, e.g. ``blocks.0.act``; empty for the network itself.
    """

    name: str
    module: str


@dataclass
class Coverage:
    """Nonlinearities of the last pass, and the number of their gated calls. ``==`` compares all fields.

    Attributes:
        calls: number of activation calls by name, e.g. ``{"relu6": 33}``.
        gated: number of gated calls by name; 0 for exempt ones and in an undefended pass.
        layers: the gated calls in order of execution.
        operators: number of activations by operator, as seen by the dispatcher when the network was checked.
        exempt: number of operations without a gate, by design or by the user's choice, for each kind, e.g.
            ``{"pooling": 1, "exempt": 2}``, from the check of the network.
        gate_free: whether a path from the image to the logits, or several layers in a row, have no gate (see
            `fgvis_lightning.defense.graph`).
        closed: share of closed gates (B,L) in [0,1] for each image and layer, if measured.
    """

    calls: Counter[str] = field(default_factory=Counter)
    gated: Counter[str] = field(default_factory=Counter)
    layers: tuple[Layer, ...] = ()
    operators: Counter[str] = field(default_factory=Counter)
    exempt: Counter[str] = field(default_factory=Counter)
    gate_free: bool = False
    closed: Tensor | None = None

    def __eq__(self, other: object) -> bool:
        return same_fields(self, other) if isinstance(other, Coverage) else NotImplemented

    def __str__(self) -> str:
        if not self.calls:
            return "no nonlinearities"
        parts = [
            f"{count} {name}" + ("" if self.gated[name] == count else f" ({self.gated[name]} gated)")
            for name, count in self.calls.items()
        ]
        lines = [f"{self.gated.total()} of {self.calls.total()} nonlinearity calls gated: {', '.join(parts)}"]
        if self.exempt:
            some = [f"{n} {kind}{' (which needs none)' * (kind == 'pooling')}" for kind, n in self.exempt.items()]
            lines.append(f"without a gate: {', '.join(some)}")
        if self.gate_free:
            lines.append(GATE_FREE)
        if self.closed is not None and self.layers:
            shares = ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in self.stages().items())
            lines.append(f"closed gates: {shares}")
        return "\n".join(lines)

    def to_json(self, index: int) -> str:
        """Serialize the coverage, with the closed gates of one image."""
        closed = [] if self.closed is None else [round(share, DIGITS) for share in self.closed[index].tolist()]
        layers = [(layer.name, layer.module) for layer in self.layers]
        return json.dumps({**vars(self), "layers": layers, "closed": closed})

    @classmethod
    def from_json(cls, text: str) -> Coverage:
        """Read the output of `to_json`, a coverage of one image.

        Raises:
            ValueError: if the text is not a coverage.
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
        """Mean share of closed gates for each stage of the network, given by the beginning of the modules' paths."""
        assert self.closed is not None
        shares: dict[str, list[float]] = {}
        for layer, share in zip(self.layers, self.closed.mean(0).tolist(), strict=True):
            shares.setdefault(_stage(layer), []).append(share)
        return {stage: sum(values) / len(values) for stage, values in shares.items()}


GATE_FREE = (
    "A path from the image to the logits has no gate, or several layers in a row have none: there the gradient is "
    "the ordinary one, and adversarial evidence can arise."
)


def joined(parts: Sequence[Coverage | None]) -> Coverage | None:
    """The coverage of the images of all parts; None if one is unknown, or if the layers differ."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({part.layers for part in known}) > 1:
        return None
    closed = [part.closed for part in known if part.closed is not None]
    return replace(known[0], closed=torch.cat(closed) if len(closed) == len(known) else None)


def _stage(layer: Layer) -> str:
    """``features.3`` for ``features.3.conv.act``, ``layer1`` for ``layer1.0.relu``, ``relu`` for the network's own."""
    names = layer.module.split(".")
    numbered = len(names) > 1 and names[1].isdigit() and names[0] in {"features", "blocks", "stages"}
    return ".".join(names[: 1 + numbered]) or layer.name


def same_fields(one: Any, other: Any) -> bool:
    """Whether two objects of a dataclass agree in all fields that its comparisons use.

    Tensors agree if their shapes, data types and all values do, wherever they are; NaN agrees with NaN.
    """
    compared = [field.name for field in fields(one) if field.compare]
    return all(_same(getattr(one, name), getattr(other, name)) for name in compared)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and torch.allclose(one, other.to(one.device), rtol=0, atol=0, equal_nan=True)
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return False
    return bool(one == other or (one != one and other != other))
