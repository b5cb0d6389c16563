"""Solvers: optimizers of the mask that look for the smallest evidence whose score reaches a level.

A solver is a ``torch.optim.Optimizer``. Its parameters are masks (C,H,W), a group for each image. In each iteration it
is told how far the masks as they are now reach beyond the level (`Solver.tell`), gets their gated gradients as any
optimizer does, and puts the masks that are to be tried next in their place (``step``). Every entry that it drops or
adds is chosen by gated gradients::

    worth     moving average of the helpful part of the gated gradient at what was tried, each divided by its size
    best      the smallest evidence that has reached the level so far; nothing else is ever the result

Several masks of one image are *runs* with small disturbances of their own. First each looks for its own best
evidence. Then they are joined: from the mean of what they found, a few iterations of all masks find evidence that
reaches the level, and one run goes on from there in the first mask alone. So an explanation depends little on chance,
and what the runs agree on is known.

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

STORAGE = torch.float16
"""Type of evidence as files hold it: what is tried is what is stored.

A score computed from it differs by less than 0.001 from that of the exact one.
"""


@dataclass
class Run:
    """What a solver knows of one mask (C,H,W), or of what all masks of an image have in common.

    Attributes:
        best: the smallest evidence that has reached the level; before that, the nearest to it.
        lead: of ``best``, see `fgvis_lightning.method.level.lead`.
        worth: moving average of gated gradients, at least 0.
        ranking: how long, or how much, an entry was held to be evidence, at least 0.
        amount: the solver's own: the share to drop, the share that is evidence, or the size of a step.
        memory: of the moving average.
        shake: standard deviation of the disturbances; 0 for a run on its own.
        threshold: the worth below which an entry loses evidence, as a multiple of the mean.
        even: the share of a step that all entries lose evidence by.
        draws: random numbers for the disturbances.
        reached: the iteration after which the level was first reached, from 0; -1 before.
        margin: by how much the level is to be exceeded.
        sure: the best evidence when it was last confirmed; None before.
        mean: of the runs' evidence or worth, until something made from it has reached the level.
        trials: the factor of the mean that each mask is trying.
        low: the largest factor that was too small; and
        high: the smallest one that was enough.
    """

    best: Tensor
    worth: Tensor
    ranking: Tensor
    amount: float
    memory: float
    shake: float
    draws: torch.Generator
    threshold: float = 1.0
    even: float = 0.0
    lead: float = -math.inf
    reached: int = -1
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

    def learn(self, gradients: Sequence[Tensor], keeps: bool) -> None:
        """Take in gated gradients of what is minimized, their mean where there are several.

        Args:
            gradients: to the masks (C,H,W).
            keeps: whether the masks are the evidence, or what is left of the image without it.
        """
        total = torch.zeros_like(self.worth)
        for gradient in gradients:
            helpful = (-gradient if keeps else gradient).clamp(min=0).nan_to_num(0, 0, 0)
            size = helpful.norm()
            total += helpful / torch.where(size > 0, size, 1)
        self.worth.lerp_(total / len(gradients), 1 - self.memory)

    def shaken(self) -> Tensor:
        """The worth times exp(shake · normal)."""
        if not self.shake:
            return self.worth
        draw = torch.randn(self.worth.shape, generator=self.draws, device=self.draws.device, dtype=torch.float32)
        return self.worth * (self.shake * draw).exp().to(self.worth)


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

    @property
    def finishing(self) -> bool:
        """Whether only the first mask of each image is still in use."""
        return all(self._in_use(group) == 1 for group in self.param_groups)

    def _in_use(self, group: dict[str, Any]) -> int:
        common = self.state[group["params"][0]].get("together")
        return 1 if common is not None and common.mean is None else len(group["params"])

    def tell(self, leads: Tensor) -> None:
        """How far the masks as they are now reach beyond the level, in the order of the parameters.

        Args:
            leads: of all masks (P,), or, where the solver is `finishing`, of the first one of each group.
        """
        self._leads = leads.tolist()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Judge the masks by what `tell` was given, learn from their gradients, and put the next ones in place."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        leads = iter(self._leads)
        told_of_all = len(self._leads) == sum(len(group["params"]) for group in self.param_groups)
        for group in self.param_groups:
            self._step(group, list(itertools.islice(leads, len(group["params"]) if told_of_all else 1)))
        self._leads = []
        return loss

    def _step(self, group: dict[str, Any], leads: list[float]) -> None:
        masks, keeps = group["params"], group["keeps"]
        if not leads or any(mask.grad is None for mask in masks):  # a step that a gradient scaler leaves out
            return
        state, count = self.state[masks[0]], self._in_use(group)
        tried = [mask if keeps else 1 - mask for mask in masks[:count]]
        gradients = [mask.grad for mask in masks[:count]]
        iteration = state["iteration"] = state.get("iteration", -1) + 1
        if "together" in state:
            common: Run = state["together"]
            common.learn(gradients, keeps)
            if common.mean is None:
                self._go_on(common, tried[0], leads[0], iteration, group)
            else:
                self.compare(common, tried, leads, iteration, group)
            proposals = self._next(common, group)
        else:
            runs = []
            for number, (mask, evidence, gradient, lead) in enumerate(zip(masks, tried, gradients, leads, strict=True)):
                if "run" not in self.state[mask]:
                    self.state[mask]["run"] = self.begin(evidence, group, number)
                run: Run = self.state[mask]["run"]
                run.learn([gradient], keeps)
                self._go_on(run, evidence, lead, iteration, group)
                runs.append(run)
            if len(masks) > 1 and iteration + 1 >= self.alone(group):
                state["agreement"] = agreement([run.best for run in runs])
                state["together"] = common = self.join(runs, group)
                proposals = self._next(common, group)
            else:
                proposals = [self.propose(run) for run in runs]
        for mask, evidence in zip(masks, proposals, strict=True):
            evidence = evidence.to(STORAGE).to(mask.dtype)
            mask.copy_(evidence if keeps else 1 - evidence)

    def _go_on(self, run: Run, evidence: Tensor, lead: float, iteration: int, group: dict[str, Any]) -> None:
        good = run.take(evidence, lead, iteration)
        self.adapt(run, good, iteration, group)

    def _next(self, common: Run, group: dict[str, Any]) -> Sequence[Tensor]:
        """What each mask is to try next; where one run goes on, all masks are its."""
        count = len(group["params"])
        return [self.propose(common)] * count if common.mean is None else self.search(common, count)

    # --- what is known of an image ---

    def found(self, group: dict[str, Any]) -> Run | None:
        """The best evidence of an image so far; None before the first step."""
        masks = group["params"]
        if "together" in self.state[masks[0]]:
            return self.state[masks[0]]["together"]
        runs: list[Run] = [self.state[mask]["run"] for mask in masks if "run" in self.state[mask]]
        return best_of(runs) if runs else None

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
        return max(1, round(group["alone"] * group["iterations"]))

    def begin(self, evidence: Tensor, group: dict[str, Any], number: int) -> Run:
        """What is known before the first iteration of the run of this number."""
        draws = torch.Generator(evidence.device).manual_seed(group["seed"] + number)
        shake = group["shake"] if len(group["params"]) > 1 else 0.0
        zero = torch.zeros_like(evidence)
        return Run(evidence.clone(), zero, zero.clone(), 0.0, group["memory"], shake, draws)

    @abstractmethod
    def adapt(self, run: Run, good: bool, iteration: int, group: dict[str, Any]) -> None:
        """Change a run's pace after evidence that reached the level, or did not."""

    @abstractmethod
    def propose(self, run: Run) -> Tensor:
        """The evidence (C,H,W) that a run is to try next."""

    @abstractmethod
    def join(self, runs: Sequence[Run], group: dict[str, Any]) -> Run:
        """What the runs have in common: their `Run.mean`."""

    @abstractmethod
    def search(self, common: Run, count: int) -> list[Tensor]:
        """Evidence made from the mean for each mask (``count`` of (C,H,W)), to find out what reaches the level."""

    @abstractmethod
    def compare(
        self, common: Run, tried: Sequence[Tensor], leads: Sequence[float], iteration: int, group: dict[str, Any]
    ) -> None:
        """Judge what the masks tried of the mean; where the search is over, there is no mean any more."""


def best_of(runs: Sequence[Run]) -> Run:
    """The run with the smallest evidence that reaches the level; where none does, the nearest to it."""
    return min(runs, key=lambda run: (run.reached < 0, run.size if run.reached >= 0 else -run.lead))


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
