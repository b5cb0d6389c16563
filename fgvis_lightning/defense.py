"""The defense: gates behind every nonlinearity (Wagner et al., CVPR 2019, section 3.2, eq. 7 to 9).

On the way back through the network the gradient at neuron ``i`` of nonlinearity ``l`` passes only
while the neuron stays inside the range that it has on the real image ``x``::

    min(0, h(x)) <= h(e) <= max(0, h(x))

so an explanation ``e`` can use features that the image has, and no others. The forward pass is the
network's own, bit for bit. There is nothing to tune.

Activation calls are intercepted while the network runs, so it does not matter whether they are
modules, functions or methods, in place or not, or one module that is used several times: each
*call* has its own reference activation, found again by its place in the order of calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fgvis_lightning.errors import InputError

# Activations whose output is never negative: their lower bound, min(0, h(x)) = 0, always holds.
NONNEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hardsigmoid", "softplus"})

_NAMES = (
    *("relu", "relu6", "sigmoid", "hardsigmoid", "softplus"),
    *("hardtanh", "hardswish", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu"),
    *("silu", "gelu", "mish", "tanh", "glu", "logsigmoid", "softsign", "tanhshrink"),
    *("hardshrink", "softshrink", "threshold", "clamp", "clip", "clamp_min", "clamp_max"),
)

# Every spelling of every activation: {F.relu: "relu", torch.relu_: "relu", Tensor.relu: "relu", …}.
ACTIVATIONS: dict[Callable[..., Tensor], str] = {
    getattr(namespace, name + suffix): name
    for name in _NAMES
    for suffix in ("", "_")
    for namespace in (F, torch, torch._C._nn, Tensor, torch.special, torch._C._VariableFunctions)
    if hasattr(namespace, name + suffix)
}
ACTIVATIONS[torch.special.expit] = "sigmoid"

# The operators that these arrive at. One that runs outside an intercepted call has slipped through.
OPERATORS = frozenset(
    {"relu", "hardtanh", "sigmoid", "hardsigmoid", "softplus", "hardswish", "leaky_relu", "elu"}
    | {"silu", "gelu", "mish", "tanh", "glu", "log_sigmoid_forward", "hardshrink", "softshrink"}
    | {"threshold", "clamp", "clamp_min", "clamp_max", "_prelu_kernel", "rrelu_with_noise"}
)


class UngatedActivationError(InputError):
    """A nonlinearity that the defense cannot gate."""


@dataclass
class Coverage:
    """Which nonlinearities the last pass met, and how many of their calls were gated.

    Attributes:
        calls: number of calls by activation, e.g. ``{"relu6": 33}``.
        gated: how many of them have a gate; 0 for exempt ones and in an undefended pass.
    """

    calls: Counter[str] = field(default_factory=Counter)
    gated: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        if not self.calls:
            return "no nonlinearities"
        parts = [
            f"{count} {name}" + ("" if self.gated[name] == count else f" ({self.gated[name]} gated)")
            for name, count in self.calls.items()
        ]
        return f"{self.gated.total()} of {self.calls.total()} nonlinearity calls gated: " + ", ".join(parts)


def slack(h: Tensor, reference: Tensor, *, nonnegative: bool = False) -> Tensor:
    """How far each neuron is inside its range ``min(0, h(x)) <= h(e) <= max(0, h(x))``.

    Args:
        h: activations h(e), any shape.
        reference: reference activations h(x), same shape.
        nonnegative: whether neither can be negative, which saves two thirds of the work.

    Returns:
        Same shape; below 0 exactly where the gate is closed. Exactly, because the difference of two
        unequal floating-point numbers is never rounded to zero (gradual underflow).
    """
    if nonnegative:
        return reference - h
    return torch.minimum(reference.clamp(min=0) - h, h - reference.clamp(max=0))


def gate(h: Tensor, reference: Tensor, *, nonnegative: bool = False) -> None:
    """Put a gate on the gradient that arrives at ``h``.

    A hook on the tensor, not a new tensor: code that ignores the result of an in-place activation
    and goes on with its input is gated as well, and so is an output that is changed in place later
    (autograd calls the hook with the gradient of the value at the time of registration).
    """
    room = slack(h.detach(), reference, nonnegative=nonnegative)
    kind = torch.finfo(room.dtype)
    below_zero = -kind.smallest_normal * kind.eps  # the largest negative number
    # Both select where a product would make NaN of 0 * inf. On CPUs the first, which takes the gradient where
    # room > below_zero, is faster than a mask of booleans; but not where numbers that small count as zero.
    if room.is_cpu and torch.tensor(below_zero, dtype=room.dtype) < 0:
        h.register_hook(lambda gradient: torch.ops.aten.threshold_backward(gradient, room, below_zero))
    else:
        closed = room < 0
        h.register_hook(lambda gradient: torch.where(closed, 0, gradient))


class _Interceptor(TorchFunctionMode):
    """Calls ``visit(name, output)`` for each activation call and knows while one is running."""

    def __init__(self, visit: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self.visit = visit
        self.inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = ACTIVATIONS.get(func)
        if name is None:
            return func(*args, **kwargs)
        if name == "hardtanh" and (kwargs.get("min_val"), kwargs.get("max_val")) == (0.0, 6.0):
            name = "relu6"  # nn.ReLU6 calls hardtanh
        self.inside = True
        try:
            if args and args[0]._is_view():
                return self._on_view(func, name, args, kwargs)
            output = func(*args, **kwargs)
        finally:
            self.inside = False
        self.visit(name, output)
        return output

    def _on_view(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """An in-place activation of a view changes its base, whose gradient never meets a gate on the view."""
        copy = args[0].clone()
        output = func(copy, *args[1:], **kwargs)
        self.visit(name, output)
        return args[0].copy_(output) if output is copy else output


class _Witness(TorchDispatchMode):
    """Counts activation operators that run outside the interceptor's calls."""

    def __init__(self, interceptor: _Interceptor) -> None:
        super().__init__()
        self.interceptor = interceptor
        self.missed: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.removesuffix("_")
        if name in OPERATORS and not self.interceptor.inside:
            self.missed[name] += 1
        return func(*args, **(kwargs or {}))


