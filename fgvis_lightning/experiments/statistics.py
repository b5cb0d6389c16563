"""Means over images with confidence intervals, and significance of differences: paired tests, corrected for number."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import chain

import torch
from torch import Tensor

from fgvis_lightning.results.tables import Table


def bootstrap(values: Tensor, groups: Sequence[str]) -> tuple[float, float, float]:
    """Mean, and its 95 % interval by the percentile bootstrap (Efron and Tibshirani, 1993, chapter 13).

    Args:
        values: (N,); NaN values are left out.
        groups: the image of each value; images are drawn with all their values, since values of one image are not
            independent.

    Returns:
        The mean, NaN without a value; and the ends of the interval, NaN with values of only one image, which do not
        determine an interval.
    """
    middle, low, high = bootstraps(values[:, None], groups)[0].tolist()
    return middle, low, high


def bootstraps(values: Tensor, groups: Sequence[str]) -> Tensor:
    """`bootstrap` of each column of values (N,K), with the same draws: (K,3), in float64."""
    return interval(*resampled(values, groups))


def interval(mean: Tensor, draws: Tensor) -> Tensor:
    """Means (K) and the middle 95 % of their draws (S,K): (K,3). Draws without a value are left out."""
    ends = torch.tensor([0.025, 0.975], dtype=draws.dtype)
    return torch.stack([mean, *torch.nanquantile(draws, ends, dim=0)], -1)


def resampled(values: Tensor, groups: Sequence[str], samples: int = 10_000) -> tuple[Tensor, Tensor]:
    """Means (K) of the columns of values (N,K), and (S,K) of as many images drawn with replacement, in float64.

    Args:
        values: NaN values are left out; a mean without a value is NaN, and so are draws from only one image.
        groups: as in `bootstrap`; equal groups draw the same images.
        samples: number of resamples.
    """
    known = ~values.isnan()
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    columns = values.shape[1]
    if not names:
        return torch.full((columns,), torch.nan).double(), torch.full((1, columns), torch.nan).double()
    index = torch.tensor([names[group] for group in groups])
    sums, counts = (
        torch.zeros(len(names), columns, dtype=torch.float64).index_add_(0, index, numbers.double().cpu())
        for numbers in (values.nan_to_num(0), known)
    )
    enough = (counts > 0).sum(0) > 1
    generator = torch.Generator().manual_seed(0)
    means = []
    for start in range(0, samples, 1000):  # a million images need no more memory
        drawn = torch.randint(len(names), (min(1000, samples - start), len(names)), generator=generator)
        parts = drawn.split(max(1, 2**22 // sums.numel()))
        means += [sums[some].sum(1) / counts[some].sum(1) for some in parts]
    return sums.sum(0) / counts.sum(0), torch.cat(means).where(enough, torch.nan)


def with_interval(mean: float, low: float, high: float, form: str = ".3f") -> str:
    """A mean with its interval as formatted text; only the mean if a single image gives no interval."""
    text = format(mean, form)
    return text if math.isnan(low) else f"{text} [{low:{form}}, {high:{form}}]"


def with_intervals(table: Table, hidden: Collection[str] = (), plain: str = "") -> str:
    """A table as Markdown, with intervals next to their means.

    Args:
        table: its column ``name`` has an interval if there are columns ``name from`` and ``name to``.
        hidden: columns that are left out.
        plain: column whose interval is in the columns ``from`` and ``to``, if there is one.
    """
    ends = {name: (f"{name} from", f"{name} to") for name in table.columns if f"{name} from" in table.columns}
    if "from" in table.columns:
        ends[plain] = "from", "to"
    shown = [name for name in table.columns if name not in {*hidden, *chain(*ends.values())}]
    people = Table(shown)
    for cells in table.named():
        for name, (low, high) in ends.items():
            if not math.isnan(cells[low]):  # a single image gives no interval
                cells[name] = with_interval(cells[name], cells[low], cells[high])
        people.add(cells[name] for name in shown)
    return people.markdown()


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson, J. Am. Stat. Assoc. 1927), in [0,1]; NaN without trials.

    For ``trials`` numbers in [0,1] with this sum, it is a conservative interval of their mean.
    """
    if not trials:
        return math.nan, math.nan
    z = 1.959964
    rate, share = successes / trials, z**2 / trials
    middle = (rate + share / 2) / (1 + share)
    half = math.sqrt(rate * (1 - rate) * share + share**2 / 4) / (1 + share)
    return middle - half if successes > 0 else 0.0, middle + half if successes < trials else 1.0


EXACT = 13  # maximum number of images for which all signs are tried
SAMPLES = 10_000  # number of drawn choices of signs for more images


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
