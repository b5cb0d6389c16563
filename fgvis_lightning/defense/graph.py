"""The second check that no nonlinearity escapes the gates: it inspects autograd's graph between logits and image.

Every node must be gated, linear, or exempt by design (`fgvis_lightning.defense.nonlinearities`). The gradient flows
through this graph, so it also shows operations that neither the interceptor nor the dispatcher sees: activations in
other threads, custom autograd functions, reentrant checkpoints, scripted code. It also shows layers without gates next
to them, see `inspect`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils.checkpoint import CheckpointFunction

from fgvis_lightning.defense.audit import Found
from fgvis_lightning.defense.nonlinearities import EXEMPT, LINEAR, LINEAR_FUNCTIONS, PRODUCTS
from fgvis_lightning.networks.outputs import tensors_in

Edge = tuple[Node, int]


WEIGHTED = frozenset({"Convolution", "Addmm", "Mm", "Linear", "Bmm", "Baddbmm"}) | {
    f"{backend}{layer}" for backend in ("Mkldnn", "Mps") for layer in ("Convolution", "Linear")
}
BARE = 3
"""Maximum number of weight layers between two gates: one out of a linear bottleneck, and two in the next one."""


@dataclass
class Boundary:
    """An intercepted call in autograd's graph.

    Attributes:
        inputs: edges of the inputs of the call.
        gated: whether the call has a gate.
        kind: the reason if it has none.
        elementwise: whether the call is an activation.
    """

    inputs: list[Edge]
    gated: bool
    kind: str
    elementwise: bool


@dataclass
class Findings:
    """Findings of `inspect` between the logits and the image.

    Attributes:
        problems: nonlinearities without a gate that are not known to be exempt.
        exempt: number of exempt nodes by kind.
        gate_free: whether a path has no gate, or more than `BARE` weight layers in a row without one.
        reached: whether there is a path at all.
    """

    problems: Found = field(default_factory=Counter)
    exempt: Counter[str] = field(default_factory=Counter)
    gate_free: bool = False
    reached: bool = False


def edges_of(values: Any) -> list[Edge]:
    """Positions in autograd's graph of the tensors among ``values``, also in collections."""
    if not torch.is_grad_enabled():  # tensors that custom autograd functions make in their own forward
        return []
    edges = [get_gradient_edge(tensor) for tensor in tensors_in(values) if tensor.requires_grad]
    return [(edge.node, edge.output_nr) for edge in edges]


def inspect(
    logits: Tensor,
    image: Tensor,
    boundaries: Mapping[Edge, Boundary],
    places: Mapping[Node, str],
    exempt: frozenset[str],
    exempt_functions: tuple[type, ...],
) -> Findings:
    """Check every node of autograd's graph between ``logits`` and ``image``.

    Args:
        logits: output of a gated pass.
        image: input of the pass, which requires a gradient.
        boundaries: intercepted calls, by the edge of their output.
        places: path of the running module for each node, if known.
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

    # For each edge: whether it leads to the image, whether it does so without a gate, and the maximum number of weight
    # layers before the image or the next gate. Depth first, without recursion.
    state: dict[Edge, tuple[bool, bool, int]] = {}
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
        layers = max((state[other][2] for other in below if state[other][0]), default=0) if open_way else 0
        weighted = boundary is None and edge != source and kind(edge[0]) in WEIGHTED
        weighted = weighted and sum(state[other][0] for other in below) == 1
        state[edge] = leads, free, layers + weighted

    found.reached, free, _ = state[sink]
    found.gate_free = free or any(leads and layers > BARE for leads, _, layers in state.values())
    judged = set()
    for edge, (leads, *_) in state.items():
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
        depends = [other is not None and state[other][0] for other in inputs(edge)]
        if (problem := _judge(node, depends, found, exempt, exempt_functions)) is not None:
            found.problems[problem, places.get(node, "")] += 1
    if "mul" not in exempt:
        for node in _handwritten(state, boundaries, inputs):
            found.problems["mul of a tensor with a function of itself", places.get(node, "")] += 1
    return found


def kind(node: Node) -> str:
    """``Hardtanh`` for ``HardtanhBackward0``."""
    return re.sub(r"Backwards?\d*$", "", node.name().rpartition("::")[2])


def operator(name: str) -> str:
    """``linalg_vector_norm`` for ``LinalgVectorNorm``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name).lower()


def _judge(
    node: Node, depends: list[bool], found: Findings, exempt: frozenset[str], functions: tuple[type, ...]
) -> str | None:
    """The problem with a node that leads to the image, or None. ``depends``: which inputs lead to the image."""
    name = kind(node)
    function = getattr(type(node), "_forward_cls", None)
    if function is not None and function is not BackwardHookFunction:
        # Before all checks of names, since a custom function may have any name.
        if issubclass(function, functions):
            found.exempt["exempt"] += 1
            return None
        if function.__module__ == "torch._library.autograd" and function.__name__ in LINEAR_FUNCTIONS:
            return None
        if function is CheckpointFunction:
            return "a reentrant checkpoint (call checkpoint with use_reentrant=False)"
        if name.startswith("CompiledFunction"):
            return "compiled code (pass the network before compilation)"
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
        return "scripted code (pass the module before scripting)"
    return f"{operator(name)} by values that depend on the image" if name == "Div" else operator(name)


ELEMENTWISE = frozenset(
    {"Add", "Sub", "Rsub", "Neg", "Mul", "Div", "ToCopy", "Clone", "Alias"}
    | {"View", "UnsafeView", "ReshapeAlias", "Permute", "Transpose", "Unsqueeze", "Squeeze"}
)
PARTS = frozenset({"Slice", "Select", "Split", "SplitWithSizes", "Unbind"})


def _handwritten(
    state: Mapping[Edge, tuple[bool, bool, int]],
    boundaries: Mapping[Edge, Boundary],
    inputs: Callable[[Edge], list[Edge | None]],
) -> Iterator[Node]:
    """Products of a tensor with a function of itself, neuron by neuron, such as ``x * sigmoid(x)`` and ``x * x``."""

    def leading(edge: Edge) -> list[Edge]:
        return [other for other in inputs(edge) if other is not None and state[other][0]]

    def sources(edge: Edge) -> set[tuple[Any, ...]]:
        """The edge, and the edges that it is an elementwise function of, with the part of their tensors that it is."""
        part: tuple[Any, ...] = ()
        found = {(edge, part)}
        while True:
            node, number = edge
            boundary, name = boundaries.get(edge), kind(node)
            elementwise = boundary.elementwise if boundary is not None else name in ELEMENTWISE | PARTS
            before = set(leading(edge))
            if not elementwise or len(before) != 1:
                return found
            if boundary is None and name in PARTS:
                part += name, number, *(getattr(node, saved) for saved in dir(node) if saved.startswith("_saved_"))
            (edge,) = before
            found.add((edge, part))

    for edge, (leads, *_) in state.items():
        if leads and edge not in boundaries and kind(edge[0]) in ("Mul", "Addcmul"):
            factors = leading(edge)[-2:]
            if len(factors) == 2 and sources(factors[0]) & sources(factors[1]):
                yield edge[0]
