"""Excitation backprop (Zhang, Lin, Brandt, Shen and Sclaroff, ECCV 2016, sections 3.2 to 3.4).

A probability P starts at the target's logit and is handed down: a neuron i gives its share to each of its inputs j in
proportion to ``max(a_j, 0) max(w_ij, 0)``, by how much each excites it. Every rule here keeps the sum of P, but that
of a neuron without an excited input is lost: such a neuron owes its activation to a bias. After depthwise
convolutions, with their few inputs, that can be most of P.

- *convolution, linear layer, average pooling*: as above. A batch normalization, or a product with a constant, of just
  that output belongs to its weights: where it is negative, inhibition excites. If something else uses the output too,
  P passes the factor unchanged.
- *sum*: the same with weights 1. What is subtracted inhibits, and gets nothing.
- *maximum*: the winner takes all.
- *product*: the larger factor takes all, since the smaller weighs whole channels or places; of two of one size, the
  one that is not the output of a bounded activation such as a sigmoid.
- *activation, normalization, constants*: a neuron hands P to the one that it is a function of.

While the network runs, a ``TorchFunctionMode`` calls each function within a custom autograd function whose backward is
the rule. What it returns, also in place, is the network's own; the network is not touched. What is left in autograd's
graph must be an operator each of whose outputs copies one input, so that autograd hands on P as it is; else the network
is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.baselines.layers import module_called
from fgvis_lightning.defense.audit import kind
from fgvis_lightning.defense.nonlinearities import ACTIVATIONS, table
from fgvis_lightning.errors import InputError

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
"""How likely the output of an activation is to be a gate: of two factors of one size, the higher is the gate."""

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
"""Nodes of autograd's graph each of whose outputs is one of the inputs, so that the gradient's rule is that for P."""


def _wide(x: Tensor) -> Tensor:
    """Without a gradient, and in float32 if it was less: sums of many small P need it."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


class _Linear(Function):
    """``linear(x, weight)``, plus a bias that takes no part, which ``call`` computes."""

    @staticmethod
    def forward(
        ctx: Any, call: Callable[[], Tensor], linear: Callable[..., Tensor], weight: Tensor | None, x: Tensor
    ) -> Tensor:
        ctx.linear, ctx.weight, ctx.excited = linear, weight, x.clamp(min=0)  # a copy: x may be changed in place later
        ctx.sign = ctx.contrast = None
        return call()

    @staticmethod
    def backward(ctx: Any, p: Tensor) -> tuple[None, None, None, Tensor]:
        x, p = _wide(ctx.excited), _wide(p)

        def shared(weight: Tensor | None) -> Tensor:
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                z = ctx.linear(leaf, weight)
            limits = torch.finfo(z.dtype)
            # What is below could overflow the quotient.
            per_excitation = torch.where(z > limits.tiny / limits.eps, p / z, 0)
            return x * torch.autograd.grad(z, leaf, per_excitation)[0]

        if ctx.weight is None:
            return None, None, None, shared(None)
        weight = _wide(ctx.weight) if ctx.sign is None else _wide(ctx.weight) * ctx.sign
        at_x = shared(weight.clamp(min=0))
        if ctx.contrast:
            at_x = at_x - shared((-weight).clamp(min=0))
        return None, None, None, at_x


class _Sum(Function):
    """``a + scale b``, which ``call`` computes, perhaps in place."""

    @staticmethod
    def forward(ctx: Any, call: Callable[[], Tensor], scale: float, a: Tensor, b: Tensor) -> Tensor:
        parts = _wide(a).clamp(min=0), (_wide(b) * scale).clamp(min=0)
        total = parts[0] + parts[1]
        ctx.shares = [torch.where(total > 0, part / total, 0) for part in parts]
        ctx.shapes = a.shape, b.shape
        y = call()
        ctx.mark_dirty(*[x for x in (a, b) if x is y])
        return y

    @staticmethod
    def backward(ctx: Any, p: Tensor) -> tuple[Tensor | None, ...]:
        at = [(_wide(p) * share).sum_to_size(shape) for share, shape in zip(ctx.shares, ctx.shapes, strict=True)]
        return None, None, *at


