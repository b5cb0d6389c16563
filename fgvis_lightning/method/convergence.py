"""Early stopping: when an image's explanation has stopped getting better.

Every tenth iteration the image's own objective is looked at: the size of its evidence for ``lam: auto``
(infinite until the level is reached), the game's loss for a fixed λ. It has converged when in the last
``patience`` iterations the evidence has shrunk by less than the share ``tolerance`` of itself, or the
loss by less than ``tolerance``, in units of the score. Nothing but the image's own past decides.
"""

from __future__ import annotations

import math

EVERY = 10
"""Iterations between two looks, for all images at the same multiples, so that places often become free together."""


class Plateau:
    """The rule for the places of a batch.

    Args:
        places: how many.
        patience: iterations without progress after which an image has converged; 0 for never.
        tolerance: how much is progress.
        relative: whether ``tolerance`` is a share of the objective (which is then positive) or absolute.
    """

    def __init__(self, places: int, patience: int, tolerance: float, relative: bool) -> None:
        self.patience = patience
        self.tolerance = tolerance
        self.relative = relative
        self._best = [math.inf] * places
        self._since = [0] * places

    def restart(self, place: int) -> None:
        """A new image is in this place."""
        self._best[place], self._since[place] = math.inf, 0

    def is_due(self, iteration: int) -> bool:
        """Whether `converged` has to be called after this iteration, counted from 1."""
        return self.patience > 0 and iteration % EVERY == 0

    def converged(self, place: int, iteration: int, objective: float) -> bool:
        """Take in the objective after an iteration, and say whether the image has converged."""
        best = self._best[place]
        progress = objective <= best * (1 - self.tolerance) if self.relative else objective <= best - self.tolerance
        if objective < best and (progress or math.isinf(best)):
            self._best[place], self._since[place] = objective, iteration
        elif math.isinf(best):  # the level has not been reached: there is nothing yet that could shrink
            self._since[place] = iteration
        return iteration - self._since[place] >= self.patience
