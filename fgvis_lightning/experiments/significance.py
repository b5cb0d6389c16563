"""Significance of differences between methods: paired tests, corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EXACT = 13
"""Maximum number of images for which all signs are tried."""

SAMPLES = 10_000
"""Number of drawn choices of signs for more images."""


def sign_flip(differences: Tensor, groups: Sequence[str]) -> float:
    """Two-sided p value of the mean of paired differences (Fisher's randomization test, 1935).

    If two methods are alike, each difference could have the opposite sign just as well. So p is the share of the
    choices of signs for which the mean is at least as far from 0. With few images all choices are tried, and p is
    exact: n images with the same sign give 2/2ⁿ, and fewer than six are never significant at 5 %.

    Args:
        differences: (N,), one method's values minus the other's; NaN values are left out.
        groups: the image of each difference; all differences of an image change their sign together.

    Returns:
        From 0 (excluded) to 1; NaN without a value.
    """
    known = ~differences.isnan()
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    index = torch.tensor([names[group] for group in groups], dtype=torch.long)[known.cpu()]
    if not len(index):
        return math.nan
    sums = torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, differences[known].double().cpu())
    sums = sums[index.unique()]
    least = float(sums.sum().abs()) * (1 - 1e-9)  # equal means count as equally far, whatever the rounding

    def further(choices: Tensor) -> int:
        return int(((2 * choices - 1).double() @ sums).abs().ge(least).sum())

    if len(sums) <= EXACT:
        choices = torch.arange(2 ** len(sums))[:, None] >> torch.arange(len(sums)) & 1
        return further(choices) / len(choices)
    generator = torch.Generator().manual_seed(0)
    found = 1  # the observed signs count, too
    for _ in range(SAMPLES // 1000):  # a million images need no more memory
        found += further(torch.randint(2, (1000, len(sums)), generator=generator))
    return found / (SAMPLES + 1)


def holm(values: Sequence[float]) -> list[float]:
    """P values of M tests, corrected so that any of them is below 5 % by chance in at most 5 % of all studies.

    Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Stat. 1979: the smallest times M, the
    next times M - 1, and so on, none smaller than the one before. NaN does not count as a test and stays NaN.
    """
    order = sorted((place for place, value in enumerate(values) if not math.isnan(value)), key=values.__getitem__)
    corrected, before = list(values), 0.0
    for rank, place in enumerate(order):
        before = corrected[place] = max(before, min(1.0, (len(order) - rank) * values[place]))
    return corrected
