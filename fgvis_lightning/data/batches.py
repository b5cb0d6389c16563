"""Batches of items that are explained together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Literal, TypeVar

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from fgvis_lightning.data.items import Item

T = TypeVar("T")
R = TypeVar("R")


class Batch:
    """Items in their places. It is not a collection, so Lightning passes it on without copying.

    Args:
        items: the items, at least one and at most ``size``.
        images: images of the items (3,H,W), 8-bit, or floating point in [0,1].
        size: number of places. Copies of the last item fill empty places, because rounding depends on the number of
            images (but not on the content of other places).

    Attributes:
        items: the items, in the first places.
        images: images (B,3,H,W).
        targets: class indices (B,); -k stands for the k-th most probable class.
        iterations: number of completed iterations.
        used: the places with unfinished items.
    """

    def __init__(self, items: Sequence[Item], images: Sequence[Tensor], size: int) -> None:
        spare = size - len(items)
        self.items = list(items)
        self.images = torch.stack([*images, *[images[-1]] * spare])
        self.targets = torch.tensor([*(item.target for item in items), *[items[-1].target] * spare])
        self.iterations = 0
        self.used = list(range(len(items)))

    def finish(self, places: Iterable[int]) -> None:
        """Mark the items in these places as finished."""
        gone = set(places)
        self.used = [place for place in self.used if place not in gone]


class Sweep:
    """The dataloader of a sweep: it yields each `Batch` once for each iteration, until all of its items are finished.

    Args:
        stream: pairs of an item and its image (3,H,W).
        size: number of items in a batch, or ``auto`` until the module has determined how many fit.
        count: maximum number of items.
        largest: largest size for ``auto``; all items by default.
        first_try: first size for ``auto``, e.g. the one found before an interruption.
        together: number of runs of an item that pass through the network together, in batches of one; None for all.

    Attributes:
        steps: maximum number of iterations for a batch, set by the module.
    """

    def __init__(
        self,
        stream: Iterable[tuple[Item, Tensor]],
        size: int | Literal["auto"],
        count: int,
        largest: int | None = None,
        first_try: int | None = None,
        together: int | None = None,
    ) -> None:
        self.size = size
        self.together = together
        self.count = count
        self.largest = largest or count
        self.first_try = first_try
        self.steps = 1
        self._stream = iter(stream)

    def peek(self) -> Tensor | None:
        """The next image (3,H,W); None if there is none."""
        first = next(self._stream, None)
        if first is None:
            return None
        self._stream = chain([first], self._stream)
        return first[1]

    def __len__(self) -> int:
        """Maximum number of training steps."""
        return self.steps * -(-self.count // int(self.size))

    def __iter__(self) -> Iterator[Batch]:
        size = int(self.size)
        while taken := list(islice(self._stream, size)):
            items, images = zip(*taken, strict=True)
            batch = Batch(items, images, size)
            while batch.used:
                yield batch


def divided(rows: int, runs: int) -> tuple[int, int | None]:
    """How items with several runs are divided into passes of at most this many rows.

    Returns:
        Number of items in a batch; and, if a single item has too many runs, the number of its runs that pass together.
        All passes have the same number of rows, since rounding, and therefore gates, depend on it.
    """
    if rows >= runs:
        return rows // runs, None
    return 1, max(number for number in range(1, rows + 1) if runs % number == 0)


class SweepData(LightningDataModule):
    """Data module of a `SweepModule`.

    Attributes:
        sweep: the batches; None before `setup`.
    """

    def __init__(self, sweep: Sweep | None = None) -> None:
        super().__init__()
        self.sweep = sweep

    def train_dataloader(self) -> Sweep:
        assert self.sweep is not None
        return self.sweep


def ahead(function: Callable[[T], R], things: Iterable[T], workers: int, depth: int) -> Iterator[R]:
    """``map`` that processes ``depth`` things ahead in threads; without workers, plain ``map``.

    It uses threads because decoding releases Python's lock, and because a scheduler's signal would end child processes
    before this process has finished.
    """
    if not workers:
        yield from map(function, things)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        futures = (pool.submit(function, thing) for thing in things)
        pending = deque(islice(futures, depth + 1))
        while pending:
            yield pending.popleft().result()
            pending.extend(islice(futures, 1))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
