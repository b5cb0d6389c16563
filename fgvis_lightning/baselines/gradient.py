"""The gradient (Simonyan, Vedaldi and Zisserman, ICLR Workshop 2014, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from captum.attr import Saliency
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method


def sensitivity(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The largest of the color channels' absolute derivatives of the target's logit (B,H,W)."""
    image = images.detach().clone().requires_grad_()
    gradient: Tensor = Saliency(network).attribute(image, targets)
    return gradient.amax(1).float()


@dataclass(frozen=True)
class Gradient(Method):
    """``max_c |∂ logit / ∂ x_c|``: how much a small change of a pixel changes the class's score.

    The score is the logit, not the probability, as in the paper: the latter also rises when other classes' fall.
    """

    black_box = True

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return sensitivity(network, images, targets)
