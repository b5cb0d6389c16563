"""RISE (Petsiuk, Das and Saenko, BMVC 2018, section 3): the mean of random masks, weighted by their scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method, require, scores, steps
from fgvis_lightning.errors import InputError


@dataclass(frozen=True)
class RISE(Method):
    """``Σ_i f(x ⊙ M_i) M_i / (N p)`` over N random masks M_i; f is the target's softmax probability.

    A mask is a grid of cells, each kept with probability p, upsampled bilinearly to one cell more than the image, and
    cropped at a random position (section 3.2). Removed parts become zero in normalized space, the data set's mean
    color. The values are the paper's for a ResNet50; for VGG16, the paper uses 4000 masks. As in the authors' code
    (github.com/eclique/RISE, ``explanations.py``), cells are rounded up to whole pixels, and the grid is reflected
    beyond the outermost cells' centers.

    The masks are the same for all images and all calls.

    Args:
        masks: number of masks N.
        cells: number of cells on each side of the grid.
        p: probability of keeping a cell, greater than 0 and at most 1.
        seed: seed of the masks.
        batch_size: masked images in one network pass, all of the same image.
    """

    black_box = True

    masks: int = 8000
    cells: int = 7
    p: float = 0.5
    seed: int = 0
    batch_size: int = 64

    def effort(self) -> dict[str, float]:
        return {"masks": 4000}

    def __post_init__(self) -> None:
        require(self, 1, "masks", "cells", "batch_size")
        if not 0 < self.p <= 1:
            raise InputError(f"Expected p to be above 0 and at most 1, but got {self.p}. The paper uses 0.5.")

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return self.total(network, images, targets) / (self.masks * self.p)

    def total(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Sums (B,H,W) of all masks' terms."""
        maps = torch.zeros(images[:, 0].shape, device=images.device)
        with steps(len(images) * ceil(self.masks / self.batch_size), type(self).__name__) as advance:
            for masks in self.drawn(images.shape[-2], images.shape[-1], images.device):
                for image, target, total in zip(images, targets, maps, strict=True):
                    total += self.term(network, image, masks, target.expand(len(masks)))
                    advance()
        return maps

    def term(self, network: nn.Module, image: Tensor, masks: Tensor, targets: Tensor) -> Tensor:
        """Sum (H,W) of the terms of some masks (n,1,H,W) of an image (3,H,W), for targets (n,)."""
        score = scores(network, image * masks.to(image.dtype), targets)
        return (score[:, None, None] * masks[:, 0]).sum(0)  # a matrix product would be autocast

    def drawn(self, height: int, width: int, device: torch.device) -> Iterator[Tensor]:
        """The masks (n,1,height,width) in [0,1], at most ``batch_size`` at a time, which does not affect them."""
        generator = torch.Generator().manual_seed(self.seed)
        kept = torch.rand(self.masks, 1, self.cells, self.cells, generator=generator) < self.p
        cell = ceil(height / self.cells), ceil(width / self.cells)
        down, right = (torch.randint(side, (self.masks,), generator=generator).tolist() for side in cell)
        rows, columns = (upsampling(self.cells, (self.cells + 1) * side).to(device) for side in cell)
        for start in range(0, self.masks, self.batch_size):
            grids = kept[start : start + self.batch_size].float().to(device)
            with torch.autocast(device.type, enabled=False):
                large = rows @ grids @ columns.T
            places = zip(large, down[start:], right[start:], strict=False)
            yield torch.stack([mask[:, y : y + height, x : x + width] for mask, y, x in places])


def upsampling(cells: int, pixels: int) -> Tensor:
    """Weights (pixels,cells) of linear interpolation, reflected at the outer cells' centers."""
    place = (torch.arange(pixels, dtype=torch.float64) + 0.5) * cells / pixels - 0.5
    place = (cells - 1 - (cells - 1 - place.abs()).abs()).clamp(min=0)
    return (1 - (place[:, None] - torch.arange(cells)).abs()).clamp(min=0).float()


@dataclass(frozen=True)
class CheapRISE(RISE):
    """`RISE` with 1000 masks; the map is less smooth, with √8 times the sampling noise."""

    masks: int = 1000
