"""The rules with which excitation backprop passes a probability P down, function by function.

`fgvis_lightning.baselines.excitation_backprop` applies them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from fgvis_lightning.baselines.propagation import Call, Rules
from fgvis_lightning.defense.nonlinearities import ACTIVATIONS, table

# --- functions with a rule, by name ---

WEIGHTED = frozenset({"conv1d", "conv2d", "conv3d", "linear"})
AVERAGES = frozenset(
    {"mean", "sum"} | {f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)}
)  # a sum of neighbors shares P as their average does
SUMS = frozenset({"add"})
DIFFERENCES = frozenset({"sub", "subtract", "rsub"})
PRODUCTS = frozenset({"mul", "multiply"})
QUOTIENTS = frozenset({"div", "divide", "truediv", "true_divide"})
NORMALIZATIONS = frozenset(
    {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize"}
)
ELEMENTWISE = frozenset({"pow", "square", "sqrt", "rsqrt", "abs", "exp", "log", "addcmul"})

RULES = ACTIVATIONS | table(
    {"matmul"} | WEIGHTED | AVERAGES | SUMS | DIFFERENCES | PRODUCTS | QUOTIENTS | NORMALIZATIONS | ELEMENTWISE
)

GATES = {
    **dict.fromkeys(("sigmoid", "hardsigmoid"), 2),
    **dict.fromkeys(("tanh", "relu6", "hardtanh", "clamp", "clip"), 1),
}
"""Likelihood that an activation's output is a gate; of two factors of equal size, the one with the higher value is."""

COPIES = frozenset(
    {"View", "UnsafeView", "Reshape", "ReshapeAlias", "Permute", "Transpose", "T", "Expand", "Repeat", "Clone", "Alias"}
    | {"Unbind", "Slice", "Split", "SplitWithSizes", "UnsafeSplit", "Select", "Index", "IndexSelect", "Gather"}
    | {"Squeeze", "Unsqueeze", "Stack", "Cat", "Flip", "Roll", "Rot90", "AsStrided", "CopySlices", "Copy", "ToCopy"}
    | {"Diagonal", "Tril", "Triu", "MaskedFill", "Where", "ConstantPadNd", "ReflectionPad1D", "ReflectionPad2D"}
    | {"ReplicationPad1D", "ReplicationPad2D", "PixelShuffle", "PixelUnshuffle", "NativeChannelShuffle", "Unfold"}
    | {"Im2Col", "UpsampleNearest2D", "UpsampleNearestExact2D", "AccumulateGrad", "BackwardHookFunction"}
    | {"MaxPool1D", "MaxPool2D", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "MkldnnMaxPool2D"}
    | {"MpsMaxPool2D", "FractionalMaxPool2D", "Amax", "Max", "Maximum", "Minimum"}
)
"""Nodes of autograd's graph whose outputs are copies of inputs, so that P follows the same rule as the gradient."""


