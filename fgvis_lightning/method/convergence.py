"""Early stopping of images whose explanation no longer improves.

The objective of each image is checked every tenth iteration: the size of its evidence for ``lam: auto`` (infinite until
the level is reached), the game's loss for a fixed λ. The image has converged if, within the last ``patience``
iterations, its evidence has shrunk by less than a share of ``tolerance``, or its loss by less than ``tolerance``, in
units of the score. The decision depends only on the image's own history.
"""

from __future__ import annotations

import math

EVERY = 10
"""Iterations between two checks, which coincide for all images of a batch."""


class Plateau:
    """Early stopping for the places of a batch.

    Args:
        places: number of places.
        patience: iterations without progress after which an image has converged; 0 for never.
        tolerance: smallest improvement that counts as progress.
        relative: whether ``tolerance`` is a share of the objective (which must then be positive) or absolute.
    """

    def __init__(self, places: int, patience: int, tolerance: float, relative: bool) -> None:
        self.patience = patience
        self.tolerance = tolerance
        self.relative = relative
        self._best = [math.inf] * places
        self._since = [0] * places

    def is_due(self, iteration: int) -> bool:
        """Whether to call `converged` after this iteration, counted from 1."""
        return self.patience > 0 and iteration % EVERY == 0

    def converged(self, place: int, iteration: int, objective: float) -> bool:
        """Record the objective after an iteration, and return whether the image has converged."""
        best = self._best[place]
        progress = objective <= best * (1 - self.tolerance) if self.relative else objective <= best - self.tolerance
        if objective < best and (progress or math.isinf(best)):
            self._best[place], self._since[place] = objective, iteration
        elif math.isinf(best):  # the level is not reached yet, so no evidence can shrink
            self._since[place] = iteration
        return iteration - self._since[place] >= self.patience
