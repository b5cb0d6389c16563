"""The two checks that no nonlinearity escapes the gates.

1. *As the dispatcher sees it* (`Witness`): activation operators that run outside an intercepted call;
   comparisons, which autograd takes for constants; random numbers.
2. *As autograd sees it* (`inspect`): every node between the logits and the image must be gated, linear, or
   one of those that are left without a gate by design (`fgvis_lightning.defense.nonlinearities`). This is the graph
   that the gradient will flow through, so it also shows what no interceptor and no dispatcher sees:
   activations in other threads, custom autograd functions, reentrant checkpoints, scripted code.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointFunction

from fgvis_lightning.defense.nonlinearities import EXEMPT, LINEAR, LINEAR_FUNCTIONS, OPERATORS, PRODUCTS, STEPS

Edge = tuple[Node, int]
Found = Counter[tuple[str, str]]
"""Counts of findings: {(name, path of the module): count}."""


class Modules:
    """Says which module of a network is running, from the Python stack, without hooks."""

    def __init__(self, network: nn.Module) -> None:
        self._paths = {id(module): path for path, module in network.named_modules()}

    def running(self) -> str:
        """Path of the innermost module of the network that is running; empty for the network itself."""
        frame = sys._getframe(1)
        while frame is not None:
            path = self._paths.get(id(frame.f_locals.get("self")))
            if path is not None:
                return path
            frame = frame.f_back  # type: ignore[assignment]
        return ""


class Witness(TorchDispatchMode):
    """Counts what the dispatcher sees of one pass.

    Args:
        modules: of the network.
        within: whether an intercepted call is running.

    Attributes:
        operators: activation operators, by name.
        missed: those that ran outside an intercepted call.
        steps: comparisons of values that depend on the image, element by element.
        random: operators that draw random numbers.
    """

    def __init__(self, modules: Modules, within: Callable[[], bool]) -> None:
        super().__init__()
        self.modules = modules
        self.within = within
        self.operators: Counter[str] = Counter()
        self.missed: Found = Counter()
        self.steps: Found = Counter()
        self.random: Found = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.removesuffix("_")
        output = func(*args, **(kwargs or {}))
        if name in OPERATORS:
            self.operators[name] += 1
            if not self.within():
                self.missed[name, self.modules.running()] += 1
        elif (
            name in STEPS and not self.within() and _depends(args) and isinstance(output, Tensor) and output.numel() > 1
        ):
            self.steps[name, self.modules.running()] += 1
        if torch.Tag.nondeterministic_seeded in func.tags and not _idle(func, args, kwargs or {}):
            self.random[name, self.modules.running()] += 1
        return output


def _depends(args: Any) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad for value in args)


def _idle(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator that can draw random numbers draws none: dropout of nothing, or not in training."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name in {"dropout_p", "training", "train"}:
            given = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
            return not given
    return False


@dataclass
class Boundary:
    """An intercepted call in autograd's graph.

    Attributes:
        inputs: what its output was computed from.
        gated: whether it has a gate.
        kind: why not, if not.
        elementwise: whether it is an activation.
    """

    inputs: list[Edge]
    gated: bool
    kind: str
    elementwise: bool


@dataclass
class Findings:
    """Findings of `inspect` between the logits and the image.

    Attributes:
        problems: nonlinearities that are not gated and not known.
        exempt: what is without a gate by design, by kind.
        gate_free: whether some path meets no gate.
        convolutions: of values that depend on the image.
        reached: whether there is a path at all.
    """

    problems: Found = field(default_factory=Counter)
    exempt: Counter[str] = field(default_factory=Counter)
    gate_free: bool = False
    convolutions: int = 0
    reached: bool = False


def edges_of(values: Iterable[Any]) -> list[Edge]:
    """Positions in autograd's graph of the tensors among ``values``, also in lists and mappings."""
    edges: list[Edge] = []
    if not torch.is_grad_enabled():  # tensors that custom autograd functions make in their own forward
        return edges
    for value in values:
        if isinstance(value, Tensor):
            if value.requires_grad:
                edge = get_gradient_edge(value)
                edges.append((edge.node, edge.output_nr))
        elif isinstance(value, list | tuple | Mapping):
            edges += edges_of(value.values() if isinstance(value, Mapping) else value)
    return edges


