"""The ordinary gradient at randomly masked images: a baseline that a method with gates must surpass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fgvis_lightning.baselines.rise import RISE
from fgvis_lightning.method.games import blend
from fgvis_lightning.method.tasks import task_of


@dataclass(frozen=True)
class MaskedGradient(RISE):
    """``Σ_i [x ∂ log p(x ⊙ M_i)/∂(x ⊙ M_i)]₊ / N`` over N random masks M_i, as a mean over the color channels.

    p is the target's softmax probability, and ``[·]₊`` is the elementwise positive part of the derivative of log p with
    respect to the mask. The masks are those of `RISE`: removed parts become zero in normalized space.

    This method is not from a paper. It is the gradient times the input (Shrikumar et al. 2016) at masked images instead
    of noisy ones (SmoothGrad, Smilkov et al. 2017). It has no gates, so a method whose maps are more faithful *because*
    of gates must surpass it. It takes a forward and a backward pass for each mask.

    For the arguments, see `RISE`; the masks are the same for all images and all calls.
    """

    masks: int = 40
    cells: int = 8
    batch_size: int = 8

    def effort(self) -> dict[str, float]:
        return {}

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return self.total(network, images, targets) / self.masks

    def term(self, network: nn.Module, image: Tensor, masks: Tensor, targets: Tensor) -> Tensor:
        mask = masks.to(image.dtype).repeat(1, len(image), 1, 1).requires_grad_()
        score = task_of(network).log_probability(network(blend(image, mask, None)).float(), targets)
        (worth,) = torch.autograd.grad(score.sum(), mask)
        return worth.float().clamp(min=0).mean(1).sum(0)
