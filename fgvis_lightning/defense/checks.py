"""Checks that refuse networks whose nonlinearities the container cannot gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fgvis_lightning.defense.audit import Found, Witness
from fgvis_lightning.defense.coverage import Layer
from fgvis_lightning.defense.graph import Findings
from fgvis_lightning.errors import InputError


class UngatedActivationError(InputError):
    """A nonlinearity that the defense cannot gate."""


def require_open(name: str, layers: Sequence[Layer], closed: Tensor) -> None:
    """Raise `InputError` if a gate is closed on the image itself, given the shares ``closed`` (B,L) of the layers."""
    shut = [
        f"{layer.name} in {layer.module or 'the network itself'} ({100 * share:.2g} % of its neurons)"
        for layer, share in zip(layers, closed.amax(0).tolist(), strict=True)
        if share
    ]
    if shut:
        raise InputError(
            f"Expected every gate to be open on the image itself, but {len(shut)} of {closed.shape[1]} layers have "
            f"closed gates, first {shut[0]}: {name} does not compute the same result twice. Likely "
            f"causes: randomness or state in the network; a precision, memory format or batch size that differs "
            f"between reference pass and explanation; kernels that are not deterministic (try "
            f"--trainer.deterministic true and --trainer.precision 32-true)."
        )


def judge_calls(name: str, witness: Witness, exempt: Collection[str]) -> None:
    """Refuse a network if the dispatcher saw operators that gates do not cover.

    Raises:
        InputError: if the network draws random numbers.
        UngatedActivationError: if a nonlinearity was not intercepted.
    """
    if witness.random:
        calls = listed(witness.random)
        raise InputError(
            f"Expected {name} to give the same result twice, but it draws random numbers: {calls}. Call "
            f"network.eval(), and pass training=self.training to functions such as dropout."
        )
    refuse(name, Counter({call: n for call, n in witness.missed.items() if call[0] not in exempt}))


def judge_graph(name: str, found: Findings) -> None:
    """Refuse a network if autograd's graph between image and logits has nodes that gates do not cover.

    Raises:
        InputError: if there is no path between image and logits.
        UngatedActivationError: if a nonlinearity between them has no gate.
    """
    if not found.reached:
        raise InputError(
            f"Expected the logits of {name} to depend on the image through operators that have a "
            f"gradient, but they do not: the network detaches them, or runs under no_grad."
        )
    refuse(name, found.problems)


def refuse(name: str, problems: Found) -> None:
    """Raise `UngatedActivationError` with the nonlinearities that cannot be gated, if there are any."""
    if problems:
        raise UngatedActivationError(
            f"Expected every nonlinearity of {name} to be gated, but these cannot be: "
            f"{listed(problems)}. Write them with activations of torch.nn or torch.nn.functional, outside of "
            f"compiled and scripted code; or list the function, or the class of its module, in gated, to gate its "
            f"output, or in exempt, to leave gradients through it undefended."
        )


def listed(found: Found) -> str:
    """``2 of pow in stages.0.act, 1 of where in head``, the most frequent first."""
    several = [f"{n} of {what}" + (f" in {place}" if place else "") for (what, place), n in found.most_common(3)]
    more = len(found) - len(several)
    return ", ".join(several) + (f", and in {more} more places" if more else "")


class Layout(NamedTuple):
    """Data type, device, autocast and memory format of a tensor; kernels round differently for each."""

    dtype: torch.dtype
    device: torch.device
    autocast: torch.dtype | None
    channels_last: bool

    @classmethod
    def of(cls, x: Tensor) -> Layout:
        """The layout of images (B,C,H,W)."""
        kind = x.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return cls(x.dtype, x.device, autocast, last)

    def apply(self, e: Tensor) -> Tensor:
        """Return ``e`` in this memory format.

        Raises:
            InputError: if its data type, device or autocast differs from the reference pass.
        """
        own = Layout.of(e)
        if own[:3] != self[:3]:
            there, here = (f"{one.dtype} on {one.device}, autocast {one.autocast or 'off'}" for one in (self, own))
            raise InputError(
                f"Expected images as in record(x), {there}, but got {here}: different rounding would close gates. "
                f"Record and run with the same data type, device and autocast."
            )
        if e.ndim != 4:
            return e
        return e.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
