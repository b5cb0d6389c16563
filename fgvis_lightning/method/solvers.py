"""The two solvers: `Pruning` for games that keep a class, `Thresholding` for games that lose it.

Gated gradients alone determine which entries they drop or add. Their common base is `fgvis_lightning.method.solver`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fgvis_lightning.method.runs import Run, best_of, top
from fgvis_lightning.method.solver import Solver

DROPPED = 2.0**-10
"""Smaller evidence, below about a thousandth, is set to 0."""

FIRST_SHARE, FASTER = 0.02, 1.6
"""First share of entries of `Thresholding`, and its growth factor until the level is reached."""
FADED_IN, BRIGHTER = 0.1, 2.0
"""First evidence of all entries of `Pruning` in games that start without any, and its growth factor."""
LARGEST_FACTOR = 4.0  # of a mean
CLOSE_ENOUGH = 1.05  # ratio of the factors that are and are not enough
STALLED = 0.2
"""Step size below which a soft pruning restarts with a larger step and a shorter memory."""
IN_VAIN, LIGHTER = 8, 1.2
"""Successive restarts in vain after which a soft pruning goes on from this multiple of the best evidence."""


class Pruning(Solver):
    """Starts from the whole image and drops the entries of least worth, for games that keep a class.

    Several runs prune hard: each drops a share of its entries, those with the least slightly perturbed worth. The share
    grows after a success and shrinks after a failure. Masks from hard pruning are grainy; their mean, scaled by the
    smallest factor that reaches the level, is smooth, stable and smaller. From there (or from the start, for a single
    run), evidence is pruned softly: all of it fades a little, and entries below a threshold of worth fade faster, the
    less worth they have::

        evidence ← best · exp(-step · max(even, 1 - worth / threshold))

    The even part keeps the image smooth during pruning, since roughness by itself costs score. When the pruning stalls
    because no evidence can be spared, it restarts, alternately with and without the even part. After restarts in vain,
    it goes on from brighter evidence than the best, which can spare other entries: a search by hops from one local
    minimum to the next (basin hopping, Wales and Doye, 1997).

    In games that start without evidence, the image fades in evenly until the level is reached.

    Args:
        params: see `Solver`.
        share: first share of entries that a hard pruning drops.
        shake: standard deviation of the logarithm of the factor that perturbs the worth in hard prunings.
        step: first step size of the soft pruning of a single run; a third of it after a stall, or after several runs.
        even: part of a step that all entries take, until it stalls, and after every other stall.
        memory: decay factor of the moving average of gradients in hard prunings.
        long: decay factor in a soft pruning from the start.
        short: decay factor after a stall.
        alone: share of the iterations in which several runs search separately.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        share: float = 0.12,
        shake: float = 0.5,
        step: float = 0.9,
        even: float = 0.15,
        memory: float = 0.8,
        long: float = 0.9,
        short: float = 0.6,
        alone: float = 0.15,
    ) -> None:
        options = {"share": share, "shake": shake, "step": step, "even": even, "alone": alone}
        super().__init__(params, {**options, "memory": memory, "long": long, "short": short})

    def begin(self, evidence: Tensor, group: dict[str, Any], number: int) -> Run:
        run = super().begin(evidence, group, number)
        run.even = group["even"]
        if not run.shake:
            run.memory = group["long"]
        return run

    def adapt(self, run: Run, good: bool, iteration: int, group: dict[str, Any]) -> None:
        run.ranking += run.best
        if run.reached < 0:
            run.amount = min(run.amount * BRIGHTER, 1.0) if iteration else FADED_IN
        elif run.reached == iteration:
            run.amount = group["share"] if run.shake else group["step"]
        elif run.shake:
            run.amount *= 1.3 if good else 0.7
        else:
            run.amount = min(run.amount * (1.2 if good else 0.7), 1.5)
            run.threshold *= 1.1 if good else 0.9
            if run.amount < STALLED:
                self._restart(run, group)

    def _restart(self, run: Run, group: dict[str, Any]) -> None:
        self._refresh(run, group)
        run.even = 0.0 if run.even else group["even"]
        size = float(run.pruned.mean())
        run.vain = 0 if size < run.spared else run.vain + 1
        run.spared = size
        if run.vain == IN_VAIN:
            run.vain, run.brighter = 0, (LIGHTER * run.best).clamp(max=1)
            run.spared = float(run.pruned.mean())

    @staticmethod
    def _refresh(run: Run, group: dict[str, Any]) -> None:
        run.amount, run.threshold, run.memory = group["step"] / 3, 1.0, group["short"]

    def propose(self, run: Run) -> Tensor:
        if run.reached < 0:
            return torch.full_like(run.best, run.amount)
        return self._drop(run) if run.shake else self._fade(run)

    def join(self, runs: Sequence[Run], group: dict[str, Any]) -> Run:
        good = [run for run in runs if run.reached >= 0]
        best = best_of(runs)
        worth, ranking, mean = (
            torch.stack([getattr(run, name) for run in good or runs]).mean(0) for name in ("worth", "ranking", "best")
        )
        amount = max(run.amount for run in runs)
        return Run(best.best, worth, ranking, amount, group["memory"], 0.0, best.draws, even=group["even"], mean=mean)

    def search(self, common: Run, count: int) -> list[Tensor]:
        assert common.mean is not None
        high = min(common.high, LARGEST_FACTOR)
        low = max(common.low, high / 50)
        # Evenly spread logarithms; the largest factor is included if none was large enough so far.
        last = count - 1 if math.isinf(common.high) and count > 1 else count + 1
        first = 0 if math.isinf(common.high) and count > 1 else 1
        common.trials = [low * (high / low) ** ((number + first) / last) for number in range(count)]
        return [(factor * common.mean).clamp(max=1) for factor in common.trials]

    def compare(
        self, common: Run, tried: Sequence[Tensor], leads: Sequence[float], iteration: int, group: dict[str, Any]
    ) -> None:
        common.ranking += common.best
        for factor, evidence, lead in sorted(zip(common.trials, tried, leads, strict=True), key=lambda one: -one[0]):
            if lead >= common.margin and factor < common.high:
                common.high = factor
                common.best, common.lead, common.size = evidence.clone(), lead, float(evidence.mean())
                common.reached = iteration if common.reached < 0 else common.reached
            elif factor < common.high:
                common.low = max(common.low, factor)
        if common.low >= LARGEST_FACTOR or common.high < CLOSE_ENOUGH * common.low or common.high < 0.02:
            common.mean = None
            if common.reached >= 0:
                self._refresh(common, group)

    def _fade(self, run: Run) -> Tensor:
        """A soft pruning."""
        mean = run.worth.sum() / (run.pruned > 0).sum().clamp(min=1)  # there is hardly any worth outside
        missing = (1 - run.worth / (run.threshold * mean).clamp(min=1e-30)).clamp(min=run.even)
        evidence = run.pruned * (-run.amount * missing).exp()
        return torch.where(evidence < DROPPED, 0, evidence)

    def _drop(self, run: Run) -> Tensor:
        """A hard pruning."""
        inside = run.best > 0
        count = int(inside.sum())
        dropped = min(max(1, round(count * min(run.amount, 1.0))), count - 1)
        if dropped < 1:
            return run.best
        worth = run.shaken()
        # Ties are broken at random, also among entries of zero worth.
        chance = torch.rand(worth.shape, generator=run.draws, device=run.draws.device).to(worth)
        worth = worth + 1e-6 * worth.mean() * chance + 1e-30 * chance
        least = worth[inside].kthvalue(dropped).values
        return torch.where(worth > least, run.best, 0)


