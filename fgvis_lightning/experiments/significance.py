"""Whether methods differ by more than chance: paired tests, corrected for how many there are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EXACT = 13
"""Up to so many images all signs are tried."""


def sign_flip(differences: Tensor, groups: Sequence[str], samples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p value of the mean of paired differences (Fisher's randomization test, 1935).

    If two methods are alike, a difference may as well have the other sign. So p is the share of the choices of signs
    by which the mean is at least as far from 0. With few images all of them are tried, and p is exact: n images that
    agree have 2/2ⁿ, and fewer than six are never significant at 5 %.

    Args:
        differences: (N,), one method's values less the other's; what is NaN is left out.
        groups: the image of each; all differences of an image change their sign together.
        samples: number of choices that are drawn where there are more than 2¹³.
        seed: of the draws.

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
    least = float(sums.sum().abs()) * (1 - 1e-9)  # what is equal is as far, whatever the rounding

    def further(choices: Tensor) -> int:
        return int(((2 * choices - 1).double() @ sums).abs().ge(least).sum())

    if len(sums) <= EXACT:
        choices = torch.arange(2 ** len(sums))[:, None] >> torch.arange(len(sums)) & 1
        return further(choices) / len(choices)
    generator = torch.Generator().manual_seed(seed)
    found = 1  # the signs that there are count, too
    for start in range(0, samples, 1000):  # a million images need no more memory
        found += further(torch.randint(2, (min(1000, samples - start), len(sums)), generator=generator))
    return found / (samples + 1)


def holm(values: Sequence[float]) -> list[float]:
    """P values of M tests, corrected so that one of them is below 5 % by chance in at most 5 % of all studies.

    Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Stat. 1979: the smallest times M, the
    next times M - 1, and so on, none smaller than the one before. NaN is no test and stays NaN.
    """
    order = sorted((place for place, value in enumerate(values) if not math.isnan(value)), key=values.__getitem__)
    corrected, before = list(values), 0.0
    for rank, place in enumerate(order):
        before = corrected[place] = max(before, min(1.0, (len(order) - rank) * values[place]))
    return corrected
