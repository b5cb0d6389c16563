"""The two solvers: `Pruning` for games that keep a class, `Thresholding` for games that lose it.

Which entries they drop or add, gated gradients say alone; see `fgvis_lightning.method.solver` for what they share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fgvis_lightning.method.solver import Run, Solver, best_of, top

DROPPED = 2.0**-10
"""Evidence of less than a thousandth is none."""

FIRST_SHARE, FASTER = 0.02, 1.6
"""Share of the entries that `Thresholding` takes first, and what it grows by until the level is reached."""
FIRST_ADDED, ADDED_FASTER = 0.05, 4.0
"""Likewise of `Pruning`, where a game starts without evidence: soon more than is needed, which is then pruned."""
LARGEST_FACTOR = 4.0  # of a mean
CLOSE_ENOUGH = 1.05  # ratio of the factors that are and are not enough
LADDER = 1.5  # ratio of the steps that are tried at a time


class Pruning(Solver):
    """Starts from all of the image and drops what has least worth, for games that keep a class.

    Several runs prune hard: each drops a share of its entries, those of least worth, after the worth was shaken a
    little. The share grows after a success and falls after a failure. Hard prunings are grain; their mean,
    scaled by the smallest factor with which it reaches the level, is smooth, stable and smaller. From there, as a
    single run from the start, evidence is pruned softly: entries of less worth than a threshold fade, the less worth
    the faster::

        evidence ← best · exp(-step · max(0, 1 - worth / threshold))

    Where a game starts without evidence, the entries of most worth are added until the level is reached.

    Args:
        params: see `Solver`.
        share: that a hard pruning drops first.
        shake: standard deviation of the logarithm of what the worth is multiplied by in hard prunings.
        step: of the first soft pruning.
        memory: of the moving average of gradients.
        together: share of the iterations in which runs work together.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        share: float = 0.12,
        shake: float = 0.5,
        step: float = 0.6,
        memory: float = 0.8,
        together: float = 0.4,
    ) -> None:
        super().__init__(params, {"share": share, "shake": shake, "step": step, "memory": memory, "together": together})

    def first_amount(self, evidence: Tensor, group: dict[str, Any]) -> float:
        if not evidence.any():
            return FIRST_ADDED
        return float(group["step"] if len(group["params"]) == 1 else group["share"])

    def adapt(self, run: Run, good: bool, iteration: int, group: dict[str, Any]) -> None:
        run.ranking += run.best
        if run.reached < 0:
            run.amount = run.amount * ADDED_FASTER if iteration else FIRST_ADDED
        elif run.reached == iteration:
            run.amount = group["step"] if len(group["params"]) == 1 else group["share"]
        elif len(group["params"]) == 1:
            self._pace(run, good)
        else:
            run.amount *= 1.3 if good else 0.7

    def propose(self, run: Run, group: dict[str, Any]) -> Tensor:
        if run.reached < 0:
            return top(run.shaken(group["shake"] if len(group["params"]) > 1 else 0), min(run.amount, 1.0))
        return self._fade(run, run.amount) if len(group["params"]) == 1 else self._drop(run, group["shake"])

    def join(self, runs: Sequence[Run], group: dict[str, Any]) -> Run:
        good = [run for run in runs if run.reached >= 0]
        best = best_of(runs)
        worth, ranking, mean = (
            torch.stack([getattr(run, name) for run in good or runs]).mean(0) for name in ("worth", "ranking", "best")
        )
        amount = group["step"] if good else max(run.amount for run in runs)
        common = Run(best.best, worth, ranking, amount, best.draws, 1.0, best.lead, best.reached)
        common.margin = max(run.margin for run in runs)
        common.mean = mean
        return common

    def compare(self, common: Run, tried: Sequence[Tensor], leads: Sequence[float], iteration: int) -> None:
        if common.mean is not None:
            self._compare_factors(common, tried, leads, iteration)
            return
        before = common.size
        good = [common.take(evidence, lead, iteration) for evidence, lead in zip(tried, leads, strict=True)]
        common.ranking += common.best
        if common.reached < 0:
            return
        if common.size < before:
            sizes = [float(evidence.mean()) for evidence in tried]
            common.amount = min(
                trial for trial, size, ok in zip(common.trials, sizes, good, strict=True) if ok and size == common.size
            )
            common.threshold *= 1.1
        else:
            common.amount *= 0.5
            common.threshold *= 0.9
        common.amount = min(common.amount, 1.5)

    def _compare_factors(self, common: Run, tried: Sequence[Tensor], leads: Sequence[float], iteration: int) -> None:
        """Find the smallest factor with which the mean reaches the level, and start from there."""
        assert common.mean is not None
        for factor, evidence, lead in sorted(zip(common.trials, tried, leads, strict=True), key=lambda one: -one[0]):
            if lead >= common.margin and factor < common.high:
                common.high = factor
                common.best, common.lead, common.size = evidence.clone(), lead, float(evidence.mean())
                common.reached = iteration if common.reached < 0 else common.reached
            elif factor < common.high:
                common.low = max(common.low, factor)
        if common.low >= LARGEST_FACTOR or common.high < CLOSE_ENOUGH * common.low or common.high < 0.02:
            common.mean = None

    def go_on(self, common: Run, group: dict[str, Any]) -> list[Tensor]:
        count = len(group["params"])
        if common.mean is not None:
            high = min(common.high, LARGEST_FACTOR)
            low = max(common.low, high / 50)
            # Evenly spread in their logarithms, the largest one included where nothing was enough so far.
            last = count - 1 if math.isinf(common.high) and count > 1 else count + 1
            first = 0 if math.isinf(common.high) and count > 1 else 1
            common.trials = [low * (high / low) ** ((number + first) / last) for number in range(count)]
            return [(factor * common.mean).clamp(max=1) for factor in common.trials]
        if common.reached < 0:
            common.amount = min(common.amount * ADDED_FASTER, 1.0)
            common.trials = [common.amount * (number + 1) / count for number in range(count)]
            return [top(common.worth, share) for share in common.trials]
        common.trials = [common.amount * LADDER ** (number - (count - 1) / 2) for number in range(count)]
        return [self._fade(common, step) for step in common.trials]

    def _pace(self, run: Run, good: bool) -> None:
        run.amount = min(run.amount * (1.2 if good else 0.7), 1.5)
        run.threshold *= 1.1 if good else 0.9

    def _fade(self, run: Run, step: float) -> Tensor:
        """A soft pruning."""
        inside = run.best > 0
        mean = run.worth.sum() / inside.sum().clamp(min=1)  # hardly any worth is outside
        missing = (1 - run.worth / (run.threshold * mean).clamp(min=1e-30)).clamp(min=0)
        evidence = run.best * (-step * missing).exp()
        return torch.where(evidence < DROPPED, 0, evidence)

    def _drop(self, run: Run, shake: float) -> Tensor:
        """A hard pruning."""
        inside = run.best > 0
        count = int(inside.sum())
        dropped = min(max(1, round(count * min(run.amount, 1.0))), count - 1)
        if dropped < 1:
            return run.best
        worth = run.shaken(shake)
        # Chance alone decides between entries of equal worth, as those of none at all.
        chance = torch.rand(worth.shape, generator=run.draws, device=run.draws.device).to(worth)
        worth = worth + 1e-6 * worth.mean() * chance + 1e-30 * chance
        least = worth[inside].kthvalue(dropped).values
        return torch.where(worth > least, run.best, 0)


