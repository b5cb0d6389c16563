"""Slow, obvious versions of what the package computes, in float64 and without autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_networks import Plain, Residual

# name → (module, f(z), f'(z)), each from its definition
ACTIVATIONS: dict[str, tuple[nn.Module, Callable[[float], float], Callable[[float], float]]] = {
    "relu": (nn.ReLU(), lambda z: max(z, 0.0), lambda z: float(z > 0)),
    "relu6": (nn.ReLU6(), lambda z: min(max(z, 0.0), 6.0), lambda z: float(0 < z < 6)),
    "leaky_relu": (nn.LeakyReLU(0.1), lambda z: z if z > 0 else 0.1 * z, lambda z: 1.0 if z > 0 else 0.1),
    "elu": (nn.ELU(), lambda z: z if z > 0 else math.expm1(z), lambda z: 1.0 if z > 0 else math.exp(z)),
    "tanh": (nn.Tanh(), math.tanh, lambda z: 1 - math.tanh(z) ** 2),
    "silu": (
        nn.SiLU(),
        lambda z: z / (1 + math.exp(-z)),
        lambda z: (1 + math.exp(-z) * (1 + z)) / (1 + math.exp(-z)) ** 2,
    ),
    "gelu": (
        nn.GELU(),
        lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
        lambda z: (1 + math.erf(z / math.sqrt(2))) / 2 + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi),
    ),
}


def each(f: Callable[[float], float], z: Tensor) -> Tensor:
    """``f`` of every element, one by one."""
    return torch.tensor([f(value) for value in z.flatten().tolist()], dtype=torch.float64).reshape(z.shape)


def strict(g: float, h: float, reference: float) -> bool:
    """The paper's two indicators."""
    return min(0.0, reference) <= h <= max(0.0, reference)


def restoring(g: float, h: float, reference: float) -> bool:
    """Above its range a neuron may go down, which it does by a step against a positive gradient; below it, up."""
    if h > max(0.0, reference):
        return not g < 0
    if h < min(0.0, reference):
        return not g > 0
    return True


# name → whether gradient g passes a neuron
RULES: dict[str, Callable[[float, float, float], bool]] = {"strict": strict, "restoring": restoring}


def gated(gradient: Tensor, h: Tensor, reference: Tensor, rule: str = "strict") -> Tensor:
    """A rule's gate, neuron by neuron."""
    numbers = (part.flatten().tolist() for part in (gradient, h, reference))
    passed = [each[0] if RULES[rule](*each) else 0.0 for each in zip(*numbers, strict=True)]
    return torch.tensor(passed, dtype=torch.float64).reshape(h.shape)


def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    assert layer.bias is not None
    return F.conv2d(x, layer.weight.detach(), layer.bias.detach(), padding=1)


def conv_backward(layer: nn.Conv2d, gradient: Tensor) -> Tensor:
    """The adjoint of a 3×3 convolution with padding 1."""
    return F.conv_transpose2d(gradient, layer.weight.detach(), padding=1)


