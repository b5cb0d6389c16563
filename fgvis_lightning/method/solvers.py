"""Solvers: optimizers of the mask that look for the smallest evidence whose score reaches a level.

A solver is a ``torch.optim.Optimizer``. Its parameters are masks (C,H,W), a group for each image. In each iteration it
is told how far the masks as they are now reach beyond the level (`Solver.tell`), gets their gated gradients as any
optimizer does, and puts the masks that are to be tried next in their place (``step``). Every entry that it drops or
adds is chosen by gated gradients::

    worth     moving average of the helpful part of the gated gradient at what was tried, each divided by its size
    best      the smallest evidence that has reached the level so far; nothing else is ever the result

Several masks of one image are *runs* with small disturbances of their own. First each looks for its own best
evidence; then all of them work on what they have in common, the mean of their evidence, and each iteration tries as
many steps from it as there are runs. So an explanation depends little on chance, and what the runs agree on is known.

Worth is what a neuron in the range of the image says (`fgvis_lightning.method.gates`). No solver takes a step of the
gradient's size: at m = 1 all gates are open, and one such step can take a class away with next to no evidence.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fgvis_lightning.method.games import Game

MARGIN = 1e-3
"""By how much the log-odds must be better than asked for, so that rounding elsewhere does not undo it.

Less will do where the best evidence so far has less: an image can be its own limit.
"""

STORAGE = torch.float16  # evidence as files hold it: what is tried is what is stored
DROPPED = 2.0**-10
"""Evidence of less than a thousandth is none."""

FIRST_SHARE, FASTER = 0.02, 1.6
"""Share of the entries that `Thresholding` takes first, and what it grows by until the level is reached."""
FIRST_ADDED, ADDED_FASTER = 0.05, 4.0
"""Likewise of `Pruning`, where a game starts without evidence: soon more than is needed, which is then pruned."""
LARGEST_FACTOR = 4.0  # of a mean
CLOSE_ENOUGH = 1.05  # ratio of the factors that are and are not enough
LADDER = 1.5  # ratio of the steps that are tried at a time


@dataclass
class Run:
    """What a solver knows of one mask (C,H,W), or of what all masks of an image have in common.

    Attributes:
        best: the smallest evidence that has reached the level; before that, the nearest to it.
        lead: of ``best``, see `fgvis_lightning.method.level.lead`.
        worth: moving average of gated gradients, at least 0.
        ranking: how long, or how much, an entry was held to be evidence, at least 0.
        amount: the solver's own: the share to drop, the share that is evidence, or the size of a step.
        threshold: the worth below which an entry loses evidence, as a multiple of the mean.
        draws: random numbers for the disturbances.
        reached: the iteration after which the level was first reached, from 0; -1 before.
        learned: how many gradients ``worth`` is made of.
        margin: by how much the level is to be exceeded.
        sure: the best evidence when it was last confirmed; None before.
        mean: of the runs' evidence, where there is something in common.
        trials: what each mask is trying from there: a factor of the mean, the size of a step, or a share.
        low: the largest factor that was too small; and
        high: the smallest one that was enough.
    """

    best: Tensor
    worth: Tensor
    ranking: Tensor
    amount: float
    draws: torch.Generator
    threshold: float = 1.0
    lead: float = -math.inf
    reached: int = -1
    learned: int = 0
    margin: float = MARGIN
    sure: Tensor | None = None
    mean: Tensor | None = None
    trials: list[float] = field(default_factory=list)
    low: float = 0.0
    high: float = math.inf
    size: float = field(init=False)

    def __post_init__(self) -> None:
        self.size = float(self.best.mean())

    def take(self, evidence: Tensor, lead: float, iteration: int) -> bool:
        """Judge evidence that was tried, and keep it if it is the best; whether it reaches the level."""
        good = lead >= min(max(self.lead, 0.0), self.margin)
        size = float(evidence.mean())
        first = self.reached < 0
        if (good and (first or size <= self.size)) or (first and lead > self.lead):
            self.best, self.lead, self.size = evidence.clone(), lead, size
        if good and first:
            self.reached = iteration
        return good

    def learn(self, gradients: Sequence[Tensor], keeps: bool, memory: float) -> None:
        """Take in gated gradients of what is minimized, their mean where there are several.

        Args:
            gradients: to the masks (C,H,W).
            keeps: whether the masks are the evidence, or what is left of the image without it.
            memory: of the moving average, 0 to 1.
        """
        total = torch.zeros_like(self.worth)
        for gradient in gradients:
            helpful = (-gradient if keeps else gradient).clamp(min=0).nan_to_num(0, 0, 0)
            size = helpful.norm()
            total += helpful / torch.where(size > 0, size, 1)
        self.worth.lerp_(total / len(gradients), 1 - memory)
        self.learned += 1

    def shaken(self, by: float) -> Tensor:
        """The worth times exp(by · normal)."""
        if not by:
            return self.worth
        draw = torch.randn(self.worth.shape, generator=self.draws, device=self.draws.device, dtype=torch.float32)
        return self.worth * (by * draw).exp().to(self.worth)


class Solver(Optimizer, ABC):
    """What both solvers share: who is told what, and when runs come together.

    Args:
        params: masks (C,H,W) in [0,1] of one image, or groups of them, one for each image. A group may have, beside
            the solver's own options:

            - ``keeps``: whether the class is to stay, so that the mask is the evidence, or to go, so that 1 - mask is;
            - ``iterations``: how many there will be;
            - ``seed``: of the disturbances.
        defaults: options of groups that do not have them.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, {"keeps": True, "iterations": 60, "seed": 0, **defaults})
        self._leads: list[float] = []

    def tell(self, leads: Tensor) -> None:
        """How far the masks as they are now reach beyond the level (P,), in the order of the parameters."""
        self._leads = leads.tolist()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Judge the masks by what `tell` was given, learn from their gradients, and put the next ones in place."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        leads = iter(self._leads)
        for group in self.param_groups:
            self._step(group, list(itertools.islice(leads, len(group["params"]))))
        self._leads = []
        return loss

    def _step(self, group: dict[str, Any], leads: list[float]) -> None:
        masks, keeps = group["params"], group["keeps"]
        if not leads or any(mask.grad is None for mask in masks):  # a step that a gradient scaler leaves out
            return
        tried = [mask if keeps else 1 - mask for mask in masks]
        gradients = [mask.grad for mask in masks]
        state = self.state[masks[0]]
        iteration = state["iteration"] = state.get("iteration", -1) + 1
        if "together" in state:
            common: Run = state["together"]
            common.learn(gradients, keeps, group["memory"])
            self.compare(common, tried, leads, iteration)
            proposals = self.go_on(common, group)
        else:
            runs = []
            for number, (mask, evidence, gradient, lead) in enumerate(zip(masks, tried, gradients, leads, strict=True)):
                if "run" not in self.state[mask]:
                    self.state[mask]["run"] = self.begin(evidence, group, number)
                run: Run = self.state[mask]["run"]
                run.learn([gradient], keeps, group["memory"])
                good = run.take(evidence, lead, iteration)
                self.adapt(run, good, iteration, group)
                runs.append(run)
            if len(masks) > 1 and iteration + 1 >= self.alone(group):
                state["agreement"] = agreement([run.best for run in runs])
                state["together"] = common = self.join(runs, group)
                proposals = self.go_on(common, group)
            else:
                proposals = [self.propose(run, group) for run in runs]
        for mask, evidence in zip(masks, proposals, strict=True):
            evidence = evidence.to(STORAGE).to(mask.dtype)
            mask.copy_(evidence if keeps else 1 - evidence)

    # --- what is known of an image ---

    def found(self, group: dict[str, Any]) -> Run | None:
        """The best evidence of an image so far; None before the first step."""
        masks = group["params"]
        if "together" in self.state[masks[0]]:
            return self.state[masks[0]]["together"]
        runs: list[Run] = [self.state[mask]["run"] for mask in masks if "run" in self.state[mask]]
        if not runs:
            return None
        return min(runs, key=lambda run: (run.reached < 0, run.size if run.reached >= 0 else -run.lead))

    def agreement(self, group: dict[str, Any]) -> float:
        """Mean correlation of the runs' evidence, before they come together; NaN with fewer than two."""
        masks = group["params"]
        known = self.state[masks[0]].get("agreement")
        runs = [self.state[mask]["run"].best for mask in masks if "run" in self.state[mask]]
        return float("nan") if len(runs) < 2 else agreement(runs) if known is None else known

    def ranking(self, group: dict[str, Any]) -> Tensor:
        """How much each entry matters (C,H,W), 0 to 1: when it was given up, squared, and a tenth where it was.

        The order is what counts; so shaped, most of the sum is in the evidence.
        """
        run = self.found(group)
        if run is None:
            return torch.zeros_like(group["params"][0])
        share = run.ranking / run.ranking.max().clamp(min=1e-30)
        return share.square() * torch.where(run.best > 0, 1.0, 0.1)

    def confirm(self, group: dict[str, Any], lead: float) -> None:
        """Take in the lead of the best evidence by the network that judges the result.

        Under mixed precision the iterations are off by some tenths of log-odds. Evidence that falls short gives way to
        what was last confirmed, or gets a fifth of what is missing back, and what is tried from there needs as much
        more as it was too good by.
        """
        run = self.found(group)
        if run is None or run.reached < 0:
            return
        if lead >= 0:
            run.sure = run.best
            return
        run.margin = max(run.margin, run.lead - lead + MARGIN)
        run.best = run.sure if run.sure is not None else run.best + 0.2 * (1 - run.best)
        run.size, run.lead = float(run.best.mean()), run.margin

    # --- what a solver decides ---

    @staticmethod
    def alone(group: dict[str, Any]) -> int:
        """How many iterations the runs have on their own."""
        return max(1, round((1 - group["together"]) * group["iterations"]))

    def begin(self, evidence: Tensor, group: dict[str, Any], number: int) -> Run:
        """What is known before the first iteration of the run of this number."""
        draws = torch.Generator(evidence.device).manual_seed(group["seed"] + number)
        zero = torch.zeros_like(evidence)
        return Run(evidence.clone(), zero, zero.clone(), self.first_amount(evidence, group), draws)

    @abstractmethod
    def first_amount(self, evidence: Tensor, group: dict[str, Any]) -> float:
        """``Run.amount`` at the beginning."""

    @abstractmethod
    def adapt(self, run: Run, good: bool, iteration: int, group: dict[str, Any]) -> None:
        """Change a run's pace after evidence that reached the level, or did not."""

    @abstractmethod
    def propose(self, run: Run, group: dict[str, Any]) -> Tensor:
        """The evidence (C,H,W) that a run is to try next."""

    @abstractmethod
    def join(self, runs: Sequence[Run], group: dict[str, Any]) -> Run:
        """What the runs have in common."""

    @abstractmethod
    def compare(self, common: Run, tried: Sequence[Tensor], leads: Sequence[float], iteration: int) -> None:
        """Judge what the masks tried from what is common."""

    @abstractmethod
    def go_on(self, common: Run, group: dict[str, Any]) -> list[Tensor]:
        """What each mask is to try next (K of (C,H,W)), all from what is common."""


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
        best = min(good or runs, key=lambda run: run.size if good else -run.lead)
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
        best = min(good or runs, key=lambda run: run.size if good else -run.lead)
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
            common.trials = [min(1.0, common.amount * 1.2 ** (number - (count - 1) / 2)) for number in range(count)]
        else:
            low = max(common.low, 0.6)
            common.trials = [common.size * (low + (0.98 - low) * number / max(count - 1, 1)) for number in range(count)]
        return [top(common.worth, share) for share in common.trials]


