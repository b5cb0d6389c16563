"""Means over images, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def bootstrap(
    values: Tensor, groups: Sequence[str], samples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean, and its 95 % interval by the percentile bootstrap (Efron and Tibshirani, 1993, chapter 13).

    Args:
        values: (N,).
        groups: the image of each; images are drawn, with all their values, since values of one image are not
            independent.
        samples: how often.
        seed: of the draws.

    Returns:
        The mean, and the ends of the interval; all NaN if there is no value.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    if not names:
        return (float("nan"),) * 3
    index = torch.tensor([names[group] for group in groups])
    sums = torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, values.double().cpu())
    counts = torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, torch.ones(len(groups)).double())
    generator = torch.Generator().manual_seed(seed)
    means = []
    for start in range(0, samples, 1000):  # a million images need no more memory
        drawn = torch.randint(len(names), (min(1000, samples - start), len(names)), generator=generator)
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = torch.quantile(torch.cat(means), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(sums.sum() / counts.sum()), low, high