def _wide(x: Tensor) -> Tensor:
    """Detach a tensor and convert it to float32 or better, as sums of many small P require."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


class Linear(Function):
    """``linear(x, weight)`` plus a bias, which receives no P; ``call`` computes the result."""

    @staticmethod
    def forward(
        ctx: Any, call: Callable[[], Tensor], linear: Callable[..., Tensor], weight: Tensor | None, x: Tensor
    ) -> Tensor:
        ctx.linear, ctx.weight, ctx.excited = linear, weight, x.clamp(min=0)  # a copy: x may be changed in place later
        ctx.sign = ctx.contrast = None
        ctx.mixes = True
        return call()

    @staticmethod
    def backward(ctx: Any, p: Tensor) -> tuple[None, None, None, Tensor]:
        x, p = _wide(ctx.excited), _wide(p)

        def shared(weight: Tensor | None) -> Tensor:
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                z = ctx.linear(leaf, weight)
            limits = torch.finfo(z.dtype)
            # Smaller values could overflow the quotient.
            per_excitation = torch.where(z > limits.tiny / limits.eps, p / z, 0)
            return x * torch.autograd.grad(z, leaf, per_excitation)[0]

        if ctx.weight is None:
            return None, None, None, shared(None)
        weight = _wide(ctx.weight) if ctx.sign is None else _wide(ctx.weight) * ctx.sign
        at_x = shared(weight.clamp(min=0))
        if ctx.contrast:
            at_x = at_x - shared((-weight).clamp(min=0))
        return None, None, None, at_x


class Sum(Function):
    """``a + scale b``; ``call`` computes the result, possibly in place."""

    @staticmethod
    def forward(ctx: Any, call: Callable[[], Tensor], scale: float, signed: bool, a: Tensor, b: Tensor) -> Tensor:
        parts = [_wide(a), _wide(b) * scale]
        if not signed:
            parts = [part.clamp(min=0) for part in parts]
        total = parts[0] + parts[1]
        ctx.shares = [torch.where(total > 0, part / total, 0) for part in parts]
        ctx.shapes = a.shape, b.shape
        ctx.mixes = True
        y = call()
        ctx.mark_dirty(*[x for x in (a, b) if x is y])
        return y

    @staticmethod
    def backward(ctx: Any, p: Tensor) -> tuple[Tensor | None, ...]:
        at = [(_wide(p) * share).sum_to_size(shape) for share, shape in zip(ctx.shares, ctx.shapes, strict=True)]
        return None, None, None, *at


class Pass(Function):
    """A function whose P goes only to its ``signal``; ``call`` computes the result, possibly in place."""

    @staticmethod
    def forward(ctx: Any, call: Callable[[], Tensor], gate: int | None, signal: Tensor, *others: Tensor) -> Tensor:
        ctx.gate, ctx.shape, ctx.inputs = gate, signal.shape, 1 + len(others)
        y = call()
        ctx.mark_dirty(*[x for x in (signal, *others) if x is y])
        return y

    @staticmethod
    def backward(ctx: Any, p: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, p.sum_to_size(ctx.shape), *[None] * (ctx.inputs - 1)


def rule_of(node: Any) -> type | None:
    """The custom autograd function of a node, if it is one."""
    return getattr(type(node), "_forward_cls", None)


def _gate(x: Tensor) -> int:
    """Likelihood that a factor is a gate, see `GATES`; reshaping and scaling are ignored."""
    node: Any = x.grad_fn
    while node is not None and not getattr(node, "mixes", False):
        gate = getattr(node, "gate", None)
        if gate is not None:
            return int(gate)
        node = node.next_functions[0][0] if node.next_functions else None
    return 0


def signal_of(a: Tensor, b: Tensor) -> Tensor | None:
    """The factor that receives all of P, or None if it cannot be determined."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    full = [x for x in (a, b) if (1,) * (len(shape) - x.ndim) + x.shape == shape]
    if a is b or len(full) == 1:
        return full[0]
    gates = _gate(a), _gate(b)
    return None if not full or gates[0] == gates[1] else (a, b)[gates[0] > gates[1]]


def _fold(x: Tensor, factor: Tensor) -> None:
    """Move the sign of each channel's ``factor`` into the layer whose output is ``x``, if there is one."""
    node: Any = x.grad_fn
    if rule_of(node) is not Linear or node.weight is None:
        return
    channels = len(node.weight)
    shape = [1] * x.ndim
    shape[1 if node.weight.ndim > 2 else -1] = channels
    if factor.numel() == 1 or [1] * (x.ndim - factor.ndim) + list(factor.shape) == shape:
        sign = factor.detach().sign().to(x.device).reshape(-1, *[1] * (node.weight.ndim - 1))
        node.sign = sign if node.sign is None else node.sign * sign


class ExcitationRules(Rules):
    """Replaces the derivatives of functions by their rules for P.

    Args:
        signed: whether the parts of a sum share P by their values, or by their positive parts.
    """

    table = RULES

    def __init__(self, signed: bool = False) -> None:
        super().__init__()
        self.signed = signed

    def apply(self, name: str, call: Call) -> Any:
        function, depending, signal = call.function, call.depending, call.depending[0]
        gate: int | None = GATES.get(name, 0)
        if name in AVERAGES:
            return Linear.apply(call, lambda x, _: function(x, *call.args[1:], **call.options), None, signal)
        if name in WEIGHTED:
            if signal is not call.argument(0, "input"):
                return call()  # leaves a node that is refused if P arrives there
            weight = call.argument(1, "weight").detach()
            return Linear.apply(call, lambda x, w: function(x, w, None, *call.args[3:], **call.options), weight, signal)
        if name == "matmul":
            if signal is not call.argument(0, "input") or len(depending) == 2:
                return call()
            return Linear.apply(call, function, call.argument(1, "other").detach(), signal)
        if name in SUMS and len(depending) == 2:
            return Sum.apply(call, call.kwargs.get("alpha", 1), self.signed, *depending)
        if name in PRODUCTS and len(depending) == 2:
            factor = signal_of(*depending)
            if factor is None:
                return call()
            signal = factor
        elif name in PRODUCTS | QUOTIENTS:
            constants = [value for value in call.args[:2] if value is not signal]
            if constants and not (isinstance(constants[0], Tensor) and constants[0].requires_grad):
                _fold(signal, torch.as_tensor(constants[0]))
        elif name == "batch_norm":
            factor = call.argument(3 if function is F.batch_norm else 1, "weight")
            if factor is not None:
                _fold(signal, factor.reshape(1, -1, *[1] * (signal.ndim - 2)))
        elif name == "glu":
            signal = signal.chunk(2, call.argument(1, "dim") or -1)[0]
        if name in SUMS | DIFFERENCES | PRODUCTS | QUOTIENTS:
            gate = None  # still a gate if it was
        return Pass.apply(call, gate, signal, *[value for value in call.tensors if value is not signal])
