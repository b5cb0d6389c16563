"""Rank correlation of two maps."""

from __future__ import annotations

import torch
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics.checks import check_maps, shape


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of maps (B,), from -1 to 1; NaN if one of them is constant.

    Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, use it to compare maps.

    Args:
        a: maps (B,H,W).
        b: maps (B,H,W).

    Raises:
        InputError: if shapes do not match, or if maps contain NaN.
    """
    if a.shape != b.shape:
        raise InputError(f"Expected two batches of maps of one shape, but got {shape(a)} and {shape(b)}.")
    first, second = (_ranks(check_maps("maps", maps).flatten(1)) for maps in (a, b.to(a.device)))
    first, second = (ranks - ranks.mean(1, keepdim=True) for ranks in (first, second))
    # Each is divided by its own length, since the product of the squares would be large.
    first, second = (ranks / ranks.norm(dim=1, keepdim=True) for ranks in (first, second))
    return (first * second).sum(1).clamp(-1, 1).float()


def _ranks(rows: Tensor) -> Tensor:
    """Ranks within each row (B,N) from 0; equal values share their mean rank."""
    ordered = rows.sort(1).values
    below, up_to = (torch.searchsorted(ordered, rows.contiguous(), right=right) for right in (False, True))
    # Ranks are multiples of 1/2, exact in float32 up to 2^23 pixels, but their sums are not; so use float64 if
    # available.
    return (below + up_to - 1).to(torch.float32 if rows.device.type == "mps" else torch.float64) / 2
