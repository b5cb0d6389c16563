"""The ordinary gradient at randomly masked images: a baseline that a method with gates must surpass."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method, require, steps
from fgvis_lightning.baselines.rise import RISE
from fgvis_lightning.method.games import blend
from fgvis_lightning.method.tasks import task_of


@dataclass(frozen=True)
class MaskedGradient(Method):
    """``Σ_i [x ∂ log p(x ⊙ M_i)/∂(x ⊙ M_i)]₊ / N`` over N random masks M_i, as a mean over the color channels.

    p is the target's softmax probability, and ``[·]₊`` is the elementwise positive part of the derivative of log p with
    respect to the mask. The masks are those of `RISE`: removed parts become zero in normalized space.

    This method is not from a paper. It is the gradient times the input (Shrikumar et al. 2016) at masked images instead
    of noisy ones (SmoothGrad, Smilkov et al. 2017). It has no gates, so a method whose maps are more faithful *because*
    of gates must surpass it. It takes a forward and a backward pass for each mask.

    The masks are the same for all images and all calls.

    Args:
        masks: number of masks N.
        cells: number of cells on each side of the grid, as in `RISE`.
        p: probability of keeping a cell, greater than 0 and at most 1.
        seed: seed of the masks.
        batch_size: masked images in one network pass, all of the same image.
    """

    black_box = True

    masks: int = 40
    cells: int = 8
    p: float = 0.5
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        require(self, 1, "masks", "cells", "batch_size")
        self._rise()  # checks p

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        images = images.detach()
        maps = torch.zeros(images[:, 0].shape, device=images.device)
        with torch.enable_grad(), steps(len(images) * ceil(self.masks / self.batch_size), "MaskedGradient") as advance:
            for masks in self._rise().drawn(images.shape[-2], images.shape[-1], images.device):
                for image, target, total in zip(images, targets, maps, strict=True):
                    mask = masks.to(image.dtype).repeat(1, len(image), 1, 1).requires_grad_()
                    logits = network(blend(image, mask, None)).float()
                    score = task_of(network).log_probability(logits, target.expand(len(mask)))
                    (worth,) = torch.autograd.grad(score.sum(), mask)
                    total += worth.float().clamp(min=0).mean(1).sum(0)
                    advance()
        return maps / self.masks

    def _rise(self) -> RISE:
        return RISE(self.masks, self.cells, self.p, self.seed, self.batch_size)
