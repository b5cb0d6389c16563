"""The gate of one activation: which gradients pass (Wagner et al., CVPR 2019, section 3.2, eq. 7 to 9).

`gate` puts one on any tensor. `GatedReLU` is ReLU or ReLU6 together with its gate: the same gradients, bit for bit, for
little more than the activation alone costs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LIMITS = {"relu": torch.inf, "relu6": 6.0}
"""Activations that can be had together with their gate: what their output is at most. Its derivative is 0 there."""

CHUNK = 2**18
"""Numbers worked on at a time, so that what is between stays in a core's own memory."""


class Range:
    """h(x) of neurons of either sign, prepared for asking whether h(e) lies between 0 and h(x).

    Args:
        h: activations h(x), any shape.
    """

    def __init__(self, h: Tensor) -> None:
        self.shape = h.shape
        known, zero = h.detach(), h.new_zeros(())
        self.low, self.high = torch.minimum(known, zero), torch.maximum(known, zero)

    def excess(self, h: Tensor) -> Tensor:
        """As `fgvis_lightning.method.gates.excess`, but NaN where both are infinite; ``h`` is detached."""
        outside = h.clamp(self.low, self.high)
        return torch.sub(h, outside, out=outside)  # memory that is new costs more than arithmetic


def gate(h: Tensor, reference: Tensor | Range, rule: str = "strict", *, nonnegative: bool = False) -> None:
    """Put a gate on the gradient that arrives at ``h``, see `fgvis_lightning.method.gates`.

    A hook on the tensor, not a new tensor: code that ignores the result of an in-place activation
    and goes on with its input is gated as well, and so is an output that is changed in place later
    (autograd calls the hook with the gradient of the value at the time of registration).

    Args:
        h: activations h(e), any shape.
        reference: reference activations h(x), same shape.
        rule: ``strict`` or ``restoring``; what is not a number passes either.
        nonnegative: whether neither can be negative, which saves two thirds of the work.
    """
    known = h.detach()
    kind = torch.finfo(known.dtype)
    below_zero = -kind.smallest_normal * kind.eps  # the largest negative number
    # Both ways below select, where a product would make NaN of 0 * inf. On CPUs the first, which takes the gradient
    # where room > below_zero, is faster than a mask of booleans; but not where numbers that small count as zero.
    by_threshold = known.is_cpu and torch.tensor(below_zero, dtype=known.dtype).item() < 0
    if isinstance(reference, Tensor) and not nonnegative:
        reference = Range(reference)
    if rule == "restoring":
        excess = reference.excess(known) if isinstance(reference, Range) else (known - reference).clamp_(min=0)
        side = excess.sign_()

        def restore(gradient: Tensor) -> Tensor:
            room = side * gradient
            if by_threshold:
                return torch.ops.aten.threshold_backward.grad_input(gradient, room, below_zero, grad_input=room)
            return torch.where(room < 0, 0, gradient)

        h.register_hook(restore)
        return
    room = reference.excess(known).abs_().neg_() if isinstance(reference, Range) else reference - known
    if by_threshold:
        h.register_hook(lambda gradient: torch.ops.aten.threshold_backward(gradient, room, below_zero))
    else:
        closed = room < 0
        h.register_hook(lambda gradient: torch.where(closed, 0, gradient))


