"""The current batch, with one row for each run of each image, in succession."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from fgvis_lightning.method.games import Game, Reference, blend, gaussian
from fgvis_lightning.method.level import bound, lead
from fgvis_lightning.method.tasks import Task

Values = TypeVar("Values", Tensor, list[torch.Generator])


class Rows:
    """Images, targets, references and levels of a batch, which its iterations need in addition to the mask.

    Args:
        images: normalized images (B,3,H,W).
        runs: number of rows for each image.
        reference: one of `fgvis_lightning.method.games.REFERENCES`.
        black: normalized black (3,H,W).
        seed: seed of the noise in the first run of each image; the other runs use the following seeds.
        task: meaning of the network's logits.
        together: number of rows that pass through the network together, for a single image; None for all rows.

    Attributes:
        x: the images of all rows (B·runs,3,H,W).
        all_used: whether all rows are in use, or only the first row of each image.
        targets: target classes (B,), set by `aim`.
        score_image: probability of the target on each image (B,), set by `aim`.
    """

    targets: Tensor
    score_image: Tensor

    def __init__(
        self,
        images: Tensor,
        runs: int,
        reference: Reference,
        black: Tensor,
        seed: int,
        task: Task,
        together: int | None = None,
    ) -> None:
        self.task = task
        self.runs = runs
        self.all_used = True
        self.x = self.spread(images)
        self.together = together or len(self.x)
        # Each row has its own stream, so that it does not depend on the others.
        self._generators = [torch.Generator(self.x.device).manual_seed(seed) for _ in self.x]
        rows = zip(self.x.split(1), self._generators, strict=True)
        drawn = [one for x, generator in rows if (one := reference(x, black, generator)) is not None]
        self._reference = _like_images(torch.cat(drawn)) if drawn else None
        for row, generator in enumerate(self._generators):
            generator.manual_seed(seed + row % runs)

    def aim(self, targets: Tensor, logits: Tensor, level: float | None) -> None:
        """Set the target classes (B,), given the logits of the images (B,K), and the level, if there is one."""
        self.targets = targets
        self.score_image = self.task.probability(logits, targets)
        self._targets = self.spread(targets)
        self._level, self._bound = level, None
        if level is not None:
            # Not in the images' data type, which may round it to more than the image's own log-odds.
            self._bound = bound(level, self.spread(logits), self._targets, self.task)
        self._goal = self._bound

    def calibrate(self, logits: Tensor) -> None:
        """Measure leads of rows from the logits of `part` of the images' rows, in the iterations' precision.

        Under mixed precision, even the image itself may be some tenths of log-odds below its own score in float32, and
        then no mask would reach the level.
        """
        assert self._level is not None
        logits = logits.repeat(len(self.x) // len(logits), 1)
        self._goal = bound(self._level, logits, self._targets, self.task)

    # --- rows ---

    def spread(self, of_images: Tensor) -> Tensor:
        """Repeat values of images (B,…) for each of their rows (B·runs,…)."""
        return _like_images(of_images.repeat_interleave(self.runs, 0))

    def first(self, rows: Tensor) -> Tensor:
        """The first row of each image (B,…)."""
        return rows[:: self.runs]

    def used(self, rows: Values) -> Values:
        """Select the rows in use of values of all rows (B·runs,…)."""
        # No slicing if all rows are used: even a full slice would change the memory format.
        return rows if self.all_used else _like_images(rows[:: self.runs])

    def part(self, rows: Tensor) -> Tensor:
        """The rows of a pass: all of them, or as many of a single image's as pass together."""
        return rows[: self.together] if len(rows) > self.together else rows

    # --- explanations ---

    def explained(self, mask: Tensor) -> Tensor:
        """Explanations ``e`` of the rows in use, for the mask of all rows (B·runs,3,H,W)."""
        reference = None if self._reference is None else self.used(self._reference)
        return blend(self.used(self.x), self.used(mask), reference)

    def explained_all(self, masks: Tensor) -> Tensor:
        """Explanations ``e`` of all rows of a pass, for the masks of the images (B,3,H,W)."""
        reference = None if self._reference is None else self.part(self._reference)
        return blend(self.part(self.x), self.part(self.spread(masks)), reference)

    def disturbed(self, e: Tensor, noise: float) -> Tensor:
        """Add noise of this standard deviation to ``e`` of the rows in use."""
        return e + noise * gaussian(e, self.used(self._generators)) if noise else e

    def lead(self, game: Game, logits: Tensor) -> Tensor:
        """Leads of the rows in use, from their logits."""
        assert self._goal is not None
        return lead(game, logits, self.used_targets, self.used(self._goal), self.task)

    def lead_of_images(self, game: Game, logits: Tensor) -> Tensor:
        """Leads of the images' masks (B,), from their logits (B,K)."""
        assert self._bound is not None
        return lead(game, logits, self.targets, self.first(self._bound), self.task)

    @property
    def used_targets(self) -> Tensor:
        """Target classes of the rows in use."""
        return self.used(self._targets)


def _like_images(rows: Values) -> Values:
    """Convert images to the common memory format, since another format rounds differently."""
    if isinstance(rows, Tensor) and rows.ndim == 4:
        return rows.contiguous(memory_format=torch.channels_last)
    return rows
