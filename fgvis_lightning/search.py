"""``lam: auto``: for each image the smallest evidence whose score reaches a level."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fgvis_lightning.games import Game, log_odds, log_probability

MARGIN = 1e-3
"""By how much the log-odds must be better than asked for, so that rounding elsewhere does not undo it."""


class Search:
    """State of the search for one batch; every image on its own.

    While an image's score is good enough its mask takes steps on the size alone, otherwise on the
    score alone, so it moves along the boundary; the smallest good mask is kept.

    Args:
        game: what is kept or removed.
        level: score to reach as a share of the image's own.
        logits: the network's logits of the images (B,K).
        targets: target classes (B,).
        mask: masks at the start (B,3,H,W).
    """

    def __init__(self, game: Game, level: float, logits: Tensor, targets: Tensor, mask: Tensor) -> None:
        self.game = game
        self.targets = targets
        share = math.log(level) + log_probability(logits.double(), targets)
        bound = share - torch.log(-torch.expm1(share.clamp(max=0)))
        self.bound = torch.where(share < 0, log_odds(logits.double(), targets) if level == 1 else bound, torch.inf)
        self.best = mask.detach().clone()
        self.best_size = torch.full_like(self.bound, torch.inf)

    def reached(self, logits: Tensor, margin: float = 0.0) -> Tensor:
        """Whether each image's score is good enough (B,), from its logits (B,K)."""
        ahead = log_odds(logits.double(), self.targets) - self.bound
        return ahead >= margin if self.game.keeps else ahead <= -margin

    def step(self, mask: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the score and of the mask's size (B,) for the next step, from the logits of the masks' e."""
        reached = self.reached(logits, MARGIN)
        size = self.game.size(mask).double()
        better = reached & (size < self.best_size)
        self.best = torch.where(better[:, None, None, None], mask, self.best)
        self.best_size = torch.where(better, size, self.best_size)
        return (~reached).to(mask.dtype), reached.to(mask.dtype)

    def result(self, run: Callable[[Tensor], Tensor]) -> Tensor:
        """The best masks."""
        return self.best
