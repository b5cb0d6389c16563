"""DeepLIFT (Shrikumar, Greenside and Kundaje, ICML 2017, sections 3.2 to 3.5.1): contributions to a difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.baselines.propagation import Call, Rules, differentiable
from fgvis_lightning.baselines.winning_probability import PRODUCTS
from fgvis_lightning.defense.nonlinearities import ACTIVATIONS, table

POOLS = frozenset({f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)} | {"amax"})
CLOSE = 1e-5
"""Relative difference below which a quotient of differences is mostly rounding, so the derivative is used instead."""


class _Rescaled(Function):
    """A nonlinearity with the rescale rule's multipliers; the second half of the batch contains the references."""

    @staticmethod
    def forward(ctx: Any, call: Call, pools: bool, x: Tensor) -> Tensor:
        ctx.call, ctx.pools, ctx.x = call, pools, x.detach().clone()
        y: Tensor = call()
        ctx.mark_dirty(*call.changed(y))
        return y

    @staticmethod
    def backward(ctx: Any, multiplier: Tensor) -> tuple[None, None, Tensor]:
        with torch.enable_grad():
            leaf = ctx.x.requires_grad_()
            y = ctx.call.at(leaf)
        (x, x0), (value, value0) = leaf.detach().chunk(2), y.detach().chunk(2)
        change, passed = x - x0, multiplier.chunk(2)[0]
        known = change.abs() > CLOSE * torch.maximum(x.abs(), x0.abs())
        change = change.where(known, 1)
        if ctx.pools:  # the larger of the two maxima contributes, at its own position
            risen = (value - value0) * passed
            parts = torch.cat([risen.where(value >= value0, 0), risen.where(value < value0, 0)])
            at, at0 = torch.autograd.grad(y, leaf, parts)[0].chunk(2)
            found = ((at + at0) / change).where(known, 0)
        else:
            derivative = torch.autograd.grad(y, leaf, torch.ones_like(y))[0].chunk(2)[0]
            found = passed * ((value - value0) / change).where(known, derivative)
        return None, None, torch.cat([found, torch.zeros_like(found)])


class _Product(Function):
    """A product of two tensors: each contributes its change times the mean of the other."""

    @staticmethod
    def forward(ctx: Any, call: Call, a: Tensor, b: Tensor) -> Tensor:
        ctx.factors = a.detach().clone(), b.detach().clone()
        y: Tensor = call()
        ctx.mark_dirty(*call.changed(y))
        return y

    @staticmethod
    def backward(ctx: Any, multiplier: Tensor) -> tuple[Tensor | None, ...]:
        passed = multiplier.chunk(2)[0]

        def at(other: Tensor, own: Tensor) -> Tensor:
            found = (passed * sum(other.chunk(2)) / 2).sum_to_size(own.chunk(2)[0].shape)
            return torch.cat([found, torch.zeros_like(found)])

        a, b = ctx.factors
        return None, at(b, a), at(a, b)


class _Multipliers(Rules):
    table = ACTIVATIONS | table(POOLS | PRODUCTS)

    def apply(self, name: str, call: Call) -> Any:
        if name in PRODUCTS:
            return _Product.apply(call, *call.depending) if len(call.depending) == 2 else call()
        if len(call.depending) > 1 or call.depending[0] is not call.argument(0, "input") or name == "glu":
            return call()
        return _Rescaled.apply(call, name in POOLS, call.depending[0])


@dataclass(frozen=True)
class DeepLIFT(Method):
    """``Σ_c m_c (x_c - x'_c)``: contribution of each pixel to the change of the target's logit from a reference x'.

    The multipliers m follow the rescale rule (eq. 9 and 10 instead of the derivative of each activation, however it is
    written). The reference is zero in normalized space, the data set's mean color. Two further rules keep the paper's
    summation to delta: for a maximum, the larger value contributes at its own position (as in the SHAP library); for a
    product of two tensors, each factor contributes its change times the other's mean. Contributions then sum to the
    logit's change for all networks of these and linear layers. Softmax, attention and normalizations of a layer's own
    values pass the derivative.
    """

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        with differentiable(network, images):
            both = torch.cat([images, torch.zeros_like(images)]).requires_grad_()
            with _Multipliers():
                logits = network(both.clone())
            logit = logits[: len(images)].gather(1, targets[:, None]).sum()
            multipliers = torch.autograd.grad(logit, both)[0][: len(images)]
        return (multipliers * images).sum(1).float()
