"""iGOS++ (Khorram, Lawson and Fuxin, ACM CHIL 2021): masks for deletion and insertion, by integrated gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvis_lightning.baselines.base import MaskMethod, require, steps
from fgvis_lightning.baselines.coarse import blur, grid
from fgvis_lightning.method.games import blend
from fgvis_lightning.method.tasks import task_of

LEAST = 1e-5  # step size below which the line search stops


@dataclass(frozen=True)
class IGOSPlusPlus(MaskMethod):
    """``1 - M`` with M = M_x M_y: removing this evidence loses the class, and the evidence alone keeps it.

    ``½ (d(M_x) - i(M_y) + d(M) - i(M)) + λ₁ mean(1 - m_x m_y) + λ₂ BTV`` is minimized over two coarse masks m_x and m_y
    in [0,1], which are upsampled bilinearly to M_x and M_y. d(M) is the target's softmax probability of
    ``x M + r (1 - M)``, averaged over a path on which M grows from 0, and i(M) is that of ``r M + x (1 - M)``; r is the
    image blurred with σ = 50, over 51 pixels. The gradient of this mean is the integrated gradient that gives the
    method its name. BTV is half the mean of ``|∇(m_x m_y)|²`` plus half the mean of ``|∇M|² exp(-|∇x|² / 0.01)``, where
    ∇x is averaged over the color channels: edges of the mask are cheap on edges of the image.

    Both masks start at 1. The step along the gradient is the first of α, 0.2 α, 0.04 α, … that reduces the objective by
    at least 1e-4 of the decrease predicted by the slope; the first step below 1e-5 is taken without this condition.

    The values are those of the authors' code (github.com/khorrams/IGOS_pp, ``methods.py``), which also adds Gaussian
    noise of standard deviation 0.2 to all images of a path. There, the line search uses the full score terms, and only
    the gradient halves them; here, both halve them. There, BTV and the result upsample the product m_x m_y; here, they
    multiply the upsampled masks, as the scores do. There, BTV averages ∇x over the channels for vertical differences,
    but the exponentials for horizontal ones; here, it averages ∇x for both. For a mask of 224×224, the authors use
    λ₁ = 10. Sizes are in pixels at size 224, and scaled to the shorter side of other images.

    The noise is the same for every image and every call.

    Args:
        iterations: number of iterations.
        path: number of images on the path from 0 to M.
        area: λ₁.
        variation: λ₂.
        cells: number of cells of a coarse mask along the image's shorter side.
        step: α, the initial step of the line search.
        noise: standard deviation of the noise.
        seed: seed of the noise.
        batch_size: images in one network pass, all from the paths of the same image.
    """

    black_box = True
    hides = "blurred"

    iterations: int = 15
    path: int = 20
    area: float = 1
    variation: float = 20
    cells: int = 28
    step: float = 1000
    noise: float = 0.2
    seed: int = 0
    batch_size: int = 20

    def effort(self) -> dict[str, float]:
        return {"iterations": 15, "path": 20}

    def __post_init__(self) -> None:
        require(self, 0, "iterations", "area", "variation", "step", "noise")
        require(self, 1, "path", "cells", "batch_size")

    def explanation(self, network: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            reference = self.reference(images)
        masks = [self.start(image) for image in images.split(1)]
        with steps(len(images) * self.iterations, type(self).__name__) as advance:
            for i, mask in enumerate(masks):
                problem = images[i, None], reference[i, None], targets[i, None]
                generator = torch.Generator(images.device).manual_seed(self.seed)
                for _ in range(self.iterations):
                    mask.copy_(self.improved(network, mask, *problem, generator))
                    advance()
        with torch.autocast(images.device.type, enabled=False):
            evidence = 1 - upsampled(torch.cat(masks), images).prod(1, keepdim=True)
            return blend(images, evidence.to(images.dtype), reference).float(), evidence[:, 0].float()

    def improved(
        self,
        network: nn.Module,
        mask: Tensor,
        image: Tensor,
        reference: Tensor,
        target: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """The coarse masks (1,2,h,w) of an image (1,3,H,W) after one more iteration."""
        problem = network, image, reference, target
        variable = mask.clone().requires_grad_()
        with torch.autocast(image.device.type, enabled=False):
            before = self.size(variable, image)
            (gradient,) = torch.autograd.grad(before, variable)
        before = before.detach()
        for rows in self.rows():
            part = self.scores(*problem, variable, rows, generator)
            with torch.autocast(image.device.type, enabled=False):  # autocast would also affect the mask's gradient
                gradient += torch.autograd.grad(part, variable)[0]
            before += part.detach()
        step, promised = self.step, 1e-4 * gradient.square().sum()
        with torch.no_grad():
            while True:
                tried = (mask - step * gradient).clamp(0, 1)
                if step < LEAST:
                    return tried
                after = sum(self.scores(*problem, tried, rows, generator) for rows in self.rows())
                with torch.autocast(image.device.type, enabled=False):
                    after = after + self.size(tried, image)
                if after <= before - step * promised:
                    return tried
                step *= 0.2

    def rows(self) -> list[range]:
        """Indices of the images of all four paths, path by path, in batches."""
        every = range(4 * self.path)
        return [every[start : start + self.batch_size] for start in range(0, len(every), self.batch_size)]

    def scores(
        self,
        network: nn.Module,
        image: Tensor,
        reference: Tensor,
        target: Tensor,
        mask: Tensor,
        rows: range,
        generator: torch.Generator,
    ) -> Tensor:
        """Contribution of these images of the paths to the objective, a scalar."""
        which = torch.tensor(rows, device=image.device)
        kind, share = which // self.path, (which % self.path + 1) / self.path
        inserts = kind[:, None, None, None] % 2 == 1
        with torch.autocast(image.device.type, enabled=False):
            large = upsampled(mask, image)
            both = large.prod(1, keepdim=True)
            along = torch.cat([large[0, :, None], both, both])[kind] * share.to(mask)[:, None, None, None]
            e = torch.lerp(
                torch.where(inserts, image, reference), torch.where(inserts, reference, image), along.to(image.dtype)
            )
            # By the shape, since the numbers of a tensor like the image depend on its memory format.
            draws = [torch.randn(image.shape[1:], generator=generator, device=image.device) for _ in rows]
            e = e + self.noise * torch.stack(draws).to(image.dtype)
        score = task_of(network).probability(network(e).float(), target.expand(len(rows)))
        return (score * torch.where(kind % 2 == 1, -0.5, 0.5)).sum() / self.path

    def size(self, mask: Tensor, image: Tensor) -> Tensor:
        """The penalties on the coarse masks (1,2,h,w), a scalar."""
        coarse, large = mask.prod(1), upsampled(mask, image).prod(1)
        variation = mask.new_zeros(())
        for dim in (-2, -1):
            cheap = (-image.diff(dim=dim).mean(1).square() / 0.01).exp()
            variation = variation + coarse.diff(dim=dim).square().mean()
            variation = variation + (cheap * large.diff(dim=dim).square()).mean()
        return self.area * (1 - coarse).mean() + self.variation * variation / 2

    def start(self, image: Tensor) -> Tensor:
        """Coarse masks (1,2,h,w) of ones for an image (1,3,H,W)."""
        exact = torch.promote_types(image.dtype, torch.float32)
        return torch.ones(1, 2, *grid(image, self.cells), dtype=exact, device=image.device)

    def reference(self, images: Tensor) -> Tensor:
        """The blurred images (B,3,H,W)."""
        side = min(images.shape[-2:])
        return blur(images, max(50 * side / 224, 0.1), round(25 * side / 224))


def upsampled(masks: Tensor, images: Tensor) -> Tensor:
    """Upsample coarse masks (B,2,h,w) to the size of images, (B,2,H,W), with aligned corners."""
    return F.interpolate(masks, images.shape[-2:], mode="bilinear", align_corners=True)


@dataclass(frozen=True)
class CheapIGOSPlusPlus(IGOSPlusPlus):
    """`IGOSPlusPlus` with five images per path; the integrated gradient is less precise."""

    path: int = 5
