"""Excitation backprop (Zhang, Lin, Brandt, Shen and Sclaroff, ECCV 2016, sections 3.2 to 3.4).

A probability P starts at the target's logit and is handed down: a neuron i gives its share to each of its inputs j in
proportion to ``max(a_j, 0) max(w_ij, 0)``, by how much each excites it. Every rule here keeps the sum of P, but that
of a neuron without an excited input is lost: such a neuron owes its activation to a bias. After depthwise
convolutions, with their few inputs, that can be most of P.

- *convolution, linear layer, average pooling*: as above. A batch normalization, or a product with a constant, of just
  that output belongs to its weights: where it is negative, inhibition excites. If something else uses the output too,
  P passes the factor unchanged.
- *sum*: the same with weights 1, or by signed values. What is subtracted inhibits, and gets nothing.
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
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.baselines.layers import module_called
from fgvis_lightning.baselines.propagation import differentiable
from fgvis_lightning.baselines.winning_probability import COPIES, ExcitationRules, Linear, Pass, Sum, rule_of
from fgvis_lightning.defense.graph import kind
from fgvis_lightning.errors import InputError


def _below(node: Any) -> list[Any]:
    """The nodes that a node hands P to."""
    return [below for below, _ in node.next_functions[: 1 if rule_of(node) is Pass else None] if below is not None]


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


class _Pathways:
    """One pass of a network, and where in autograd's graph its modules' outputs are.

    Attributes:
        ends: of each module that returned a tensor that depends on the image, where its last call's output is, and its
            shape; in the order in which they were done.
    """

    def __init__(self, network: nn.Module, images: Tensor, signed: bool = False) -> None:
        self.name = type(network).__name__
        self.ends: dict[str, tuple[GradientEdge, torch.Size]] = {}
        with ExitStack() as stack, ExcitationRules(signed):
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
        unknown = {kind(node) for node in nodes if rule_of(node) not in (Linear, Sum, Pass)} - COPIES
        if unknown:
            raise InputError(
                f"Expected a CNN of operators that excitation backprop has a rule for, but {self.name} has also "
                f"{', '.join(sorted(unknown))} between image and logits. Leave excitation backprop out."
            )
        uses = Counter(below for node in nodes for below in _below(node))
        for node in nodes:
            if uses[node] > 1 and rule_of(node) is Linear:
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
        for node in self._reached(top := lambda node: rule_of(node) is Linear and node.weight is not None):
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


def marginal_winning_probability(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    modules: Iterable[str],
    contrastive: bool = False,
    signed: bool = False,
) -> dict[str, Tensor]:
    """Compute the share of the target's probability that each neuron receives.

    Args:
        network: a classifier in eval mode.
        images: normalized (B,3,H,W).
        targets: class indices (B,).
        modules: names of the modules at whose outputs to tell P; that of a module that runs several times is its last.
        contrastive: whether to subtract the P of a neuron that has the topmost layer's weights with the opposite sign.
        signed: whether sums share P by signed values, see `ExcitationBackprop`.

    Returns:
        P by module, each in the shape of its output. Those of one image at one layer sum to at most 1; contrastive
        P may be negative.

    Raises:
        InputError: if there is no such module, or no rule for an operator.
    """
    names = list(modules)
    for name in names:
        module_called(network, name)
    with differentiable(network, images):
        return _Pathways(network, images, signed).probability(targets, names, contrastive)


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
        signed_sums: whether the two parts of a sum, as in a residual block, share P by their values, one of which may
            be negative and its share above 1, or by what is positive of them, as the paper's excitation says. With it
            the maps of a ResNet are TorchRay's; maps of ResNet18s with random weights by the two rules correlate by
            0.58 to 0.91.

    Nothing excites through a pixel that is negative after normalization: take P at the image with care.
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
            p = pathways.probability(targets, [layer], self.contrastive)[layer]
        if p.ndim != 4:
            raise InputError(
                f"Expected layer to be a module that returns maps (B,C,H,W), but {layer!r} returns "
                f"{tuple(p.shape)}. Name another one."
            )
        attention = p.sum(1, keepdim=True).clamp(min=0).float()
        return F.interpolate(attention, (height, width), mode="bilinear", align_corners=False)[:, 0]
