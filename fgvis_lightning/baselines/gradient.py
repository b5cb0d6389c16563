"""The gradient (Simonyan, Vedaldi and Zisserman, ICLR Workshop 2014, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from captum.attr import Saliency
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method


def sensitivity(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Absolute derivative of the target's logit (B,H,W), maximum over the color channels."""
    image = images.detach().clone().requires_grad_()
    gradient: Tensor = Saliency(network).attribute(image, targets)
    return gradient.amax(1).float()


@dataclass(frozen=True)
class Gradient(Method):
    """``max_c |∂ logit / ∂ x_c|``: the effect of a small change of a pixel on the class's score.

    As in the paper, the score is the logit and not the probability, which also rises when other classes' scores fall.
    """

    black_box = True

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return sensitivity(network, images, targets)
