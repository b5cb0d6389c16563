from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice

import pytest
import torch

from fgvis_lightning.data.batches import Batch, Sweep, ahead
from fgvis_lightning.data.items import Item


def stream(count: int) -> list[tuple[Item, torch.Tensor]]:
    return [(Item(str(i), "", i - count, i), torch.full((3, 2, 2), float(i))) for i in range(count)]


def numbers(batch: Batch) -> list[int]:
    return [item.number for item in batch.items]


def test_a_batch_is_handed_out_until_its_items_are_finished() -> None:
    sweep = Sweep(stream(5), 2, count=5)
    sweep.steps = 3
    assert len(sweep) == 9
    handed = iter(sweep)
    first = next(handed)
    assert (numbers(first), first.used, first.targets.tolist()) == ([0, 1], [0, 1], [-5, -4])
    assert first.images[:, 0, 0, 0].tolist() == [0.0, 1.0]
    first.finish([0])
    assert next(handed) is first
    assert first.used == [1]
    first.finish([1])
    second = next(handed)
    assert numbers(second) == [2, 3]
    second.finish(second.used)
    last = next(handed)
    assert (numbers(last), last.used) == ([4], [0])
    assert last.images[:, 0, 0, 0].tolist() == [4.0, 4.0], "a batch keeps its size"
    last.finish([0])
    assert next(handed, None) is None


def test_nothing_to_do() -> None:
    empty = Sweep(stream(0), 2, count=2)
    assert empty.peek() is None
    assert list(empty) == []


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ahead_is_map(workers: int) -> None:
    assert list(ahead(lambda n: n * n, range(20), workers, 4)) == [n * n for n in range(20)]

    def fails(n: int) -> int:
        if n == 3:
            raise ValueError("three")
        return n

    results = ahead(fails, range(20), workers, 4)
    assert list(islice(results, 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_ahead_works_ahead_but_not_without_end() -> None:
    begun: list[int] = []
    before = set(threading.enumerate())

    def endless() -> Iterator[int]:
        n = 0
        while True:
            yield n
            n += 1

    results = ahead(begun.append, endless(), 2, 5)
    next(results)
    deadline = time.monotonic() + 10
    while len(begun) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(begun) == [0, 1, 2, 3, 4, 5], "one handed out, five ahead"
    results.close()  # type: ignore[attr-defined]
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