def inspect(
    logits: Tensor,
    image: Tensor,
    boundaries: Mapping[Edge, Boundary],
    places: Mapping[Node, str],
    exempt: frozenset[str],
    exempt_functions: tuple[type, ...],
) -> Findings:
    """Judge every node of autograd's graph between ``logits`` and ``image``.

    Args:
        logits: output of a gated pass.
        image: its input, which requires a gradient.
        boundaries: intercepted calls, by the edge of their output.
        places: which module was running, for the nodes where that is known.
        exempt: names of operators that the user exempts.
        exempt_functions: custom autograd functions that the user exempts.
    """
    (source,) = edges_of([image])
    found = Findings()
    if not logits.requires_grad:
        return found
    (sink,) = edges_of([logits])

    def inputs(edge: Edge) -> list[Edge | None]:
        if edge == source:
            return []
        if (boundary := boundaries.get(edge)) is not None:
            return [*boundary.inputs]
        return [(node, number) if node is not None else None for node, number in edge[0].next_functions]

    # For each edge whether it leads to the image, and whether without a gate. Depth first, without recursion.
    state: dict[Edge, tuple[bool, bool]] = {}
    stack = [sink]
    while stack:
        edge = stack[-1]
        below = [below for below in inputs(edge) if below is not None]
        todo = [other for other in below if other not in state]
        if edge not in state and todo:
            stack += todo
            continue
        stack.pop()
        boundary = boundaries.get(edge)
        open_way = boundary is None or not boundary.gated
        leads = edge == source or any(state[other][0] for other in below)
        free = edge == source or (open_way and any(state[other][1] for other in below))
        state[edge] = leads, free

    found.reached, found.gate_free = state[sink]
    judged = set()
    for edge, (leads, _) in state.items():
        node = edge[0]
        if not leads or edge == source:
            continue
        if (boundary := boundaries.get(edge)) is not None:
            if not boundary.gated:
                found.exempt[boundary.kind] += 1
            continue
        if node in judged:  # a node with several outputs
            continue
        judged.add(node)
        found.convolutions += "Conv" in kind(node)
        depends = [other is not None and state[other][0] for other in inputs(edge)]
        if (problem := _judge(node, depends, found, exempt, exempt_functions)) is None:
            continue
        found.problems[problem, places.get(node, "")] += 1
    if "mul" not in exempt:
        for node in _handwritten(state, boundaries, inputs):
            found.problems["mul of a tensor with a function of itself", places.get(node, "")] += 1
    return found


def kind(node: Node) -> str:
    """``Hardtanh`` of ``HardtanhBackward0``."""
    return re.sub(r"Backwards?\d*$", "", node.name().rpartition("::")[2])


def operator(name: str) -> str:
    """``linalg_vector_norm`` of ``LinalgVectorNorm``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name).lower()


def _judge(
    node: Node, depends: list[bool], found: Findings, exempt: frozenset[str], functions: tuple[type, ...]
) -> str | None:
    """What is wrong with a node that leads to the image, if anything. ``depends``: which inputs do."""
    name = kind(node)
    function = getattr(type(node), "_forward_cls", None)
    if function is not None and function is not BackwardHookFunction:
        # Before all names: a custom function may have any.
        if issubclass(function, functions):
            found.exempt["exempt"] += 1
            return None
        if function.__module__ == "torch._library.autograd" and function.__name__ in LINEAR_FUNCTIONS:
            return None
        if function is CheckpointFunction:
            return "a reentrant checkpoint (give checkpoint use_reentrant=False)"
        if name.startswith("CompiledFunction"):
            return "compiled code (give the network that was compiled)"
        return f"the custom autograd function {function.__module__}.{function.__qualname__}"
    if name in EXEMPT or name.startswith("ScaledDotProduct"):
        found.exempt[EXEMPT.get(name, "attention")] += 1
        return None
    if name in PRODUCTS and sum(depends[PRODUCTS[name] :][:2]) > 1:
        found.exempt["product"] += 1
        return None
    if name in LINEAR and not (name == "Div" and len(depends) > 1 and depends[1]):
        return None
    if operator(name) in exempt:
        found.exempt["exempt"] += 1
        return None
    if name == "DifferentiableGraph":
        return "scripted code (give the module that was scripted)"
    return f"{operator(name)} by values that depend on the image" if name == "Div" else operator(name)


ELEMENTWISE = frozenset({"Add", "Sub", "Rsub", "Neg", "Mul", "Div", "ToCopy", "Clone", "Alias"})


def _handwritten(
    state: Mapping[Edge, tuple[bool, bool]],
    boundaries: Mapping[Edge, Boundary],
    inputs: Callable[[Edge], list[Edge | None]],
) -> Iterator[Node]:
    """Products of a tensor with a function of itself, neuron by neuron, such as ``x * sigmoid(x)`` and ``x * x``."""

    def leading(edge: Edge) -> list[Edge]:
        return [other for other in inputs(edge) if other is not None and state[other][0]]

    def sources(edge: Edge) -> set[Edge]:
        """The edge, and what it is an elementwise function of."""
        found = {edge}
        while True:
            boundary = boundaries.get(edge)
            elementwise = boundary.elementwise if boundary is not None else kind(edge[0]) in ELEMENTWISE
            before = set(leading(edge))
            if not elementwise or len(before) != 1:
                return found
            (edge,) = before
            found.add(edge)

    for edge, (leads, _) in state.items():
        if leads and edge not in boundaries and kind(edge[0]) == "Mul":
            factors = leading(edge)
            if len(factors) == 2 and sources(factors[0]) & sources(factors[1]):
                yield edge[0]