def plain_gradient(network: Plain, activation: str, x: Tensor, e: Tensor, target: int, rule: str = "strict") -> Tensor:
    """Gated gradient of one logit of `Plain` at e, with h(x) as the reference activations."""
    _, f, slope = ACTIVATIONS[activation]

    def forward(image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z1 = conv(network.conv1, image)
        h1 = each(f, z1)
        z2 = conv(network.conv2, h1)
        return z1, h1, z2, each(f, z2)

    _, reference1, _, reference2 = forward(x)
    z1, h1, z2, h2 = forward(e)
    gradient = network.head.weight.detach()[target].reshape(1, *h2.shape[1:]).expand_as(h2)
    gradient = gated(gradient, h2, reference2, rule) * each(slope, z2)
    gradient = conv_backward(network.conv2, gradient)
    gradient = gated(gradient, h1, reference1, rule) * each(slope, z1)
    return conv_backward(network.conv1, gradient)


def residual_gradient(network: Residual, x: Tensor, e: Tensor, target: int, rule: str = "strict") -> Tensor:
    """Gated gradient of one logit of `Residual` at e, with h(x) as the reference activations."""

    def forward(image: Tensor) -> list[Tensor]:
        skip = conv(network.conv1, image).clamp(min=0)
        middle = conv(network.conv2, skip).clamp(min=0)
        return [skip, middle, (conv(network.conv3, middle) + skip).clamp(min=0)]

    references, (skip, middle, last) = forward(x), forward(e)
    gradient = network.head.weight.detach()[target].reshape(1, *last.shape[1:]).expand_as(last)
    summed = gated(gradient, last, references[2], rule) * (last > 0)
    at_middle = gated(conv_backward(network.conv3, summed), middle, references[1], rule) * (middle > 0)
    at_skip = gated(summed + conv_backward(network.conv2, at_middle), skip, references[0], rule) * (skip > 0)
    return conv_backward(network.conv1, at_skip)


class _Outputs(TorchDispatchMode):
    """Keeps the outputs of activation operators in the order in which the dispatcher sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__.removesuffix("_") in NODES:
            self.outputs.append(output.detach().clone())
        return output


# operator → node of autograd's graph
NODES = {
    "relu": "Relu",
    "hardtanh": "Hardtanh",
    "sigmoid": "Sigmoid",
    "hardsigmoid": "Hardsigmoid",
    "hardswish": "Hardswish",
    "leaky_relu": "LeakyRelu",
    "silu": "Silu",
    "gelu": "Gelu",
    "tanh": "Tanh",
}


def graph_gradient(network: nn.Module, x: Tensor, e: Tensor, target: int) -> tuple[Tensor, int]:
    """Gated gradient of one logit at e, by hooks on the nodes of autograd's graph; and the number of gates.

    Shares nothing with the package: activations are found by the dispatcher, and gated where autograd
    computes them, paired by the order in which both were made.
    """
    with _Outputs() as reference:
        network(x.clone())
    e = e.clone().requires_grad_()
    with _Outputs() as here:
        logits = network(e)
    found, todo = set(), [logits.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [below for below, _ in node.next_functions]
    gates = [node for node in found if node.name().split("Backward")[0] in NODES.values()]
    gates.sort(key=lambda node: node._sequence_nr())
    for node, h, limit in zip(gates, here.outputs, reference.outputs, strict=True):
        passed = (h <= limit.clamp(min=0)) & (h >= limit.clamp(max=0))
        node.register_prehook(lambda gradients, passed=passed: (gradients[0] * passed,))
    return torch.autograd.grad(logits[:, target].sum(), e)[0], len(gates)


def rise_aucs(network: nn.Module, x: Tensor, saliency: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """RISE's deletion and insertion AUC (B,), one image at a time, all of its pictures at once.

    8 W pixels more in each step; deletion to zero, insertion from the blurred image.
    """
    blurred = F.conv2d(x, rise_kernel().to(x).expand(3, 1, -1, -1), padding=5, groups=3)
    start, finish = (x, blurred), (torch.zeros_like(x), x)
    deletion, insertion = (
        torch.stack([_auc(network, *each) for each in zip(saliency, a, b, targets, strict=True)])
        for a, b in zip(start, finish, strict=True)
    )
    return deletion, insertion


def _auc(network: nn.Module, saliency: Tensor, start: Tensor, finish: Tensor, target: Tensor) -> Tensor:
    height, width = saliency.shape
    place = saliency.flatten().argsort(descending=True, stable=True).argsort().view(height, width)
    changed = torch.arange(-(-height // 8) + 1)[:, None, None, None] * 8 * width
    scores = network(torch.where(place < changed, finish, start)).softmax(1)[:, target]
    return (scores.sum() - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)


def rise_kernel() -> Tensor:
    """RISE's kernel (11,11): a point under scipy's Gaussian filter with σ = 5, which mirrors what leaves the square."""
    point = torch.zeros(11).index_fill(0, torch.tensor(5), 1)
    mirrored = torch.cat([point] * 5)[2:-2]  # a point in the middle is its own mirror image
    gaussian = torch.exp(-(torch.arange(-20, 21) ** 2) / 50)
    line = F.conv1d(mirrored[None, None], (gaussian / gaussian.sum())[None, None]).flatten()
    return line.outer(line)