class Thresholding(Solver):
    """The entries of most worth are the evidence, whole, for games that lose a class.

    Entries may come back. Until the level is reached their share grows; a success tries a smaller share than the
    smallest evidence so far, a failure a slightly larger one than it was. Nothing is taken away in small steps, so the
    step at m = 1, which no gate holds back, does not exist.

    Args:
        params: see `Solver`.
        shrink: what a success multiplies the share by.
        grow: what a failure multiplies the share by.
        shake: standard deviation of the logarithm of what the worth is multiplied by where there are several runs.
        memory: of the moving average of gradients.
        together: share of the iterations in which runs work together.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        shrink: float = 0.85,
        grow: float = 1.08,
        shake: float = 0.5,
        memory: float = 0.9,
        together: float = 0.4,
    ) -> None:
        super().__init__(
            params, {"shrink": shrink, "grow": grow, "shake": shake, "memory": memory, "together": together}
        )

    def first_amount(self, evidence: Tensor, group: dict[str, Any]) -> float:
        return 1.0 if evidence.any() else FIRST_SHARE / FASTER

    def adapt(self, run: Run, good: bool, iteration: int, group: dict[str, Any]) -> None:
        if good:
            run.amount = group["shrink"] * run.size
        elif run.reached >= 0:
            run.amount = min(run.amount * group["grow"], run.size)
        else:
            run.amount = min(run.amount * FASTER, 1.0)
        run.ranking = run.worth

    def propose(self, run: Run, group: dict[str, Any]) -> Tensor:
        return top(run.shaken(group["shake"] if len(group["params"]) > 1 else 0), run.amount)

    def join(self, runs: Sequence[Run], group: dict[str, Any]) -> Run:
        good = [run for run in runs if run.reached >= 0]
        best = best_of(runs)
        worth = torch.stack([run.worth for run in runs]).mean(0)
        common = Run(best.best, worth, worth, 0.0, best.draws, 1.0, best.lead, best.reached)
        common.margin = max(run.margin for run in runs)
        common.amount = sum(run.size for run in good) / len(good) if good else max(run.amount for run in runs)
        common.mean = worth
        return common

    def compare(self, common: Run, tried: Sequence[Tensor], leads: Sequence[float], iteration: int) -> None:
        before = common.size
        if common.mean is not None and any(lead >= common.margin for lead in leads):
            common.mean, common.size, before = None, math.inf, math.inf  # from here on what is common is the best
        good = [common.take(evidence, lead, iteration) for evidence, lead in zip(tried, leads, strict=True)]
        if common.mean is not None:
            common.amount = min(common.amount * FASTER, 1.0)
        elif common.size < before:
            common.amount = common.size
        common.low = 0.6 if any(good) else min(0.97, common.low + 0.1)
        common.ranking = common.worth

    def go_on(self, common: Run, group: dict[str, Any]) -> list[Tensor]:
        count = len(group["params"])
        if common.mean is not None:
            shares = [min(1.0, common.amount * 1.2 ** (number - (count - 1) / 2)) for number in range(count)]
        else:
            low = max(common.low, 0.6)
            shares = [common.size * (low + (0.98 - low) * number / max(count - 1, 1)) for number in range(count)]
        return [top(common.worth, share) for share in shares]


SOLVERS: dict[str, Callable[[Iterable[Any]], Solver]] = {
    "preservation": Pruning,
    "generation": Pruning,
    "deletion": Thresholding,
    "repression": Thresholding,
}
"""The solver of each game, unless another is chosen."""