class DefendedCNN(nn.Module):
    """A frozen classifier whose gradient is gated after every nonlinearity.

    Usage::

        defended = DefendedCNN(network)
        defended.record(x)  # h(x), the range of every neuron
        logits = defended(e)  # the network's own logits; their gradient to e is gated
        with defended.undefended():
            logits = defended(e)  # the same network without gates

    Args:
        network: a classifier in eval mode; takes normalized images (B,3,H,W), returns logits (B,K).
        exempt: activations to leave without a gate, by name, e.g. ``["sigmoid"]``. What flows
            through them is not defended.

    Reference activations and gated pass must agree in batch size, precision and memory format:
    rounding differs otherwise, and a difference in the last bit closes a gate.
    """

    def __init__(self, network: nn.Module, *, exempt: Collection[str] = ()) -> None:
        super().__init__()
        unknown = sorted(set(exempt) - set(ACTIVATIONS.values()))
        if unknown:
            known = ", ".join(sorted(set(ACTIVATIONS.values())))
            raise InputError(f"Expected exempt to name activations among {known}, but got {unknown[0]!r}.")
        self.network = network
        self.exempt = frozenset(exempt)
        self.defended = True
        self.coverage = Coverage()
        self._references: list[tuple[str, Tensor | None]] | None = None
        self._verified: set[tuple[Any, ...]] = set()

    @torch.no_grad()
    def record(self, x: Tensor) -> Tensor:
        """Run the reference pass on ``x`` (B,3,H,W), keep h(x), and return the logits (B,K).

        Raises:
            UngatedActivationError: a nonlinearity ran that the container cannot gate.
        """
        self._verify(x)
        self._references = None
        references: list[tuple[str, Tensor | None]] = []
        self.coverage = Coverage()

        def visit(name: str, h: Tensor) -> None:
            gated = name not in self.exempt
            # A copy: the network may change its activation in place after the call.
            references.append((name, h.detach().clone() if gated else None))
            self.coverage.calls[name] += 1
            self.coverage.gated[name] += gated

        with _Interceptor(visit):
            logits: Tensor = self.network(x)
        self._references = references
        return logits

    def forward(self, e: Tensor) -> Tensor:
        """The network's logits (B,K) for ``e`` (B,3,H,W); their gradient to ``e`` is gated.

        Raises:
            RuntimeError: no reference pass, or one with other calls or shapes.
        """
        self.coverage = Coverage()
        if not self.defended:
            with _Interceptor(lambda name, h: self.coverage.calls.update([name])):
                undefended: Tensor = self.network(e)
            return undefended
        if self._references is None:
            raise RuntimeError("Expected record(x) before the gated pass, but there are no reference activations.")
        remaining = iter(self._references)

        def visit(name: str, h: Tensor) -> None:
            recorded, reference = next(remaining, ("nothing", None))
            if recorded != name or (reference is not None and reference.shape != h.shape):
                shape = "" if reference is None else f" of shape {tuple(reference.shape)}"
                raise RuntimeError(
                    f"Expected the calls of the reference pass, there {recorded}{shape}, but got {name} of shape "
                    f"{tuple(h.shape)}: record(x) must see the same batch size and take the same path."
                )
            self.coverage.calls[name] += 1
            self.coverage.gated[name] += reference is not None
            if reference is not None and h.requires_grad:
                gate(h, reference, nonnegative=name in NONNEGATIVE)

        with _Interceptor(visit):
            logits: Tensor = self.network(e)
        if (left := next(remaining, None)) is not None:
            raise RuntimeError(
                f"Expected {len(self._references)} nonlinearity calls as in the reference pass, but got "
                f"{self.coverage.calls.total()} ({left[0]} did not run): the network takes another path for e than x."
            )
        return logits

    @contextmanager
    def undefended(self) -> Iterator[DefendedCNN]:
        """Run the same network without gates inside this context."""
        before, self.defended = self.defended, False
        try:
            yield self
        finally:
            self.defended = before

    def _verify(self, x: Tensor) -> None:
        """Once for each input shape and type: does any activation operator escape the interceptor?"""
        key = (x.shape[1:], x.dtype, x.device, torch.is_autocast_enabled(x.device.type))
        if key in self._verified:
            return
        with _Interceptor(lambda name, h: None) as interceptor, _Witness(interceptor) as witness:
            self.network(x[:1])
        if missed := {name: n for name, n in witness.missed.items() if name not in self.exempt}:
            calls = ", ".join(f"{n} of {name}" for name, n in missed.items())
            raise UngatedActivationError(
                f"Expected every nonlinearity of {type(self.network).__name__} to be gated, but these calls cannot be "
                f"intercepted: {calls}. Write them with torch.nn or torch.nn.functional outside compiled or scripted "
                f"code, or list them as exempt: what flows through them is then not defended."
            )
        self._verified.add(key)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DefendedCNN:
        self._references = None  # of another device or type from now on
        super()._apply(fn, recurse)
        return self
