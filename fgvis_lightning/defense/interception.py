"""Intercepts activation calls while a network runs: functions, methods, and modules that count as one call.

A ``TorchFunctionMode`` sees every Python call of a torch function or tensor method, wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from fgvis_lightning.defense.audit import Modules
from fgvis_lightning.defense.graph import Boundary, Edge, edges_of, kind
from fgvis_lightning.defense.nonlinearities import JOINING, KINDS, REDUCTIONS, Functions
from fgvis_lightning.defense.selection import Selection
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.outputs import tensors_in

HARMLESS = frozenset(
    {"copy_", "requires_grad_", "squeeze_", "unsqueeze_", "transpose_", "t_", "swapaxes_", "swapdims_", "as_strided_"}
)
"""Functions whose names look like those of changes, but that change no value, or nothing but a copy."""

WEIGHTED = frozenset({torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose2d, F.linear})
"""Functions whose second argument is a weight that autocast casts."""


SCALINGS = frozenset({"Mul", "Div", "ToCopy", "View", "UnsafeView", "ReshapeAlias"})
"""Nodes of autograd's graph that may stand between a stack and a sum over it."""


class Interceptor(TorchFunctionMode):
    """Calls ``visit(name, output)`` after each call of a function and of a module that counts as one.

    Args:
        functions: the functions, and their names.
        units: the modules, and their names.
        visit: called with the output of each call.
        replace: called before each call of a function of one tensor, with the function's name, the tensor, and whether
            the call is in place. Its result, unless None, replaces the call's output, and is not visited.
        cast: maps a weight to the weight that convolutions and linear layers use instead.
    """

    def __init__(
        self,
        functions: Functions,
        units: Mapping[nn.Module, str],
        visit: Callable[[str, Tensor], None],
        replace: Callable[[str, Tensor, bool], Tensor | None] | None = None,
        cast: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.functions = functions
        self.units = units
        self.visit = visit
        self.replace = replace
        self.cast = cast
        self.depth = 0  # number of intercepted calls in progress
        self._hooks = ExitStack()

    def __enter__(self) -> Interceptor:
        for module, name in self.units.items():
            before = module.register_forward_pre_hook(self._before_unit, prepend=True, with_kwargs=True)
            self._hooks.callback(before.remove)
            self._hooks.callback(module.register_forward_hook(self._after_unit(name)).remove)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._hooks.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not args and "input" in kwargs:  # torch's name of the first argument
            args, kwargs = (kwargs["input"],), {key: value for key, value in kwargs.items() if key != "input"}
        name = None if self.depth else self.functions.get(func)
        if name is None or (name in JOINING and not _joins(func, args, kwargs)):
            return self.other(func, args, kwargs)
        if name == "hardtanh" and (kwargs.get("min_val"), kwargs.get("max_val")) == (0.0, 6.0):
            name = "relu6"  # nn.ReLU6 calls hardtanh
        if self.replace is not None and args and isinstance(args[0], Tensor) and not args[0]._is_view():
            self.depth += 1
            try:
                output = self.replace(name, args[0], _is_in_place(func, args, kwargs))
            finally:
                self.depth -= 1
            if output is not None:
                return output
        self.before((*args, *kwargs.values()))
        # The base's gradient would bypass a gate on the view.
        view, args = _without_changed_view(func, args, kwargs)
        try:
            output = func(*args, **kwargs)
        except BaseException:  # the network may catch it
            self.depth -= 1
            raise
        self.after(name, output)
        return view.copy_(output) if view is not None and output is args[0] else output

    def _before_unit(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.depth:
            self.depth += 1
        else:
            self.before((*inputs, *named.values()))

    def _after_unit(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self.depth > 1:
                self.depth -= 1
            else:
                self.after(name, output)

        return hook

    def before(self, inputs: tuple[Any, ...]) -> None:
        self.depth += 1

    def after(self, name: str, output: Any) -> None:
        tensors = list(tensors_in(output))
        if not tensors:
            raise InputError(f"Expected {name} to return tensors, but got {type(output).__name__}.")
        for tensor in tensors:  # depth is still positive, so that calls in visit() are not intercepted
            self.visit(name, tensor)
        self.depth -= 1

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self.cast is not None and func in WEIGHTED and len(args) > 1 and isinstance(args[1], Tensor):
            args = (args[0], self.cast(args[1]), *args[2:])
        return func(*args, **kwargs)


def _is_in_place(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call changes its first tensor; operators such as ``*=`` arrive as ``mul_``."""
    name = func.__name__
    named = name.endswith("_") and not name.startswith("__") and name not in HARMLESS
    return named or kwargs.get("inplace", args[-1]) is True


def _without_changed_view(func: Any, args: Any, kwargs: Any) -> tuple[Tensor | None, Any]:
    """The view that a call would change, which also changes its base, and the arguments with a copy in its place."""
    view = args[0] if args and isinstance(args[0], Tensor) and args[0]._is_view() else None
    if view is None or not _is_in_place(func, args, kwargs):
        return None, args
    return view, (view.clone(), *args[1:])


def _joins(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether two or more of the tensors depend on the image; the others are frozen and require no gradient."""
    if func.__name__ in REDUCTIONS:
        dims = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
        return _adds_branches(args[0], dims if isinstance(dims, tuple | list) else () if dims is None else (dims,))
    return sum(tensor.requires_grad for tensor in tensors_in((*args, *kwargs.values()))) > 1


def _adds_branches(x: Tensor, dims: Sequence[int]) -> bool:
    """Whether a sum over ``dims``, all if empty, adds tensors that depend on the image, joined by ``stack`` or ``cat``.

    Tensors joined by ``cat`` are added if each becomes one place of a dimension, at once or in a view. In between, they
    may be multiplied by constants.
    """
    node: Any = x.grad_fn
    while node is not None and kind(node) in SCALINGS:
        sources = [source for source, _ in node.next_functions if source is not None]
        node = sources[0] if len(sources) == 1 else None
    if node is None or kind(node) not in ("Stack", "Cat"):
        return False
    joined, shape = [source for source, _ in node.next_functions], node._input_metadata[0].shape
    unsigned = node._saved_dim  # also for -1
    dim = (unsigned - 2**64 if unsigned >= 2**63 else unsigned) % len(shape)
    summed = not dims or dim in {one % x.ndim for one in dims}
    return summed and x.shape[: dim + 1] == (*shape[:dim], len(joined)) and len(joined) - joined.count(None) > 1


class Surveyor(Interceptor):
    """An interceptor that also records the position of each call in autograd's graph, and the running module."""

    def __init__(self, *args: Any, modules: Modules, selection: Selection) -> None:
        super().__init__(*args)
        self.modules = modules
        self.selection = selection
        self.boundaries: dict[Edge, Boundary] = {}
        self.places: dict[Node, str] = {}
        self._inputs: list[Edge] = []

    def before(self, inputs: tuple[Any, ...]) -> None:
        self._inputs = edges_of(inputs)
        super().before(inputs)

    def after(self, name: str, output: Any) -> None:
        super().after(name, output)
        reason = name if self.selection.passes(name) else "exempt" if name in self.selection.exempt else ""
        for edge in edges_of([output]):
            if edge not in self._inputs:
                self.boundaries[edge] = Boundary(self._inputs, not reason, reason, name not in KINDS)

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        # In the graph of a change of a view, CopySlices would hide the operation.
        view, args = _without_changed_view(func, args, kwargs)
        output = super().other(func, args, kwargs)
        output = view.copy_(output) if view is not None and output is args[0] else output
        for node, _ in edges_of([output]):
            self.places.setdefault(node, self.modules.running())
        return output
