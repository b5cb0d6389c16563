"""Extremal perturbation (Fong, Patrick and Vedaldi, ICCV 2019, section 3): the most important region of some area."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvis_lightning.baselines.base import MaskMethod, require, steps
from fgvis_lightning.baselines.coarse import blur
from fgvis_lightning.errors import InputError

COLDNESS = 20  # 1 / T


@dataclass(frozen=True)
class ExtremalPerturbation(MaskMethod):
    """The mask M of a given area a that maximizes the target's logit f; the rest is blurred.

    ``f(x_M) - λ mean((sort(M) - r_a)²)`` is maximized by gradient descent with momentum. r_a consists of zeros,
    followed by as many ones as the area has pixels; λ grows until M has this area and is almost binary. M is smooth
    nevertheless: at each pixel u, it is the smooth maximum over cells j of ``k(‖u - j‖ / σ) m_j``, which weights terms
    t by ``exp(t / T)``, with ``k(z) = exp(-2 max(0, z - ½)²)``. The values m in [0,1] of a coarse grid are learned, and
    clamped after each step. Areas are shares of M including its margin of σ around the image: 0.1 is 0.14 of an image
    of 224×224, if the mask lies completely inside. The part of M beyond the border counts; otherwise borders would be
    cheap.

    x_M is the image where M is 1, and the image blurred with σ = 20 where M is 0; between, it is interpolated in a
    pyramid of levels with decreasing blur.

    Each of several areas has its own mask; map and explanation are those of their mean. The paper's pointing game sums
    the masks of 0.025, 0.05, 0.1 and 0.2, and blurs the sum.

    The values, and k, are the defaults of the authors' library TorchRay. It also determines that λ starts at 300 and
    grows by 0.35 % in each iteration, that T = 1/20, that all m start at 1, and that the network sees the mirror image
    in every second iteration. Sizes are in pixels at size 224, and scaled to the shorter side of other images.

    The method is deterministic. Images and areas are optimized together without affecting each other.

    Args:
        areas: areas a, shares between 0 and 1.
        iterations: number of iterations.
        lr: step size of the gradient descent.
        weight: initial λ.
        growth: factor of λ in each iteration.
        step: side of a coarse cell.
        sigma: σ.
        levels: number of levels of the pyramid, including the image.
        mirror: whether to use the mirror image in every second iteration.
    """

    black_box = True
    hides = "blurred"

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
                f"Expected areas between 0 and 1, as shares of the mask, but got {self.areas}. The default is 0.1."
            )

    def explanation(self, network: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            pyramid = self.pyramid(images)
        masks = self.learned(network, pyramid, targets)
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            inside = self.within(self.smoothed(masks, images), images)
            mean = inside.unflatten(0, (len(images), -1)).mean(1)
            return perturbed(pyramid, mean).float(), mean[:, 0].float()

    def learned(self, network: nn.Module, pyramid: Tensor, targets: Tensor) -> Tensor:
        """The coarse masks (B·A,1,h,w) in [0,1] of all areas, image by image."""
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
                with torch.autocast(mask.device.type, enabled=False):  # autocast would also affect the mask's gradient
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
        """The negative objective (B,) of coarse masks (B,1,h,w), for areas given as sorted masks r_a (B,N)."""
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
        """M in [0,1] for coarse masks (B,1,h,w), in the image and in the margin that its cells reach.

        All cells are equal, so one kernel between a cell's pixels and its neighbors serves all cells.
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
        """Width of the margin in cells that the image's cells reach."""
        return ceil(self.sigma * min(images.shape[-2:]) / 224 / self.cell(images))

    def within(self, smooth: Tensor, images: Tensor) -> Tensor:
        """The part (B,1,H,W) of a mask inside the image."""
        start = self.margin(images) * self.cell(images)
        return smooth[..., start : start + images.shape[-2], start : start + images.shape[-1]]


def perturbed(pyramid: Tensor, mask: Tensor) -> Tensor:
    """x_M (B,3,H,W): the pyramid's (L,B,3,H,W) levels, interpolated linearly at ``M (L - 1)``, for M (B,1,H,W)."""
    level = mask.to(pyramid.dtype) * (len(pyramid) - 1)
    return sum((1 - (level - i).abs()).clamp(min=0) * image for i, image in enumerate(pyramid))


@dataclass(frozen=True)
class CheapExtremalPerturbation(ExtremalPerturbation):
    """`ExtremalPerturbation` with 200 iterations.

    λ grows as much as in 800 iterations, so that the area is reached; there is less time to find the region.
    """

    iterations: int = 200
    growth: float = 1.014
