"""Batches of items that are explained side by side.

A sweep hands each batch out again and again, once for each iteration of the masks' optimizer, until all of its items
are finished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Literal, TypeVar

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from fgvis_lightning.data.images import Failure
from fgvis_lightning.data.items import Item

T = TypeVar("T")
R = TypeVar("R")


class Batch:
    """Items in their places. Not a collection, so Lightning hands it on as it is instead of copying it.

    Args:
        items: at least one, and at most ``size``.
        images: theirs (3,H,W), 8-bit, or floating point in [0,1].
        size: the number of places. Copies of the last item fill those without one: rounding depends on the number of
            images, and on nothing else in the other places.

    Attributes:
        items: in each place; None where there is none.
        images: (B,3,H,W).
        targets: (B,), class indices; -k stands for the k-th most probable class.
        iterations: how many the batch has had.
    """

    def __init__(self, items: Sequence[Item], images: Sequence[Tensor], size: int) -> None:
        spare = size - len(items)
        self.items: list[Item | None] = [*items, *[None] * spare]
        self.images = torch.stack([*images, *[images[-1]] * spare])
        self.targets = torch.tensor([*(item.target for item in items), *[items[-1].target] * spare])
        self.iterations = 0
        self._unfinished = list(range(len(items)))

    @property
    def used(self) -> list[int]:
        """The places whose item is not finished."""
        return self._unfinished

    def finish(self, places: Iterable[int]) -> None:
        """Take note that the items in these places are finished."""
        gone = set(places)
        self._unfinished = [place for place in self._unfinished if place not in gone]


class Sweep:
    """The dataloader of a sweep: each `Batch` as often as it takes to finish its items.

    Args:
        stream: pairs of an item and its image (3,H,W), or failures, which are counted and left out.
        size: items of a batch, or ``auto`` until the module has found out how many fit.
        count: how many items there are at most.
        largest: the largest size of use to ``auto``, all items unless given.
        first_try: the size that ``auto`` tries first, e.g. the one found before an interruption.

    Attributes:
        steps: how often a batch is handed out at most, as the module says.
        failed: how many images could not be read so far.
    """

    def __init__(
        self,
        stream: Iterable[tuple[Item, Tensor] | Failure],
        size: int | Literal["auto"],
        count: int,
        largest: int | None = None,
        first_try: int | None = None,
    ) -> None:
        self.size = size
        self.count = count
        self.largest = largest or count
        self.first_try = first_try
        self.steps = 1
        self.failed = 0
        self._stream = self._readable(stream)

    def peek(self) -> Tensor | None:
        """The next image (3,H,W) that waits; None where there is none."""
        first = next(self._stream, None)
        if first is None:
            return None
        self._stream = chain([first], self._stream)
        return first[1]

    def __len__(self) -> int:
        """Training steps at most."""
        return self.steps * -(-self.count // int(self.size))

    def __iter__(self) -> Iterator[Batch]:
        size = int(self.size)
        while taken := list(islice(self._stream, size)):
            items, images = zip(*taken, strict=True)
            batch = Batch(items, images, size)
            while batch.used:
                yield batch

    def _readable(self, stream: Iterable[tuple[Item, Tensor] | Failure]) -> Iterator[tuple[Item, Tensor]]:
        for read in stream:
            if isinstance(read, Failure):
                self.failed += 1
            else:
                yield read


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
    """``map`` that works ``depth`` things ahead in threads; without workers, plain ``map``.

    Threads, since decoding does not hold Python's lock, and since child processes would be ended by a scheduler's
    signal before this one has finished.
    """
    if not workers:
        yield from map(function, things)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        pending: deque[Future[R]] = deque()
        for thing in things:
            pending.append(pool.submit(function, thing))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
