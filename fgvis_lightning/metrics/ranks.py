"""Rank correlation of two maps."""

from __future__ import annotations

import torch
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics.checks import check_maps, shape


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of maps (B,), from -1 to 1, and NaN where one of them is constant.

    Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, compare maps by it.

    Args:
        a: (B,H,W).
        b: (B,H,W).

    Raises:
        InputError: shapes that do not fit, NaN in the maps.
    """
    if a.shape != b.shape:
        raise InputError(f"Expected two batches of maps of one shape, but got {shape(a)} and {shape(b)}.")
    first, second = (_ranks(check_maps("maps", maps).flatten(1)) for maps in (a, b.to(a.device)))
    first, second = (ranks - ranks.mean(1, keepdim=True) for ranks in (first, second))
    # Each divided by its own length: the product of the squares would be large.
    first, second = (ranks / ranks.norm(dim=1, keepdim=True) for ranks in (first, second))
    return (first * second).sum(1).clamp(-1, 1).float()


def _ranks(rows: Tensor) -> Tensor:
    """Ranks within each row (B,N) from 0; equal values share their mean rank."""
    ordered = rows.sort(1).values
    below, up_to = (torch.searchsorted(ordered, rows.contiguous(), right=right) for right in (False, True))
    # Ranks are multiples of 1/2, exact in float32 up to 2^23 pixels; their sums are not, so where there is float64 it
    # is taken.
    return (below + up_to - 1).to(torch.float32 if rows.device.type == "mps" else torch.float64) / 2
