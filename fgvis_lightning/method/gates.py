"""The defense's rules for the gradient of a neuron (Wagner et al., CVPR 2019, section 3.2, eq. 7 to 9).

A neuron with activation h(x) on the image has the range from min(0, h(x)) to max(0, h(x)). The signed distance of h(e),
its activation on the explanation, from this range is its `excess`. Let γ̄ be the gradient of the *minimized* objective
at the neuron's output. Then the rules pass these gradients γ on towards the image::

    strict       γ = γ̄ · 1[excess = 0]                the paper's indicator
    restoring    γ = γ̄ · 1[sign(excess) · γ̄ ≥ 0]      our choice

*Strict* closes a gate in both directions, so a neuron outside its range stays there. *Restoring* blocks steps that lead
further out and passes steps that lead back, like a projected gradient. Inside the range, both rules agree.

These are the definitions. `fgvis_lightning.defense.gates` computes the same values, bit for bit, at the cost of the
activation alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def excess(h: Tensor, reference: Tensor) -> Tensor:
    """Signed distance of each neuron from its range.

    Args:
        h: activations h(e), any shape.
        reference: reference activations h(x), same shape.

    Returns:
        Same shape: 0 inside the range, positive above, negative below. This is exact, because the difference of two
        unequal floating-point numbers is never rounded to zero (gradual underflow).
    """
    outside = h - h.clamp(reference.clamp(max=0), reference.clamp(min=0))
    return outside.nan_to_num_(0, torch.inf, -torch.inf)  # inf - inf if h(e) = h(x) = inf


def strict(gradient: Tensor, h: Tensor, reference: Tensor) -> Tensor:
    """The gradient γ̄ for neurons inside their range, 0 otherwise (eq. 9).

    Args:
        gradient: γ̄ with respect to the activations h(e), any shape.
        h: activations h(e), same shape.
        reference: reference activations h(x), same shape.
    """
    return torch.where(excess(h, reference) == 0, gradient, 0)  # where() and not a product, since 0 · inf is not 0


def restoring(gradient: Tensor, h: Tensor, reference: Tensor) -> Tensor:
    """The gradient γ̄, but 0 if a step against it leads a neuron outside its range further out.

    NaN has no direction and passes.

    Args:
        gradient: γ̄ of the minimized objective with respect to the activations h(e), any shape.
        h: activations h(e), same shape.
        reference: reference activations h(x), same shape.
    """
    return torch.where(excess(h, reference).sign() * gradient < 0, 0, gradient)


Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
RULES: dict[str, Rule] = {"strict": strict, "restoring": restoring}
