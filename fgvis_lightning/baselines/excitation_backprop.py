"""Excitation backprop (Zhang, Lin, Brandt, Shen and Sclaroff, ECCV 2016, sections 3.2 to 3.4).

A probability P starts at the target's logit and is passed down: a neuron i distributes its P to its inputs j in
proportion to ``max(a_j, 0) max(w_ij, 0)``, that is, by how much each input excites it. All rules preserve the sum of P,
except that P is lost at neurons without an excited input, whose activation comes from a bias. After depthwise
convolutions with few inputs, this can be most of P.

- *convolution, linear layer, average pooling*: as above. A batch normalization of the output, or a product of the
  output with a constant, becomes part of the weights, so a negative factor turns inhibition into excitation. If another
  operation uses the output as well, P passes the factor unchanged.
- *sum*: the same with weights 1, or by signed values. Subtracted values inhibit, and receive nothing.
- *maximum*: the winner receives all of P.
- *product*: the larger factor receives all of P, since the smaller one weighs whole channels or positions; of two
  factors of equal size, the one that is not the output of a bounded activation such as a sigmoid.
- *activation, normalization, constants*: a neuron passes P to the neuron that it is a function of.

While the network runs, a ``TorchFunctionMode`` wraps each function in a custom autograd function whose backward is the
rule. The results are the network's own, also in place, and the network is not changed. All other nodes of autograd's
graph must be operators whose outputs are copies of inputs, so that autograd passes P on unchanged; otherwise the
network is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.baselines.grad_cam import module_called
from fgvis_lightning.baselines.propagation import differentiable
from fgvis_lightning.baselines.winning_probability import COPIES, ExcitationRules, Linear, Pass, Sum, rule_of
from fgvis_lightning.defense.graph import kind
from fgvis_lightning.errors import InputError


def _below(node: Any) -> list[Any]:
    """The nodes that receive P from a node."""
    return [below for below, _ in node.next_functions[: 1 if rule_of(node) is Pass else None] if below is not None]


class _Pathways:
    """One pass of a network, with the positions of its modules' outputs in autograd's graph.

    Attributes:
        ends: position and shape of the last output of each module that returned a tensor that depends on the image, in
            order of completion.
    """

    def __init__(self, network: nn.Module, images: Tensor, signed: bool = False) -> None:
        self.name = type(network).__name__
        self.ends: dict[str, tuple[GradientEdge, torch.Size]] = {}
        names = {module: name for name, module in network.named_modules()}

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            self.ends.pop(names[module], None)
            if isinstance(output, Tensor) and output.requires_grad:
                # Store the edge, not the tensor, which may be changed in place.
                self.ends[names[module]] = get_gradient_edge(output), output.shape

        with ExitStack() as hooks, ExcitationRules(signed):
            for module in names:
                hooks.enter_context(module.register_forward_hook(note))
            leaf = images.detach().clone().requires_grad_()
            self.logits = network(leaf.clone())  # the network may change it in place
        self.source = get_gradient_edge(leaf).node
        if not self.logits.requires_grad or self.source not in (nodes := self._reached(lambda node: False)):
            raise InputError(
                f"Expected {self.name} to compute its logits from the image in a way that autograd can follow, but "
                f"there is no path between them. Omit excitation backprop."
            )
        unknown = {kind(node) for node in nodes if rule_of(node) not in (Linear, Sum, Pass)} - COPIES
        if unknown:
            raise InputError(
                f"Expected a CNN of operators with a rule for excitation backprop, but {self.name} also has "
                f"{', '.join(sorted(unknown))} between image and logits. Omit excitation backprop."
            )
        uses = Counter(below for node in nodes for below in _below(node))
        for node in nodes:
            if uses[node] > 1 and rule_of(node) is Linear:
                node.sign = None  # a factor of one use must not change the others

    def _reached(self, stop: Callable[[Any], bool]) -> set[Any]:
        """Nodes that P reaches from the logits, up to nodes for which ``stop`` is true."""
        found: set[Any] = set()
        todo: list[Any] = [get_gradient_edge(self.logits).node]
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo += [] if stop(node) else _below(node)
        return found

    def last_of_size(self, height: int, width: int) -> str:
        """The last module with maps of at least this size that all paths to the image pass."""
        for name, (edge, shape) in reversed(self.ends.items()):
            if name and len(shape) == 4 and shape[-2] >= height and shape[-1] >= width:
                reached = self._reached(lambda node, end=edge.node: node is end)  # type: ignore[misc]
                if edge.node in reached and self.source not in reached:
                    return name
        raise InputError(
            f"Expected {self.name} to have a module that all paths from its logits to the image pass, with maps of at "
            f"least {height}×{width}, but it has none. Set layer to the name of a module."
        )

    def probability(self, targets: Tensor, name: str, contrastive: bool) -> Tensor:
        """P at the output of the module with this name."""
        for node in self._reached(top := lambda node: rule_of(node) is Linear and node.weight is not None):
            if top(node):
                node.contrast = contrastive
        if name not in self.ends:
            raise InputError(
                f"Expected layer to be a module of {self.name} that returns one tensor that depends on the image, "
                f"but {name!r} does not. Choose another layer."
            )
        edge, shape = self.ends[name]
        start = torch.zeros_like(self.logits).scatter_(1, targets[:, None], 1)
        (p,) = torch.autograd.grad(self.logits, [edge], start, allow_unused=True)
        return start.new_zeros(shape) if p is None else p


@dataclass(frozen=True)
class ExcitationBackprop(Method):
    """``max(Σ_k P_k, 0)`` of the maps k of one layer, upsampled; for P, see the module's docstring.

    Args:
        layer: name of the module at whose output P is taken. Default: the last completed module that all P passes, with
            maps of at least 1/16 of the image's height and width, such as ``layer3`` of a ResNet or ``features.29``
            (the last ReLU) of VGG16. The authors use the fourth pooling of VGG16, ``features.23``, and the second of
            GoogLeNet, ``maxpool2``, in torchvision's names.
        contrastive: c-MWP, section 3.4: subtract the P of a neuron with opposite weights in the topmost layer. Without
            it, maps also show parts that excite all classes.
        signed_sums: whether the two parts of a sum, as in a residual block, share P by their values (one share may be
            negative and the other above 1) or by their positive parts, as in the paper. Signed sums give TorchRay's
            maps for ResNets. Maps of the two rules correlate by 0.58 to 0.91 for ResNet18s with random weights.

    Pixels that are negative after normalization do not excite, so interpret P at the image with care.
    """

    layer: str | None = None
    contrastive: bool = True
    signed_sums: bool = False

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.layer is not None:
            module_called(network, self.layer)
        with differentiable(network, images):
            pathways = _Pathways(network, images, self.signed_sums)
            layer = self.layer or pathways.last_of_size(-(-height // 16), -(-width // 16))
            p = pathways.probability(targets, layer, self.contrastive)
        if p.ndim != 4:
            raise InputError(
                f"Expected layer to be a module that returns maps (B,C,H,W), but {layer!r} returns "
                f"{tuple(p.shape)}. Choose another layer."
            )
        attention = p.sum(1, keepdim=True).clamp(min=0).float()
        return F.interpolate(attention, (height, width), mode="bilinear", align_corners=False)[:, 0]