class Thresholding(Solver):
    """Removes the entries of most worth completely, for games that lose a class.

    Entries may return. Until the level is reached, their share grows. After a success, the next share is smaller than
    the smallest evidence so far; after a failure, it is slightly larger than before. Nothing is removed in small steps,
    so there is no ungated step at m = 1. Several runs are joined by averaging their worth.

    Args:
        params: see `Solver`.
        shrink: factor of the share after a success.
        grow: factor of the share after a failure.
        shake: standard deviation of the logarithm of the factor that perturbs the worth of several runs.
        memory: decay factor of each run's moving average of gradients.
        long: decay factor after the runs are joined; larger values give more stable and larger evidence.
        alone: share of the iterations in which several runs search separately.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        shrink: float = 0.85,
        grow: float = 1.08,
        shake: float = 0.5,
        memory: float = 0.9,
        long: float = 0.98,
        alone: float = 0.15,
    ) -> None:
        options = {"shrink": shrink, "grow": grow, "shake": shake, "alone": alone}
        super().__init__(params, {**options, "memory": memory, "long": long})

    def begin(self, evidence: Tensor, group: dict[str, Any], number: int) -> Run:
        run = super().begin(evidence, group, number)
        run.amount = 1.0 if evidence.any() else FIRST_SHARE / FASTER
        return run

    def adapt(self, run: Run, good: bool, iteration: int, group: dict[str, Any]) -> None:
        if good:
            run.amount = group["shrink"] * run.size
        elif run.reached >= 0:
            run.amount = min(run.amount * group["grow"], run.size)
        else:
            run.amount = min(run.amount * FASTER, 1.0)
        run.ranking = run.worth

    def propose(self, run: Run) -> Tensor:
        return top(run.shaken(), run.amount)

    def join(self, runs: Sequence[Run], group: dict[str, Any]) -> Run:
        good = [run for run in runs if run.reached >= 0]
        best = best_of(runs)
        worth = torch.stack([run.worth for run in runs]).mean(0)
        amount = sum(run.size for run in good) / len(good) if good else max(run.amount for run in runs)
        return Run(best.best, worth, worth, amount, group["long"], 0.0, best.draws, mean=worth)

    def search(self, common: Run, count: int) -> list[Tensor]:
        return [
            top(common.worth, min(1.0, common.amount * 1.2 ** (number - (count - 1) / 2))) for number in range(count)
        ]

    def compare(
        self, common: Run, tried: Sequence[Tensor], leads: Sequence[float], iteration: int, group: dict[str, Any]
    ) -> None:
        if any(lead >= common.margin for lead in leads):
            common.mean, common.size = None, math.inf  # from here on, the common run has the best evidence
        good = [common.take(evidence, lead, iteration) for evidence, lead in zip(tried, leads, strict=True)]
        if common.mean is None:
            self.adapt(common, any(good), iteration, group)
        else:
            common.amount = min(common.amount * FASTER, 1.0)


SOLVERS: dict[str, Callable[[Iterable[Any]], Solver]] = {
    "preservation": Pruning,
    "generation": Pruning,
    "deletion": Thresholding,
    "repression": Thresholding,
}
"""Default solver of each game."""
