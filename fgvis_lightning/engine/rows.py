"""Rows of a batch: several runs of each image, one after the other, of which all are in use or the first alone."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


class Rows:
    """Which rows belong to an image.

    Args:
        runs: rows of each image.

    Attributes:
        first: the first row of each image.
    """

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self.first = slice(None, None, runs)
        self.all_used = True

    @property
    def in_use(self) -> slice:
        """The rows in use."""
        return slice(None) if self.all_used else self.first

    def use_all(self) -> None:
        """From now on all rows are in use."""
        self.all_used = True

    def use_first(self) -> None:
        """From now on the first row of each image is in use alone."""
        self.all_used = False

    def spread(self, of_images: Tensor) -> Tensor:
        """What images have (B,…) for each of their rows (B·runs,…), images in the same memory format."""
        return _like_images(of_images.repeat_interleave(self.runs, 0))

    @overload
    def used(self, rows: Tensor) -> Tensor: ...
    @overload
    def used(self, rows: None) -> None: ...
    def used(self, rows: Tensor | None) -> Tensor | None:
        """What has a row for each run (B·runs,…), for the rows in use."""
        # Without a reason to slice there is none: even a view of everything would change the memory format.
        return rows if rows is None or self.all_used else _like_images(rows[self.first])


def _like_images(rows: Tensor) -> Tensor:
    return rows.contiguous(memory_format=torch.channels_last) if rows.ndim == 4 else rows
