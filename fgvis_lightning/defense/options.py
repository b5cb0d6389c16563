"""Options of the defense, and the container built from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fgvis_lightning.defense.container import DefendedCNN
from fgvis_lightning.defense.nonlinearities import as_entries, resolve
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.folding import faster
from fgvis_lightning.networks.heads import Head, Inverse
from fgvis_lightning.networks.outputs import Selected
from fgvis_lightning.networks.reduce import Reduction


@dataclass(frozen=True)
class DefenseOptions:
    """Options of the gates on a network's gradient.

    Args:
        gate: ``strict``, the paper's gate, or ``restoring``, see `fgvis_lightning.method.gates`; default: restoring
            for ``lam: auto`` in games that keep the class, otherwise strict.
        exempt: nonlinearities without a gate, as names of functions or classes of modules: ``sigmoid``,
            ``my_project.layers.LayerNorm``; or a kind of gate in a residual stream: ``residual``, ``normalization`` or
            ``attention``. Gradients through them are not defended.
        gated: additional nonlinearities to gate, as names of functions or classes of modules: ``abs``,
            ``my_project.layers.Swish``; or one of the three kinds, to gate it in any network.
        fold: whether to fold batch normalization into the preceding convolutions, see
            `fgvis_lightning.networks.folding`.
        fused: whether to fuse gates with their activations, which changes no bit.
    """

    gate: Literal["strict", "restoring"] | None = None
    exempt: list[str] | None = None
    gated: list[str] | None = None
    fold: bool = True
    fused: bool = True


def defend(classifier: Classifier, options: DefenseOptions, gate: str) -> DefendedCNN:
    """Wrap a classifier in the container, after folding if requested; ``gate`` replaces that of the options."""
    frozen, gated, exempt = classifier.network, as_entries(options.gated or ()), as_entries(options.exempt or ())
    output: str | int | None = None
    if isinstance(frozen, Selected):  # the container selects the output itself, and paths of modules stay the network's
        output, frozen = frozen.output, frozen.network
    if isinstance(frozen, Head) and frozen.inverse is not None:
        exempt = (*exempt, Inverse)
    if any(isinstance(module, Reduction) for module in frozen.modules()):
        exempt = (*exempt, Reduction)
    if options.fold:
        classes = (*resolve(exempt, "exempt")[1], *resolve(gated, "gated")[1])
        frozen = faster(classifier, frozen, classes)
    return DefendedCNN(frozen, gate=gate, exempt=exempt, gated=gated, output=output, fused=options.fused).eval()
