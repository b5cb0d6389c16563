"""Reference activations, recorded behind each nonlinearity in the pass on the real image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fgvis_lightning.defense.gates import LIMITS, Ceiling, Range, gate
from fgvis_lightning.defense.nonlinearities import NONNEGATIVE
from fgvis_lightning.errors import InputError


def bounds(h: Tensor, name: str, fused: bool) -> Tensor | Ceiling | Range:
    """Copy the part of h(x) that a gate needs, since the network may change its activation in place later."""
    if fused:
        return Ceiling(h, LIMITS[name])
    return h.detach().clone() if name in NONNEGATIVE else Range(h)


@dataclass
class Reference:
    """Reference activation of one call.

    Attributes:
        name: name of the activation.
        h: h(x); None if no gradient to the image flows through the call.
        fused: whether the gate may be fused with the activation, because its output is neither changed later nor
            computed again for the backward pass.
    """

    name: str
    h: Tensor | Ceiling | Range | None
    fused: bool = False

    def closed(self, h: Tensor) -> Tensor:
        """Mark the gates that are closed at h(e)."""
        assert self.h is not None
        if isinstance(self.h, Ceiling):
            return self.h.closed(h)
        if isinstance(self.h, Range):
            return self.h.excess(h).nan_to_num_(0) != 0
        return h > self.h

    def gate(self, h: Tensor, rule: str) -> None:
        """Add the gate to the gradient at h(e), if there is one."""
        if not h.requires_grad or self.h is None:
            return
        if isinstance(self.h, Ceiling):
            ceiling, known = self.h, h.detach().clone()  # h may be changed in place later
            h.register_hook(lambda gradient: ceiling.select(gradient, known, rule))
        else:
            gate(h, self.h, rule)


def share_closed(batch: int, reference: Reference, h: Tensor) -> Tensor:
    """Share of closed gates of one call for each image (B,)."""
    closed = reference.closed(h.detach())
    count = len(h) if h.ndim else 1
    # Some networks move parts of an image, such as windows, into the batch; others have tokens before images. If the
    # parts cannot be assigned, average over all images.
    known = count == batch or (batch and count % batch == 0 and batch not in h.shape[1:])
    closed = closed.reshape(batch, -1) if known and closed.numel() else closed.reshape(1, -1).expand(batch, -1)
    return closed.float().mean(1)


@contextmanager
def differentiable(x: Tensor) -> Iterator[Tensor]:
    """A copy of ``x`` that requires a gradient and may be changed in place.

    Raises:
        InputError: if x is empty, or does not have floating-point numbers.
    """
    if not x.is_floating_point() or not x.numel():
        raise InputError(f"Expected normalized images (B,3,H,W), but got {tuple(x.shape)} of {x.dtype}.")
    with torch.inference_mode(False), torch.enable_grad():
        yield x.detach().clone().requires_grad_().clone()