def top(worth: Tensor, share: float) -> Tensor:
    """The entries of most worth as evidence (C,H,W) of 0 and 1; those of no worth only where all are asked for."""
    count = int(share * worth.numel())
    if count >= worth.numel():
        return torch.ones_like(worth)
    if count < 1:
        return torch.zeros_like(worth)
    return (worth > worth.flatten().kthvalue(worth.numel() - count).values).to(worth)


def agreement(evidence: Sequence[Tensor]) -> float:
    """Mean correlation (Pearson) of the pairs of evidence (C,H,W), -1 to 1; NaN where none varies."""
    rows = torch.stack([one.flatten().double() for one in evidence])
    rows = rows - rows.mean(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True)
    pairs = [float(one @ other) for one, other in itertools.combinations(rows, 2)]
    known = [pair for pair in pairs if not math.isnan(pair)]
    return sum(known) / len(known) if known else math.nan


Judge = Callable[[Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def give_back(best: Tensor, game: Game, judge: Judge) -> tuple[Tensor, Tensor, Tensor]:
    """The best masks as files hold them, confirmed by the network that judges them.

    Where rounding or another precision has spoiled a mask that had reached its level, evidence is given back evenly
    until it does again.

    Args:
        best: masks (B,3,H,W).
        game: whose they are.
        judge: of masks, the plain network's logits (B,K) and the leads (B,).

    Returns:
        Masks (B,3,H,W), their logits (B,K) and leads (B,).
    """
    evidence = game.evidence(best)
    masks = game.evidence(evidence.to(STORAGE).to(best.dtype))
    logits, leads = judge(masks)
    nearest = masks, logits, leads
    for back in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
        short = (leads < 0)[:, None, None, None]
        if not short.any():
            break
        more = game.evidence((evidence + back * (1 - evidence)).to(STORAGE).to(best.dtype))
        masks = torch.where(short, more, masks)
        logits, leads = judge(masks)
    # Where even all of the image does not, what was found stays.
    missed = leads < 0
    return (
        torch.where(missed[:, None, None, None], nearest[0], masks),
        torch.where(missed[:, None], nearest[1], logits),
        torch.where(missed, nearest[2], leads),
    )


SOLVERS: dict[str, Callable[[Iterable[Any]], Solver]] = {
    "preservation": Pruning,
    "generation": Pruning,
    "deletion": Thresholding,
    "repression": Thresholding,
}
"""The solver of each game, unless another is chosen."""
