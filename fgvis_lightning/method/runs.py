"""Runs: a solver's state for one mask, and comparisons between the runs of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MARGIN = 1e-3
"""Margin by which log-odds must exceed the level, so that rounding elsewhere does not push them below it.

If the best evidence so far has a smaller margin, that margin suffices: even the whole image may have no more.
"""


@dataclass
class Run:
    """A solver's state for one mask (C,H,W), or the common state of all masks of an image.

    Common evidence made from the mean replaces that of single runs, even if it is larger.
    """

    best: Tensor  # the smallest evidence that has reached the level; before that, the closest to it
    worth: Tensor  # moving average of gated gradients, at least 0
    ranking: Tensor  # how long and strongly an entry was evidence (`Pruning`), or its worth (`Thresholding`); ≥ 0
    amount: float  # depends on the solver: the share to drop, the share that is evidence, or the size of a step
    memory: float  # decay factor of the moving average
    shake: float  # standard deviation of the perturbations; 0 for a single run
    draws: torch.Generator  # random generator of the perturbations
    threshold: float = 1.0  # the worth below which an entry loses evidence, as a multiple of the mean worth
    even: float = 0.0  # the share of a step that reduces all entries
    brighter: Tensor | None = None  # evidence larger than ``best`` that is pruned instead
    vain: int = 0  # successive restarts of the pruning before which nothing was spared
    spared: float = math.inf  # size of the pruned evidence at the latest restart
    lead: float = -math.inf  # lead of ``best``, see `fgvis_lightning.method.level.lead`
    reached: int = -1  # the iteration in which the level was first reached, from 0; -1 before
    margin: float = MARGIN  # the amount by which the level must be exceeded
    sure: Tensor | None = None  # the best evidence when it was last confirmed; None before
    mean: Tensor | None = None  # mean of the runs' evidence or worth, until evidence made from it has reached the level
    trials: list[float] = field(default_factory=list)  # factors of the mean that the masks are trying
    low: float = 0.0  # the largest factor that was too small
    high: float = math.inf  # the smallest factor that was large enough
    size: float = field(init=False)  # mean of ``best``, 0 to 1

    def __post_init__(self) -> None:
        self.size = float(self.best.mean())

    @property
    def pruned(self) -> Tensor:
        """The evidence that a soft pruning continues from."""
        return self.best if self.brighter is None else self.brighter

    def take(self, evidence: Tensor, lead: float, iteration: int) -> bool:
        """Keep evidence that was tried if it is the best so far, and return whether it reaches the level."""
        good = lead >= min(max(self.lead, 0.0), self.margin)
        size = float(evidence.mean())
        first = self.reached < 0
        if good and self.brighter is not None:
            self.brighter = None if size <= self.size else evidence.clone()
        if (good and (first or size <= self.size)) or (first and lead > self.lead):
            self.best, self.lead, self.size = evidence.clone(), lead, size
        if good and first:
            self.reached = iteration
        return good

    def learn(self, gradients: Sequence[Tensor], keeps: bool) -> None:
        """Update the worth with gated gradients of the minimized objective, averaged if there are several.

        Args:
            gradients: gradients with respect to the masks (C,H,W).
            keeps: whether the masks are the evidence (true), or the image without it (false).
        """
        total = torch.zeros_like(self.worth)
        for gradient in gradients:
            helpful = (-gradient if keeps else gradient).clamp(min=0).nan_to_num(0, 0, 0)
            size = helpful.norm()
            total += helpful / torch.where(size > 0, size, 1)
        self.worth.lerp_(total / len(gradients), 1 - self.memory)

    def shaken(self) -> Tensor:
        """The worth, multiplied by exp(shake · normal noise)."""
        if not self.shake:
            return self.worth
        draw = torch.randn(self.worth.shape, generator=self.draws, device=self.draws.device, dtype=torch.float32)
        return self.worth * (self.shake * draw).exp().to(self.worth)


def best_of(runs: Sequence[Run]) -> Run:
    """The run with the smallest evidence that reaches the level; if none does, the run closest to it."""
    return min(runs, key=lambda run: (run.reached < 0, run.size if run.reached >= 0 else -run.lead))


def first_reached(runs: Sequence[Run]) -> int:
    """The iteration in which one of the runs first reached the level, from 0; -1 if none did."""
    return min((run.reached for run in runs if run.reached >= 0), default=-1)


def top(worth: Tensor, share: float) -> Tensor:
    """The entries of most worth as evidence (C,H,W) of 0 and 1.

    Entries of no worth count only for a share of 1. If entries tie for the last places, all of them are left out.
    """
    count = int(share * worth.numel())
    if count >= worth.numel():
        return torch.ones_like(worth)
    if count < 1:
        return torch.zeros_like(worth)
    return (worth > worth.flatten().kthvalue(worth.numel() - count).values).to(worth)


def agreement(evidence: Sequence[Tensor]) -> float:
    """Mean pairwise Pearson correlation of evidence (C,H,W), -1 to 1; NaN if all pairs contain a constant one."""
    matrix = torch.corrcoef(torch.stack([one.flatten().double() for one in evidence]))
    first, second = torch.triu_indices(len(matrix), len(matrix), offset=1, device=matrix.device)
    return float(matrix[first, second].nanmean())
