"""The gate of an activation (Wagner et al., CVPR 2019, section 3.2, eq. 7 to 9).

`gate` adds a gate to any tensor. `GatedReLU` is ReLU or ReLU6 together with its gate: the same gradients, bit for bit,
at little more than the cost of the activation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LIMITS = {"relu": torch.inf, "relu6": 6.0}
"""Activations that can be fused with their gate, and their largest output, where their derivative is 0."""

CHUNK = 2**18
"""Numbers processed at a time, so that intermediate results stay in a core's cache."""


class Range:
    """h(x) of neurons of either sign, prepared for testing whether h(e) lies between 0 and h(x).

    Args:
        h: activations h(x), any shape.
    """

    def __init__(self, h: Tensor) -> None:
        self.shape = h.shape
        known, zero = h.detach(), h.new_zeros(())
        self.low, self.high = torch.minimum(known, zero), torch.maximum(known, zero)

    def excess(self, h: Tensor) -> Tensor:
        """Like `fgvis_lightning.method.gates.excess`, but NaN if both are infinite; ``h`` is detached."""
        outside = h.clamp(self.low, self.high)
        return torch.sub(h, outside, out=outside)  # new memory costs more than arithmetic


def gate(h: Tensor, reference: Tensor | Range, rule: str = "strict") -> None:
    """Add a gate to the gradient at ``h``, see `fgvis_lightning.method.gates`.

    The gate is a hook on the tensor, not a new tensor. Thus code is also gated if it ignores the result of an in-place
    activation and continues with its input, or if it changes an output in place later (autograd calls the hook with
    the gradient of the value at the time of registration).

    Args:
        h: activations h(e), any shape.
        reference: reference activations h(x), same shape; a tensor if neither h(e) nor h(x) is ever negative, which
            saves two thirds of the work.
        rule: ``strict`` or ``restoring``; NaN passes both.
    """
    known = h.detach()
    kind = torch.finfo(known.dtype)
    below_zero = -kind.smallest_normal * kind.eps  # the largest negative number
    # Both variants below select; a product would turn 0 * inf into NaN. On CPUs the first one, which selects the
    # gradient where room > below_zero, is faster than a boolean mask, but it fails if such small numbers count as zero.
    by_threshold = known.is_cpu and torch.tensor(below_zero, dtype=known.dtype).item() < 0
    select, in_place = torch.ops.aten.threshold_backward, torch.ops.aten.threshold_backward.grad_input
    if rule == "restoring":
        excess = reference.excess(known) if isinstance(reference, Range) else (known - reference).clamp_(min=0)
        sides = [excess.sign_()]

        def restore(gradient: Tensor) -> Tensor:
            last = _is_last(gradient)
            room = sides.pop().mul_(gradient) if last else sides[0] * gradient
            if not by_threshold:
                return torch.where(room < 0, 0, gradient)
            if last:
                return in_place(gradient, room, below_zero, grad_input=room)
            return select(gradient, room, below_zero)

        h.register_hook(restore)
        return
    rooms = [reference.excess(known).abs_().neg_() if isinstance(reference, Range) else reference - known]

    def block(gradient: Tensor) -> Tensor:
        if _is_last(gradient):
            room = rooms.pop()
            return in_place(gradient, room, below_zero, grad_input=room)
        return select(gradient, rooms[0], below_zero)

    if by_threshold:
        h.register_hook(block)
    else:
        closed = rooms[0] < 0
        h.register_hook(lambda gradient: torch.where(closed, 0, gradient))


def _is_last(gradient: Tensor) -> bool:
    """Whether the backward pass of a hook's gradient frees its graph, so the hook may overwrite what it has kept.

    New memory costs more than arithmetic. False for several passes in one (``is_grads_batched``).
    """
    # Private: torch has no public functions for it, and its older versions may lack these.
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    is_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda _: True)
    return not (keeps_graph() or is_batched(gradient))


class Ceiling:
    """h(x) of a ReLU or ReLU6, prepared for testing whether 0 < h(e) ≤ h(x).

    On CPUs, 16-bit numbers are compared fastest as integers, which have the same order as the non-negative
    floating-point numbers with these bits. Otherwise, the quotient h(e)/h(x) is compared with 1. This is exact: if h(e)
    is larger, the quotient is rounded to more than 1, since with the ceiling's digits ``1 ≤ c < 2`` and ``u`` a unit in
    their last place, ``1 + u/c`` lies beyond the middle between 1 and ``1 + u``. Only an h(e) up to the smallest normal
    number, 1e-38 in float32, or up to this share of h(x), can count as zero; and h(x) must be finite.

    Args:
        h: activations h(x), any shape, which are copied.
        most: the limit of the activation.
    """

    def __init__(self, h: Tensor, most: float) -> None:
        self.shape = h.shape
        self.most = most
        # At its limit, the activation's own derivative is 0, so the ceiling is at most the number before it.
        top = torch.tensor(most, dtype=h.dtype)
        if most < torch.inf:
            top = torch.nextafter(top, torch.zeros_like(top))
        self._top = top.to(h.device)
        self.by_bits = h.is_cpu and h.element_size() == 2 and bool(torch.ops.aten.is_non_overlapping_and_dense(h))
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
        """The gradient that passes the gate and the activation, whose derivative is 1 for 0 < h(e) < its limit."""
        restores = rule == "restoring"
        if not self.by_bits:
            result = h / self.value  # also holds the result, since new memory costs more than arithmetic
            past = 1 + torch.finfo(h.dtype).eps
            torch.ops.aten.hardtanh_backward.grad_input(gradient, result, 0.0, past, grad_input=result)
            if restores:
                # Inside the range the gradient, elsewhere 0, or the gradient if it is positive and thus leads back.
                torch.maximum(result, gradient, out=result)
                if self.most < torch.inf:
                    torch.ops.aten.hardtanh_backward.grad_input(result, h, 0.0, self.most, grad_input=result)
                else:  # ReLU has a derivative of 1 at infinity
                    torch.ops.aten.threshold_backward.grad_input(result, h, 0.0, grad_input=result)
            return result
        h, gradient = (
            one if one.stride() == self.value.stride() else torch.empty_like(self.value, dtype=one.dtype).copy_(one)
            for one in (h, gradient)
        )
        result = torch.empty_like(h)
        scratch = torch.empty(2, min(CHUNK, h.numel()), dtype=torch.int16)
        limit = int(self._top.view(torch.int16)) + 1
        lowest = int(torch.tensor(-torch.inf, dtype=h.dtype).view(torch.int16))  # NaN is above it
        parts = (_bits(tensor).split(CHUNK) for tensor in (h, self.value, gradient, result))
        for activation, ceiling, incoming, outgoing in zip(*parts, strict=True):
            passes, other = scratch[:, : len(activation)]
            if restores:  # compare with the limit instead of the ceiling where the gradient is not negative
                torch.clamp(incoming, lowest, lowest + 1, out=other).sub_(lowest).mul_(limit)
                ceiling = torch.maximum(ceiling, other, out=other)
            torch.sub(activation, ceiling, out=passes)  # the sign bit is set where 0 ≤ h(e) ≤ h(x)
            torch.neg(activation, out=other)  # and here where 0 < h(e), or for -0
            passes.bitwise_and_(other).bitwise_right_shift_(15)  # into all of the 16 bits
            torch.bitwise_and(incoming, passes, out=outgoing)
        return result


def _bits(tensor: Tensor) -> Tensor:
    """A dense tensor of 16-bit numbers as integers in memory order."""
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
    """Whether hooks handle saved tensors, as in checkpointing, which runs parts of the network again."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(False) is not None
