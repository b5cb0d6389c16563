"""The level: the score that an explanation must reach, and the distance of a mask's score from it.

A fixed λ trades size against score at a rate that is not known in advance. ``lam: auto`` solves the constrained problem
whose Lagrangian has λ (Wagner et al., CVPR 2019, eq. 1 to 6): the smallest evidence with which the class has at least
``level`` times the image's own score (preservation, generation), or at most that score (deletion, repression). Scores
are compared as log-odds, log p/(1 - p), which are exact for p near 0 or 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fgvis_lightning.method.games import Game
from fgvis_lightning.method.tasks import MULTICLASS, Task


def bound(level: float, logits: Tensor, targets: Tensor, task: Task = MULTICLASS) -> Tensor:
    """Log-odds of the level (B,).

    Args:
        level: share of the image's own score, greater than 0.
        logits: logits of the images (B,K).
        targets: target classes (B,).
        task: meaning of the logits.

    Returns:
        Log-odds of ``level`` times the image's probability; infinite if that is 1 or more.
    """
    logits = exact(logits)
    if level == 1:  # computed like the log-odds that it is compared with
        return task.log_odds(logits, targets)
    log_p = math.log(level) + task.log_probability(logits, targets)
    return torch.where(log_p < 0, log_p - torch.log(-torch.expm1(log_p.clamp(max=-1e-30))), torch.inf)


def lead(game: Game, logits: Tensor, targets: Tensor, bound: Tensor, task: Task = MULTICLASS) -> Tensor:
    """Signed distance of the log-odds from the bound (B,): at least 0 if the level is reached.

    Args:
        game: the game; if it loses the class, the sign is inverted.
        logits: logits of the explanations (B,K).
        targets: target classes (B,).
        bound: result of `bound` (B,).
        task: meaning of the logits.
    """
    ahead = task.log_odds(exact(logits), targets) - bound
    return ahead if game.keeps else -ahead


def exact(logits: Tensor) -> Tensor:
    """The logits in float32 or better; not always float64, which some devices lack."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