class _Pass(Function):
    """A function, which ``call`` computes, perhaps in place, whose P goes to its ``signal`` alone."""

    @staticmethod
    def forward(ctx: Any, call: Callable[[], Tensor], gate: int | None, signal: Tensor, *others: Tensor) -> Tensor:
        ctx.gate, ctx.shape, ctx.inputs = gate, signal.shape, 1 + len(others)
        y = call()
        ctx.mark_dirty(*[x for x in (signal, *others) if x is y])
        return y

    @staticmethod
    def backward(ctx: Any, p: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, p.sum_to_size(ctx.shape), *[None] * (ctx.inputs - 1)


def _rule(node: Any) -> type | None:
    """The custom autograd function of a node, if it is one."""
    return getattr(type(node), "_forward_cls", None)


def _gate(x: Tensor) -> int:
    """How likely this factor is a gate, see `GATES`; what only reshapes or scales it does not matter."""
    node: Any = x.grad_fn
    while node is not None and _rule(node) not in (_Linear, _Sum):
        if _rule(node) is _Pass and node.gate is not None:
            return int(node.gate)
        node = node.next_functions[0][0] if node.next_functions else None
    return 0


def _signal(a: Tensor, b: Tensor) -> Tensor | None:
    """The factor that takes all, if that can be told."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    full = [x for x in (a, b) if (1,) * (len(shape) - x.ndim) + x.shape == shape]
    if a is b or len(full) == 1:
        return full[0]
    gates = _gate(a), _gate(b)
    return None if not full or gates[0] == gates[1] else (a, b)[gates[0] > gates[1]]


def _fold(x: Tensor, factor: Tensor) -> None:
    """Let the sign of each channel's ``factor`` belong to the layer whose output ``x`` is, if it just is."""
    node: Any = x.grad_fn
    if _rule(node) is not _Linear or node.weight is None:
        return
    channels = len(node.weight)
    shape = [1] * x.ndim
    shape[1 if node.weight.ndim > 2 else -1] = channels
    if factor.numel() == 1 or [1] * (x.ndim - factor.ndim) + list(factor.shape) == shape:
        sign = factor.detach().sign().to(x.device).reshape(-1, *[1] * (node.weight.ndim - 1))
        node.sign = sign if node.sign is None else node.sign * sign


class _Rules(TorchFunctionMode):
    """Calls the functions that have a rule with that rule as their backward."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = RULES.get(func)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        depending = [value for value in tensors if value.requires_grad]  # on the image: nothing else requires it
        if name is None or not depending:
            return func(*args, **kwargs)

        def call() -> Tensor:
            return func(*args, **kwargs)

        def argument(place: int, key: str) -> Any:
            return args[place] if len(args) > place else kwargs.get(key)

        signal = depending[0]
        gate: int | None = GATES.get(name, 0)
        options = {key: value for key, value in kwargs.items() if key not in ("input", "weight", "bias")}
        if name in AVERAGES:
            return _Linear.apply(call, lambda x, _: func(x, *args[1:], **options), None, signal)
        if name in WEIGHTED:
            if signal is not argument(0, "input"):
                return call()  # leaves a node that is refused if P arrives there
            weight = argument(1, "weight").detach()
            return _Linear.apply(call, lambda x, w: func(x, w, None, *args[3:], **options), weight, signal)
        if name == "matmul":
            if signal is not argument(0, "input") or len(depending) == 2:
                return call()
            return _Linear.apply(call, func, argument(1, "other").detach(), signal)
        if name in SUMS and len(depending) == 2:
            return _Sum.apply(call, kwargs.get("alpha", 1), *depending)
        if name in PRODUCTS and len(depending) == 2:
            factor = _signal(*depending)
            if factor is None:
                return call()
            signal = factor
        elif name in PRODUCTS | QUOTIENTS:
            constants = [value for value in args[:2] if value is not signal]
            if constants and not (isinstance(constants[0], Tensor) and constants[0].requires_grad):
                _fold(signal, torch.as_tensor(constants[0]))
        elif name == "batch_norm":
            factor = argument(3 if func is F.batch_norm else 1, "weight")
            if factor is not None:
                _fold(signal, factor.reshape(1, -1, *[1] * (signal.ndim - 2)))
        elif name == "glu":
            signal = signal.chunk(2, argument(1, "dim") or -1)[0]
        if name in SUMS | DIFFERENCES | PRODUCTS | QUOTIENTS:
            gate = None  # still a gate if it was
        return _Pass.apply(call, gate, signal, *[value for value in tensors if value is not signal])


def _below(node: Any) -> list[Any]:
    """The nodes that a node hands P to."""
    return [below for below, _ in node.next_functions[: 1 if _rule(node) is _Pass else None] if below is not None]


def _reached(root: Node, stop: Callable[[Any], bool]) -> set[Any]:
    """Nodes to which P goes from ``root``, not beyond those that stop it."""
    found: set[Any] = set()
    todo: list[Any] = [root]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [] if stop(node) else _below(node)
    return found


@contextmanager
def _constant(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Parameters do not require a gradient, so that only what depends on the image does."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class _Pathways:
    """One pass of a network, and where in autograd's graph its modules' outputs are.

    Attributes:
        ends: of each module that returned a tensor that depends on the image, where its last call's output is, and its
            shape; in the order in which they were done.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.name = type(network).__name__
        self.ends: dict[str, tuple[GradientEdge, torch.Size]] = {}
        with ExitStack() as stack, _constant(network.parameters()), _Rules():
            for name, module in network.named_modules():
                stack.callback(module.register_forward_hook(self._note(name)).remove)
            leaf = images.detach().clone().requires_grad_()
            self.logits = network(leaf.clone())  # which the network may change in place
        self.source = get_gradient_edge(leaf).node
        if not self.logits.requires_grad or self.source not in (nodes := self._reached(lambda node: False)):
            raise InputError(
                f"Expected {self.name} to compute its logits from the image in a way that autograd can follow, but no "
                f"path leads from one to the other. Leave excitation backprop out."
            )
        unknown = {kind(node) for node in nodes if _rule(node) not in (_Linear, _Sum, _Pass)} - COPIES
        if unknown:
            raise InputError(
                f"Expected a CNN of operators that excitation backprop has a rule for, but {self.name} has also "
                f"{', '.join(sorted(unknown))} between image and logits. Leave excitation backprop out."
            )
        uses = Counter(below for node in nodes for below in _below(node))
        for node in nodes:
            if uses[node] > 1 and _rule(node) is _Linear:
                node.sign = None  # what belongs to one use must not change the others

    def _note(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self.ends.pop(name, None)
            if isinstance(output, Tensor) and output.requires_grad:
                # The edge, not the tensor, which may be changed in place.
                self.ends[name] = get_gradient_edge(output), output.shape

        return hook

    def _reached(self, stop: Callable[[Any], bool]) -> set[Any]:
        return _reached(get_gradient_edge(self.logits).node, stop)

    def last_of_size(self, height: int, width: int) -> str:
        """The last module with maps of at least that size through which all paths to the image lead."""
        for name, (edge, shape) in reversed(self.ends.items()):
            if name and len(shape) == 4 and shape[-2] >= height and shape[-1] >= width:
                reached = self._reached(lambda node, end=edge.node: node is end)  # type: ignore[misc]
                if edge.node in reached and self.source not in reached:
                    return name
        raise InputError(
            f"Expected {self.name} to have a module whose output all of its logits depend on and which has at least "
            f"{height}×{width} places, but it has none. Name the module whose output is to be used with layer."
        )

    def probability(self, targets: Tensor, names: Iterable[str], contrastive: bool) -> dict[str, Tensor]:
        """P at the outputs of the modules of these names."""
        for node in self._reached(top := lambda node: _rule(node) is _Linear and node.weight is not None):
            if top(node):
                node.contrast = contrastive
        names = list(names)
        for name in names:
            if name not in self.ends:
                raise InputError(
                    f"Expected layer to be a module of {self.name} that returns one tensor which depends on the image, "
                    f"but {name!r} does not. Name another one."
                )
        start = torch.zeros_like(self.logits).scatter_(1, targets[:, None], 1)
        ends = [self.ends[name] for name in names]
        at = torch.autograd.grad(self.logits, [edge for edge, _ in ends], start, allow_unused=True)
        return {
            name: start.new_zeros(shape) if p is None else p
            for name, p, (_, shape) in zip(names, at, ends, strict=True)
        }


@contextmanager
def _differentiable(images: Tensor) -> Iterator[None]:
    """Whatever the caller's modes are. Without autocast, which would round P at every layer."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        yield


def marginal_winning_probability(
    network: nn.Module, images: Tensor, targets: Tensor, modules: Iterable[str], contrastive: bool = False
) -> dict[str, Tensor]:
    """How much of the target's probability each neuron gets.

    Args:
        network: as for `Method`.
        images: likewise.
        targets: likewise.
        modules: names of the modules at whose outputs to tell P; that of a module that runs several times is its last.
        contrastive: whether to subtract the P of a neuron that has the topmost layer's weights with the opposite sign.

    Returns:
        P by module, each in the shape of its output. Those of one image at one layer sum to at most 1; contrastive
        P may be negative.

    Raises:
        InputError: there is no such module, or no rule for an operator.
    """
    names = list(modules)
    for name in names:
        module_called(network, name)
    with _differentiable(images):
        return _Pathways(network, images).probability(targets, names, contrastive)


@dataclass(frozen=True)
class ExcitationBackprop(Method):
    """``max(Σ_k P_k, 0)`` of the maps k of one layer, upsampled; P as the module's text tells.

    Args:
        layer: name of the module at whose output to take P. Unless given, the last one that is done in a forward pass
            with maps of at least 1/16 of the image's height and width through which all P passes, such as ``layer3`` of
            a ResNet, ``features.29`` (the last ReLU) of VGG16. The authors take the fourth pooling of VGG16,
            ``features.23``, and the second of GoogLeNet, ``maxpool2``, in torchvision's names.
        contrastive: c-MWP, section 3.4: subtract what a neuron with the opposite weights in the topmost layer would
            hand down. Otherwise what excites all classes also shows.

    Nothing excites through a pixel that is negative after normalization: take P at the image with care.
    """

    layer: str | None = None
    contrastive: bool = True

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.layer is not None:
            module_called(network, self.layer)
        with _differentiable(images):
            pathways = _Pathways(network, images)
            layer = self.layer or pathways.last_of_size(-(-height // 16), -(-width // 16))
            p = pathways.probability(targets, [layer], self.contrastive)[layer]
        if p.ndim != 4:
            raise InputError(
                f"Expected layer to be a module that returns maps (B,C,H,W), but {layer!r} returns "
                f"{tuple(p.shape)}. Name another one."
            )
        attention = p.sum(1, keepdim=True).clamp(min=0).float()
        return F.interpolate(attention, (height, width), mode="bilinear", align_corners=False)[:, 0]
