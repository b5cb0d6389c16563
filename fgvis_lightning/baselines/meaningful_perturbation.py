"""Meaningful perturbation (Fong and Vedaldi, ICCV 2017, section 4): the smallest blur that removes the class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvis_lightning.baselines.base import MaskMethod, require, scores, steps
from fgvis_lightning.baselines.coarse import grid
from fgvis_lightning.method.games import blend, blurred
from fgvis_lightning.method.tasks import task_of


@dataclass(frozen=True)
class MeaningfulPerturbation(MaskMethod):
    """``1 - M``, where M is the learned mask of the part to keep; the rest is blurred, and the class is lost.

    ``λ₁ Σ (1 - m) + λ₂ Σ |∇m|^β + f(x M + blurred (1 - M))`` is minimized with Adam over a coarse mask m in [0,1],
    which is clamped after each step. f is the target's softmax probability for a slightly shifted image; M is m
    upsampled with a Gaussian of width σ_m. The sums are over the coarse mask's entries, 784 for a square image, so λ₁
    and λ₂ do not depend on the image's size. The blurred image has σ = 10 (`fgvis_lightning.method.games.blurred`). All
    values are the paper's (section 4.3) and the defaults of its authors' code
    (github.com/ruthcfong/perturb_explanations, ``optimize_mask.py``), which also determines the units and that ∇ is the
    forward difference.

    The mask starts as the smallest centered circle, in steps of 5 pixels, whose blur reduces the score by 99 % of the
    reduction from blurring the whole image; the authors also blur the circle's edge, with σ = 10. Sizes are in pixels
    at size 224, and scaled to the shorter side of other images. The shift moves image and blurred image under the mask
    and repeats their border (the authors enlarge them instead). It is random in each iteration and the same for all
    images, which are optimized together without affecting each other.

    The game is deletion, so M is the mask of the image *without* the evidence. The explanation shows the other part,
    ``x (1 - M) + blurred M``; the objective does not require that it has the class.

    Args:
        iterations: iterations of Adam.
        lr: learning rate of Adam.
        area: λ₁.
        variation: λ₂.
        beta: β, 2 or more.
        cells: number of cells of the coarse mask along the image's shorter side.
        sigma: σ_m.
        jitter: number of positions of the image along each axis.
        seed: seed of the shifts.
    """

    black_box = True
    hides = "blurred"

    iterations: int = 300
    lr: float = 0.1
    area: float = 1e-4
    variation: float = 1e-2
    beta: float = 3
    cells: int = 28
    sigma: float = 5
    jitter: float = 4
    seed: int = 0

    def effort(self) -> dict[str, float]:
        return {"iterations": 300}

    def __post_init__(self) -> None:
        require(self, 0, "iterations", "lr", "area", "variation", "sigma", "jitter")
        require(self, 1, "cells")
        require(self, 2, "beta")  # smaller values have no gradient in flat parts of the mask

    def explanation(self, network: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        evidence = 1 - self.upsampled(self.learned(network, images, targets), images).detach()
        shown = blend(images, evidence.to(images.dtype), self.reference(images))
        return shown.float(), evidence[:, 0].float()

    def reference(self, images: Tensor) -> Tensor:
        """The blurred images (B,3,H,W)."""
        with torch.autocast(images.device.type, enabled=False):
            return blurred(images, images, torch.Generator())

    def learned(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """The coarse mask (B,1,h,w) in [0,1]; 1 keeps the image."""
        reference = self.reference(images)
        pad = round(self.jitter * min(images.shape[-2:]) / 224)
        wide, wide_reference = (F.pad(x, [pad // 2, pad - pad // 2] * 2, mode="replicate") for x in (images, reference))
        generator = torch.Generator().manual_seed(self.seed)
        shifts = torch.randint(max(pad, 1), (self.iterations, 2), generator=generator).tolist()
        circles, (height, width) = self.circles(images), images.shape[-2:]
        with steps(len(circles) + self.iterations, type(self).__name__) as advance:
            suppressed = []
            for circle in circles:
                kept = self.upsampled(circle, images).to(images.dtype)
                suppressed.append(scores(network, blend(images, kept, reference), targets, advance))
            score = torch.stack(suppressed)  # (radii,B), from the whole image to the blurred one
            first = (score <= score[-1] + 0.01 * (score[0] - score[-1])).int().argmax(0)
            mask = circles[first].clone().requires_grad_()
            optimizer = torch.optim.Adam([mask], self.lr)
            for y, x in shifts:
                shifted, under = (image[..., y : y + height, x : x + width] for image in (wide, wide_reference))
                loss = self.objective(network, shifted, under, mask, targets).sum()
                with torch.autocast(mask.device.type, enabled=False):  # autocast would also affect the mask's gradient
                    (mask.grad,) = torch.autograd.grad(loss, mask)
                optimizer.step()
                mask.detach().clamp_(0, 1)
                advance()
        return mask.detach()

    def objective(self, network: nn.Module, images: Tensor, reference: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """The objective (B,) for images at their current position."""
        kept = self.upsampled(mask, images).to(images.dtype)
        score = task_of(network).probability(network(blend(images, kept, reference)).float(), targets)
        return score + self.area * (1 - mask).flatten(1).sum(1) + self.variation * total_variation(mask, self.beta)

    def circles(self, images: Tensor) -> Tensor:
        """Coarse masks (radii,1,h,w) that are 1 outside centered circles, from an empty circle to the whole image."""
        sides = grid(images, self.cells)
        y, x = (torch.arange(n) + 0.5 - n / 2 for n in sides)
        distance = (y[:, None] ** 2 + x**2).sqrt() * 224 / min(sides)
        radii = torch.arange(0, float(distance.max()) + 10, 5)
        exact = torch.promote_types(images.dtype, torch.float32)
        return (distance >= radii[:, None, None, None]).to(images.device, exact)

    def upsampled(self, mask: Tensor, images: Tensor) -> Tensor:
        """M (B,1,H,W): the Gaussian-weighted mean of the coarse mask's entries around each pixel."""
        sigma = max(self.sigma * min(images.shape[-2:]) / 224, 0.1)
        weights = []
        for side, cells in zip(images.shape[-2:], mask.shape[-2:], strict=True):
            offset = (torch.arange(side)[:, None] + 0.5) - (torch.arange(cells) + 0.5) * side / cells
            weights.append((-((offset / sigma) ** 2) / 2).softmax(1).to(mask))
        with torch.autocast(mask.device.type, enabled=False):
            return weights[0] @ mask @ weights[1].T


def total_variation(mask: Tensor, beta: float) -> Tensor:
    """``Σ |∇m|^β`` (B,) of a mask (B,1,h,w), from forward differences that are 0 at the far borders."""
    down, right = F.pad(mask.diff(dim=-2), (0, 0, 0, 1)), F.pad(mask.diff(dim=-1), (0, 1))
    return (down**2 + right**2).pow(beta / 2).flatten(1).sum(1)


@dataclass(frozen=True)
class CheapMeaningfulPerturbation(MeaningfulPerturbation):
    """`MeaningfulPerturbation` with 100 iterations; the mask is less converged and closer to its start."""

    iterations: int = 100
