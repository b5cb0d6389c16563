"""Options of the defense, and the container made by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fgvis_lightning.defense.container import DefendedCNN
from fgvis_lightning.defense.nonlinearities import resolve
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.folding import folded
from fgvis_lightning.networks.heads import Head, Inverse
from fgvis_lightning.networks.outputs import Selected
from fgvis_lightning.networks.reduce import Reduction


@dataclass(frozen=True)
class DefenseOptions:
    """Options of the gates on a network's gradient.

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


def defend(classifier: Classifier, options: DefenseOptions, gate: str) -> DefendedCNN:
    """Put a classifier, with its batch normalization folded away if asked for, into the container.

    Args:
        classifier: the frozen network.
        options: how its gradient is gated.
        gate: the gate, which ``options`` may leave open.
    """
    frozen, gated = classifier.network, options.gated or ()
    exempt: Sequence[str | type] = options.exempt or ()
    output: str | int | None = None
    if isinstance(frozen, Selected):  # the container selects by itself, and names modules as the network does
        output, frozen = frozen.output, frozen.network
    if isinstance(frozen, Head) and frozen.inverse is not None:
        exempt = (*exempt, Inverse)
    if any(isinstance(module, Reduction) for module in frozen.modules()):
        exempt = (*exempt, Reduction)
    if options.fold:
        listed = (*resolve(exempt, "exempt")[1], *resolve(gated, "gated")[1])
        known, key = classifier.folded, (frozen, listed)
        if key not in known:
            known[key], _ = folded(frozen, (classifier.preprocessing.count, *classifier.preprocessing.size), listed)
        frozen = known[key]
    return DefendedCNN(frozen, gate=gate, exempt=exempt, gated=gated, output=output, fused=options.fused).eval()
