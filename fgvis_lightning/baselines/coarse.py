"""Coarse masks and blurred images, for the methods that learn a mask."""

from __future__ import annotations

import torchvision.transforms.v2.functional as tvf
from torch import Tensor


def grid(images: Tensor, cells: int) -> tuple[int, int]:
    """Height and width of a coarse mask of images (B,3,H,W), with ``cells`` cells along their shorter side."""
    sides = images.shape[-2:]
    cells = min(cells, *sides)
    height, width = (max(1, round(cells * side / min(sides))) for side in sides)
    return height, width


def blur(images: Tensor, sigma: float, radius: int) -> Tensor:
    """Blur images (B,3,H,W) with a Gaussian of ``sigma`` > 0 pixels, along each axis in turn.

    The ``radius`` of the kernel in pixels is limited by the shorter side.
    """
    kernel = 2 * min(radius, (min(images.shape[-2:]) - 1) // 2) + 1
    rows = tvf.gaussian_blur(images, [kernel, 1], [sigma, sigma])
    return tvf.gaussian_blur(rows, [1, kernel], [sigma, sigma])
