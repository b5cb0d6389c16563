"""Layer-wise relevance propagation (Bach et al., PLoS ONE 2015), with suitable rules for each layer of a CNN.

While the network runs, each function gets its rule as its gradient. The backward pass propagates relevance *divided by
the value* of the neuron. Linear operations, including sums of a residual stream, therefore need no rule: the gradient
distributes relevance in proportion to the parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.baselines.propagation import Call, Rules, differentiable
from fgvis_lightning.baselines.winning_probability import GATES, PRODUCTS, WEIGHTED, signal_of
from fgvis_lightning.defense.nonlinearities import ACTIVATIONS, table
from fgvis_lightning.networks.folding import folded


def _over(relevance: Tensor, value: Tensor, epsilon: float) -> Tensor:
    """Relevance divided by a value that is kept away from 0."""
    return relevance / (value + epsilon * torch.where(value < 0, -1.0, 1.0).to(value))


class _Weighted(Function):
    """A convolution or linear layer, with one of three rules: ``flat``, ``plus`` or ``epsilon``."""

    @staticmethod
    def forward(ctx: Any, call: Call, rule: str, epsilon: float, x: Tensor) -> Tensor:
        ctx.rule, ctx.epsilon, ctx.mixes, ctx.call = rule, epsilon, True, call
        y: Tensor = call()
        ctx.values = x.detach().clone(), y.detach().clone()  # copies, since both may be changed in place later
        return y

    @staticmethod
    def backward(ctx: Any, passed: Tensor) -> tuple[None, None, None, Tensor]:
        x, y = ctx.values
        weight, bias = ctx.call.argument(1, "weight").detach(), ctx.call.argument(2, "bias")

        def layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return ctx.call.function(x, weight, bias, *ctx.call.args[3:], **ctx.call.options)

        def down(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                return torch.autograd.grad(layer(leaf, weight, None), leaf, relevance)[0]

        relevance = passed * y
        if ctx.rule == "flat":
            ones = torch.ones_like(weight)
            return None, None, None, down(x, ones, _over(relevance, layer(torch.ones_like(x), ones, None), ctx.epsilon))
        if ctx.rule == "epsilon":
            return None, None, None, down(x, weight, _over(relevance, y, ctx.epsilon))
        positive, negative = weight.clamp(min=0), weight.clamp(max=0)
        bias = None if bias is None else bias.detach().clamp(min=0)
        excited = layer(x.clamp(min=0), positive, bias) + layer(x.clamp(max=0), negative, None)
        shares = _over(relevance, excited, ctx.epsilon)
        return None, None, None, torch.where(x < 0, down(x, negative, shares), down(x, positive, shares))


class _Activated(Function):
    """An activation, which passes relevance to its input."""

    @staticmethod
    def forward(ctx: Any, call: Call, gate: int, epsilon: float, x: Tensor) -> Tensor:
        ctx.gate, ctx.epsilon, before = gate, epsilon, x.detach().clone()
        y: Tensor = call()
        ctx.values = before, y.detach().clone()
        ctx.mark_dirty(*call.changed(y))
        return y

    @staticmethod
    def backward(ctx: Any, passed: Tensor) -> tuple[None, None, None, Tensor]:
        x, y = ctx.values
        return None, None, None, _over(passed * y, x, ctx.epsilon)


class _Signal(Function):
    """A product, which passes relevance to the factor that is not the gate."""

    @staticmethod
    def forward(ctx: Any, call: Call, signal: Tensor, gate: Tensor) -> Tensor:
        ctx.factor, ctx.shape = gate.detach().clone(), signal.shape
        y: Tensor = call()
        ctx.mark_dirty(*call.changed(y))
        return y

    @staticmethod
    def backward(ctx: Any, passed: Tensor) -> tuple[Tensor | None, ...]:
        return None, (passed * ctx.factor).sum_to_size(ctx.shape), None


class _Relevance(Rules):
    table = ACTIVATIONS | table(WEIGHTED | PRODUCTS)

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.first = True

    def apply(self, name: str, call: Call) -> Any:
        x = call.depending[0]
        if name in WEIGHTED:
            if x is not call.argument(0, "input") or len(call.depending) > 1:
                return call()
            rule = "flat" if self.first else "epsilon" if name == "linear" else "plus"
            self.first = False
            return _Weighted.apply(call, rule, self.epsilon, x)
        if name in PRODUCTS:
            signal = signal_of(*call.depending) if len(call.depending) == 2 else None
            if signal is None or call.depending[0] is call.depending[1]:
                return call()
            (gate,) = [factor for factor in call.depending if factor is not signal]
            return _Signal.apply(call, signal, gate)
        if len(call.depending) > 1 or x is not call.argument(0, "input") or name == "glu":
            return call()
        return _Activated.apply(call, GATES.get(name, 0), self.epsilon, x)


@dataclass(frozen=True)
class LRP(Method):
    """``Σ_c R_c``: the target's logit, propagated down layer by layer as relevance R.

    This is the composite recommended by Kohlbrenner et al. (IJCNN 2020, section II) with a flat lowest layer: linear
    layers use the ε rule, convolutions use α1β0 (a neuron's relevance goes to the inputs that excite it), and the
    lowest layer distributes relevance evenly over its inputs. Activations, averages and sums pass relevance on in
    proportion, a maximum passes it to its winner, and a product of two tensors to the factor that is not a gate (see
    `ExcitationBackprop`). Batch normalizations are folded into the convolutions if possible. Softmax, attention and
    other normalizations pass the derivative, since the rules are for CNNs.

    Args:
        epsilon: ε > 0, in units of the layers' outputs.
    """

    epsilon: float = 1e-6

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        with differentiable(network, images):
            leaf = images.clone().requires_grad_()
            plain, _ = folded(network, tuple(images.shape[1:]))
            with _Relevance(self.epsilon):
                logits = plain(leaf.clone())
            logit = logits.gather(1, targets[:, None]).sum()
            relevance = torch.autograd.grad(logit, leaf)[0]
        return relevance.sum(1).float()
