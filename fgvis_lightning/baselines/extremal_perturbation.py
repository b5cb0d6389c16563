"""Extremal perturbation (Fong, Patrick and Vedaldi, ICCV 2019, section 3): the region of one area that matters most."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvis_lightning.baselines.base import MaskMethod, require, steps
from fgvis_lightning.baselines.coarse import blur
from fgvis_lightning.errors import InputError

COLDNESS = 20
"""1 / T."""


@dataclass(frozen=True)
class ExtremalPerturbation(MaskMethod):
    """The mask M of a given area a that keeps the target's logit f highest; the rest is blurred.

    ``f(x_M) - λ mean((sort(M) - r_a)²)`` is maximized by gradient descent with momentum, where r_a are zeros, then as
    many ones as the area has pixels: λ grows until M is of that area, and little of it neither 0 nor 1. M is smooth all
    the same, as the smooth maximum over cells j of ``k(‖u - j‖ / σ) m_j`` at each pixel u, which weights terms t by
    ``exp(t / T)``, with ``k(z) = exp(-2 max(0, z - ½)²)``. The m in [0,1] of a coarse grid are what is learned, clamped
    after each step. Areas are shares of M with its margin, σ around the image: 0.1 is 0.14 of an image of 224×224, if
    all of it is inside. What M covers beyond the border counts, or borders would be cheap.

    Where M is 1, x_M is the image, where it is 0, the image blurred with σ = 20, and between, one of the levels of a
    pyramid of ever weaker blur, interpolated.

    Of several areas each has its own mask; the map, and the explanation, is that of their mean. The paper's pointing
    game adds up those of 0.025, 0.05, 0.1 and 0.2, and blurs the sum.

    The values, and k, are the defaults of the authors' library TorchRay, which also settles that λ begins at 300 and
    grows by 0.35 % in each iteration, T = 1/20, that all m are 1 at the start, and that in every second iteration the
    network sees the mirror image. Sizes are in pixels of 224, and scaled to the shorter side of other images.

    There is no chance in it. Images and areas are optimized together without affecting each other.

    Args:
        areas: a, each a share above 0 and below 1.
        iterations: of gradient descent.
        lr: its step size.
        weight: λ at the start.
        growth: factor of λ in each iteration.
        step: side of a coarse cell.
        sigma: σ.
        levels: of the pyramid, the image among them.
        mirror: whether every second iteration is of the mirror image.
    """

    black_box = True

    areas: list[float] = field(default_factory=lambda: [0.1])
    iterations: int = 800
    lr: float = 0.01
    weight: float = 300
    growth: float = 1.0035
    step: float = 7
    sigma: float = 21
    levels: int = 8
    mirror: bool = True

    def effort(self) -> dict[str, float]:
        return {"iterations": 800}

    def __post_init__(self) -> None:
        require(self, 0, "iterations", "lr", "weight", "growth")
        require(self, 1, "step", "sigma")
        require(self, 2, "levels")
        if not self.areas or not all(0 < area < 1 for area in self.areas):
            raise InputError(
                f"Expected areas above 0 and below 1, as shares of the mask, but got {self.areas}. The default is 0.1."
            )

    def explanation(self, network: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            images, targets = images.clone().detach(), targets.clone()
            with torch.autocast(images.device.type, enabled=False):
                pyramid = self.pyramid(images)
            masks = self.learned(network, pyramid, targets)
            with torch.autocast(images.device.type, enabled=False), torch.no_grad():
                inside = self.within(self.smoothed(masks, images), images)
                mean = inside.unflatten(0, (len(images), -1)).mean(1)
                return perturbed(pyramid, mean).float(), mean[:, 0].float()

    def learned(self, network: nn.Module, pyramid: Tensor, targets: Tensor) -> Tensor:
        """The coarse masks (B·A,1,h,w) in [0,1] of all areas of the first image, of the second, …"""
        count, images = len(self.areas), pyramid[-1]
        pyramid, targets = pyramid.repeat_interleave(count, 1), targets.repeat_interleave(count)
        exact = torch.promote_types(images.dtype, torch.float32)
        cells = (ceil(side / self.cell(images)) for side in images.shape[-2:])
        mask = torch.ones(count * len(images), 1, *cells, device=images.device, dtype=exact, requires_grad=True)
        every = self.smoothed(mask[:1].detach(), images).numel()
        zeros = torch.tensor([every - round(area * every) for area in self.areas] * len(images), device=images.device)
        wanted = (torch.arange(every, device=images.device) >= zeros[:, None]).to(exact)
        optimizer = torch.optim.SGD([mask], self.lr, momentum=0.9, dampening=0.9)
        weight = self.weight
        with steps(self.iterations, type(self).__name__) as advance:
            for iteration in range(self.iterations):
                loss = self.objective(network, pyramid, wanted, mask, targets, weight, iteration % 2 == 1).sum()
                with torch.autocast(mask.device.type, enabled=False):  # which would also reach the mask's gradient
                    (mask.grad,) = torch.autograd.grad(loss, mask)
                optimizer.step()
                mask.detach().clamp_(0, 1)
                weight *= self.growth
                advance()
        return mask.detach()

    def objective(
        self,
        network: nn.Module,
        pyramid: Tensor,
        wanted: Tensor,
        mask: Tensor,
        targets: Tensor,
        weight: float,
        mirrored: bool,
    ) -> Tensor:
        """The negative objective (B,) of coarse masks (B,1,h,w), for areas as sorted masks (B,N), r_a."""
        with torch.autocast(mask.device.type, enabled=False):
            smooth = self.smoothed(mask, pyramid[-1])
            misfit = (smooth.flatten(1).sort(dim=1, stable=True).values - wanted).square().mean(1)
            e = perturbed(pyramid, self.within(smooth, pyramid[-1]))
        e = e.flip(-1) if mirrored and self.mirror else e
        return weight * misfit - network(e).float().gather(1, targets[:, None]).squeeze(1)

    def cell(self, images: Tensor) -> int:
        """Side of a coarse cell in pixels of the images."""
        return max(1, round(self.step * min(images.shape[-2:]) / 224))

    def pyramid(self, images: Tensor) -> Tensor:
        """The images (L,B,3,H,W), from the most blurred to the original."""
        side = min(images.shape[-2:])
        blurs = []
        for level in range(self.levels - 1):
            sigma = max(20 * side / 224 * (1 - level / (self.levels - 1)), 0.1)
            blurs.append(blur(images, sigma, ceil(3 * sigma)))
        return torch.stack([*blurs, images])

    def smoothed(self, mask: Tensor, images: Tensor) -> Tensor:
        """M in [0,1] of coarse masks (B,1,h,w), in the image and around it, where only cells of the image reach.

        All cells are alike, so the kernel between the pixels of one and its neighbors is that of all of them.
        """
        cell, sigma = self.cell(images), self.sigma * min(images.shape[-2:]) / 224
        margin, reach = self.margin(images), 1 + self.margin(images)
        inside = (torch.arange(cell, device=mask.device) + 0.5) / cell - 0.5  # in cells, from the cell's center
        offset = torch.arange(-reach, reach + 1, device=mask.device)
        squares = (inside[:, None] - offset).to(mask) ** 2 * (cell / sigma) ** 2
        z = (squares[:, None, :, None] + squares[None, :, None, :]).sqrt().reshape(cell**2, -1)  # pixels × neighbors
        kernel = (-2 * (z - 0.5).clamp(min=0) ** 2).exp()
        neighbors = F.unfold(mask, 2 * reach + 1, padding=reach + margin)  # (B, neighbors, cells)
        terms = (COLDNESS * kernel)[None, :, :, None] * neighbors[:, None]
        smooth = (terms * terms.softmax(2)).sum(2) / COLDNESS
        height, width = mask.shape[-2:]
        return F.pixel_shuffle(smooth.unflatten(2, (height + 2 * margin, width + 2 * margin)), cell)

    def margin(self, images: Tensor) -> int:
        """How many cells around the image those of the image reach."""
        return ceil(self.sigma * min(images.shape[-2:]) / 224 / self.cell(images))

    def within(self, smooth: Tensor, images: Tensor) -> Tensor:
        """The part (B,1,H,W) of a mask that is in the image."""
        start = self.margin(images) * self.cell(images)
        return smooth[..., start : start + images.shape[-2], start : start + images.shape[-1]]


def perturbed(pyramid: Tensor, mask: Tensor) -> Tensor:
    """x_M (B,3,H,W): the pyramid's (L,B,3,H,W) levels, interpolated linearly at ``M (L - 1)``, for M (B,1,H,W)."""
    level = mask.to(pyramid.dtype) * (len(pyramid) - 1)
    return sum((1 - (level - i).abs()).clamp(min=0) * image for i, image in enumerate(pyramid))


@dataclass(frozen=True)
class CheapExtremalPerturbation(ExtremalPerturbation):
    """`ExtremalPerturbation` with 200 iterations.

    λ grows as much in these as in all 800, so that the area is reached; what it gives up is time to find the region.
    """

    iterations: int = 200
    growth: float = 1.014