class Ceiling:
    """h(x) of a ReLU or ReLU6, prepared for asking whether 0 < h(e) ≤ h(x).

    Where numbers have 16 bits, CPUs compare them best as integers, since those of non-negative floating-point numbers
    are in the same order. Elsewhere the quotient h(e)/h(x) is compared with 1, which is exact: it is rounded to more
    than 1 wherever h(e) is larger, for with ``1 ≤ c < 2`` the ceiling's digits and ``u`` a unit in their last place
    ``1 + u/c`` lies beyond the middle between 1 and ``1 + u``. Only an h(e) of at most the smallest normal number,
    1e-38 in float32, or of as small a share of h(x), can count as zero there; and h(x) must be finite.

    Args:
        h: activations h(x), any shape, kept as a copy.
        most: the limit of the activation.
    """

    def __init__(self, h: Tensor, most: float) -> None:
        self.shape = h.shape
        self.most = most
        # Where the activation has reached its limit, its own derivative is 0: at most the number before.
        top = torch.tensor(most, dtype=h.dtype)
        if most < torch.inf:
            top = torch.nextafter(top, torch.zeros_like(top))
        self._top = top.to(h.device)
        self.by_bits = h.is_cpu and h.element_size() == 2 and _is_dense(h)
        value = torch.minimum(h.detach(), self._top)
        if self.by_bits:
            value = value.view(torch.int16).bitwise_and_(0x7FFF).add_(1)  # without a sign
        else:
            value.clamp_(min=torch.finfo(h.dtype).smallest_normal)
        self.value = value

    def closed(self, h: Tensor) -> Tensor:
        """Mark the gates that are closed at h(e), as booleans."""
        if self.by_bits:
            above, at_limit = h.view(torch.int16) >= self.value, self.value > self._top.view(torch.int16)
        else:
            above, at_limit = h > self.value, self.value == self._top
        return above & ~(at_limit & (h == self.most)) if self.most < torch.inf else above

    def select(self, gradient: Tensor, h: Tensor, rule: str = "strict") -> Tensor:
        """The gradient that passes the gate and the activation, which has a slope where 0 < h(e) < its limit."""
        restores = rule == "restoring"
        if not self.by_bits:
            result = h / self.value  # and then the result, for memory that is new costs more than either operation
            past = 1 + torch.finfo(h.dtype).eps
            torch.ops.aten.hardtanh_backward.grad_input(gradient, result, 0.0, past, grad_input=result)
            if restores:
                # The gradient inside the range, and elsewhere 0, or the gradient if it is more: so it leads back.
                torch.maximum(result, gradient, out=result)
                if self.most < torch.inf:
                    torch.ops.aten.hardtanh_backward.grad_input(result, h, 0.0, self.most, grad_input=result)
                else:  # ReLU has a slope at infinity
                    torch.ops.aten.threshold_backward.grad_input(result, h, 0.0, grad_input=result)
            return result
        h, gradient = (
            one if one.stride() == self.value.stride() else torch.empty_like(self.value, dtype=one.dtype).copy_(one)
            for one in (h, gradient)
        )
        result = torch.empty_like(h)
        scratch = torch.empty(2, min(CHUNK, h.numel()), dtype=torch.int16)
        limit = int(self._top.view(torch.int16)) + 1
        lowest = int(torch.tensor(-torch.inf, dtype=h.dtype).view(torch.int16))  # what is not a number is above it
        parts = (_bits(tensor).split(CHUNK) for tensor in (h, self.value, gradient, result))
        for activation, ceiling, incoming, outgoing in zip(*parts, strict=True):
            passes, other = scratch[:, : len(activation)]
            if restores:  # a gradient that is not negative meets the limit in place of the ceiling
                torch.clamp(incoming, lowest, lowest + 1, out=other).sub_(lowest).mul_(limit)
                ceiling = torch.maximum(ceiling, other, out=other)
            torch.sub(activation, ceiling, out=passes)  # the sign's bit is set where 0 ≤ h(e) ≤ h(x)
            torch.neg(activation, out=other)  # and here where 0 < h(e), and for -0
            passes.bitwise_and_(other).bitwise_right_shift_(15)  # into all of the 16 bits
            torch.bitwise_and(incoming, passes, out=outgoing)
        return result


def _is_dense(tensor: Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))


def _bits(tensor: Tensor) -> Tensor:
    """A dense tensor of 16-bit numbers as integers, in the order in which they lie in memory."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.int16)


class GatedReLU(Function):
    """ReLU or ReLU6 with its gate: ``GatedReLU.apply(x, ceiling, in_place, rule)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ceiling: Ceiling, in_place: bool, rule: str) -> Tensor:
        h = F.relu(x, in_place) if ceiling.most == torch.inf else F.hardtanh(x, 0.0, ceiling.most, in_place)
        if in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(h)
        ctx.ceiling, ctx.rule = ceiling, rule
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.ceiling.select(gradient, *ctx.saved_tensors, ctx.rule), None, None, None


def is_checkpointed() -> bool:
    """Whether saved tensors are handled by hooks, as in checkpointing, which runs parts of the network again."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(False) is not None
