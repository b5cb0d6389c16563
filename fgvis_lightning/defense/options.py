"""What there is to say about the defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DefenseOptions:
    """How a network's gradient is gated.

    Args:
        gate: ``strict``, the paper's, or ``restoring``, see `fgvis_lightning.method.gates`; unless given, restoring
            where ``lam: auto`` is to keep a class, and strict elsewhere.
        exempt: nonlinearities to leave without a gate, by the name of a function or the class of a module:
            ``sigmoid``, ``my_project.layers.LayerNorm``. What flows through them is not defended.
        gated: nonlinearities to gate beside those that always are, by the name of a function or the class of a module:
            ``abs``, ``my_project.layers.Swish``.
        fold: whether batch normalization is folded into the convolutions before it, see
            `fgvis_lightning.networks.folding`.
        fused: whether gates are fused with the activations that they follow, which changes no bit.
    """

    gate: Literal["strict", "restoring"] | None = None
    exempt: list[str] | None = None
    gated: list[str] | None = None
    fold: bool = True
    fused: bool = True
