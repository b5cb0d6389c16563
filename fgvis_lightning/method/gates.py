"""The defense's rules: which gradient passes a neuron (Wagner et al., CVPR 2019, section 3.2, eq. 7 to 9).

A neuron with activation h(x) on the image has the range from min(0, h(x)) to max(0, h(x)). How far h(e), its
activation on the explanation, lies outside is its `excess`. With γ̄ the gradient of what is *minimized* that arrives at
the neuron's output, these gradients γ go on towards the image::

    strict       γ = γ̄ · 1[excess = 0]                the paper's indicator
    restoring    γ = γ̄ · 1[sign(excess) · γ̄ ≥ 0]      our choice

*Strict* closes a gate both ways, so a neuron that has left its range stays where it is. *Restoring* closes it to steps
that lead further out, and lets those pass that lead back, as a projected gradient does. Inside the range they agree.

These are the definitions. `fgvis_lightning.defense.gates` computes the same, bit for bit, at the cost of the
activation.
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
        Same shape: 0 inside, more than 0 above, less than 0 below. Exactly, because the difference of two unequal
        floating-point numbers is never rounded to zero (gradual underflow).
    """
    outside = h - h.clamp(reference.clamp(max=0), reference.clamp(min=0))
    return outside.nan_to_num_(0, torch.inf, -torch.inf)  # inf - inf, where h(e) = h(x)


def strict(gradient: Tensor, h: Tensor, reference: Tensor) -> Tensor:
    """The gradient γ̄ where the neuron is inside its range, 0 elsewhere (eq. 9).

    Args:
        gradient: γ̄, of the activations h(e), any shape.
        h: activations h(e), same shape.
        reference: reference activations h(x), same shape.
    """
    return torch.where(excess(h, reference) == 0, gradient, 0)  # selects, since 0 · inf is not 0


def restoring(gradient: Tensor, h: Tensor, reference: Tensor) -> Tensor:
    """The gradient γ̄, but 0 where a step against it leads a neuron that is outside its range further out.

    What is not a number leads nowhere, and passes.

    Args:
        gradient: γ̄ of what is minimized, of the activations h(e), any shape.
        h: activations h(e), same shape.
        reference: reference activations h(x), same shape.
    """
    return torch.where(excess(h, reference).sign() * gradient < 0, 0, gradient)


Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
RULES: dict[str, Rule] = {"strict": strict, "restoring": restoring}
