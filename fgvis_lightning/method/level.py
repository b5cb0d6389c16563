"""The level: which score an explanation is to reach, and by how much a mask does.

A fixed λ trades size against score at a rate that nobody knows in advance. ``lam: auto`` solves the constrained problem
that λ stands for (the Lagrangian of Wagner et al., CVPR 2019, eq. 1 to 6): the smallest evidence with which the class
keeps at least ``level`` times the image's own score (preservation, generation), or is left with at most so much
(deletion, repression). All is compared as log-odds, log p/(1 - p), which are exact where p is near 0 or 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fgvis_lightning.method.games import Game
from fgvis_lightning.method.tasks import MULTICLASS, Task


def bound(level: float, logits: Tensor, targets: Tensor, task: Task = MULTICLASS) -> Tensor:
    """The log-odds that the level stands for (B,).

    Args:
        level: share of the image's own score, more than 0.
        logits: of the images (B,K).
        targets: target classes (B,).
        task: what the logits say of a class.

    Returns:
        Log-odds of ``level`` times the image's probability; infinite where that is 1 or more.
    """
    logits = exact(logits)
    if level == 1:  # from the same numbers as the log-odds that it is compared with
        return task.log_odds(logits, targets)
    log_p = math.log(level) + task.log_probability(logits, targets)
    return torch.where(log_p < 0, log_p - torch.log(-torch.expm1(log_p.clamp(max=-1e-30))), torch.inf)


def lead(game: Game, logits: Tensor, targets: Tensor, bound: Tensor, task: Task = MULTICLASS) -> Tensor:
    """Log-odds minus the bound, or the negative where the class is to go (B,): at least 0 where the level is reached.

    Args:
        game: whether the class is to stay or to go.
        logits: of the explanations (B,K).
        targets: target classes (B,).
        bound: as `bound` gives it (B,).
        task: as there.
    """
    ahead = task.log_odds(exact(logits), targets) - bound
    return ahead if game.keeps else -ahead


def exact(logits: Tensor) -> Tensor:
    """At least float32; not always float64, which not every device has."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
