"""Localization of the object: the pointing game and the energy pointing game."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics.checks import check_maps, shape
from fgvis_lightning.metrics.order import peaks


def boxes_to_masks(boxes: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Convert the boxes of each image to a mask.

    Args:
        boxes: N boxes (N,4) for each of B images, as left, top, right and bottom in pixels; pixel (i,j) is inside if
            left ≤ j < right and top ≤ i < bottom.
        height: height of the images.
        width: width of the images.

    Returns:
        Booleans (B,H,W).

    Raises:
        InputError: if boxes have another shape, or their edges another order.
    """
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    down, right = torch.arange(height)[:, None], torch.arange(width)
    for mask, several in zip(masks, boxes, strict=True):
        if several.ndim != 2 or several.shape[1] != 4:
            raise InputError(f"Expected the boxes of an image to be (N,4), but got {shape(several)}.")
        for x0, y0, x1, y1 in several.tolist():
            if not (x0 < x1 and y0 < y1):
                raise InputError(f"Expected boxes as left, top, right and bottom, but got {[x0, y0, x1, y1]}.")
            mask |= (y0 <= down) & (down < y1) & (x0 <= right) & (right < x1)
    return masks


def pointing_game(saliency: Tensor, masks: Tensor, tolerance: int = 15, ties: str = "random", seed: int = 0) -> Tensor:
    """1 if the maximum of the map is on the object, otherwise 0 (B,).

    Zhang et al., Excitation Backprop, ECCV 2016, as in TorchRay (``benchmark/pointing_game.py``): it is a hit if a
    pixel of the object is less than ``tolerance`` away from the maximum. If there are several maxima, TorchRay takes
    the first one, ``ties="first"``, which favors objects at the top left.

    Args:
        saliency: maps (B,H,W), high = evidence.
        masks: booleans (B,H,W), true on the object.
        tolerance: tolerance in pixels of the map; for 0 and 1, the maximum itself must be on the object. TorchRay first
            resizes maps to the size of the original image.
        ties: choice among several maxima, see `fgvis_lightning.metrics.order.ranked`.
        seed: seed of a random choice.

    Raises:
        InputError: if shapes do not match, masks are not boolean, maps contain NaN, or ``ties`` is unknown.
    """
    saliency, masks = _pair(saliency, masks)
    height, width = masks.shape[1:]
    point = peaks(saliency.flatten(1), ties, seed)[:, None, None]
    down = torch.arange(height, device=masks.device)[:, None] - point // width
    right = torch.arange(width, device=masks.device) - point % width
    distance = down**2 + right**2
    return (masks & ((distance < tolerance**2) | (distance == 0))).flatten(1).any(1).float()


def energy_pointing_game(saliency: Tensor, masks: Tensor) -> Tensor:
    """Share of the map that is inside the object (B,), from 0 to 1.

    Wang et al., Score-CAM, CVPR workshops 2020. Negative values count as 0; a map without positive values has share 0.

    Args:
        saliency: maps (B,H,W), high = evidence.
        masks: booleans (B,H,W), true on the object.

    Raises:
        InputError: if shapes do not match, masks are not boolean, or maps contain NaN.
    """
    saliency, masks = _pair(saliency, masks)
    energy = saliency.clamp(min=0)
    inside, whole = (energy * masks).flatten(1).sum(1), energy.flatten(1).sum(1)
    return (inside / whole.clamp(min=torch.finfo(energy.dtype).tiny)).clamp(max=1).float()


def _pair(saliency: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    saliency = check_maps("saliency", saliency)
    if masks.shape != saliency.shape or masks.dtype != torch.bool:
        raise InputError(
            f"Expected masks to be {shape(saliency)} booleans as the saliency, but got {shape(masks)} of {masks.dtype}."
        )
    return saliency, masks.to(saliency.device)
