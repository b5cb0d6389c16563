from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice

import pytest
import torch

from fgvis_lightning.data.image_data import Batch, Sweep, ahead
from fgvis_lightning.data.images import Failure
from fgvis_lightning.data.items import Item


def stream(count: int, broken: tuple[int, ...] = ()) -> list[tuple[Item, torch.Tensor] | Failure]:
    return [
        Failure(str(i), "broken") if i in broken else (Item(str(i), "", i - count, i), torch.full((3, 2, 2), float(i)))
        for i in range(count)
    ]


def numbers(batch: Batch) -> list[int | None]:
    return [None if item is None else item.number for item in batch.items]


def test_places_go_to_what_waits() -> None:
    batch = Sweep(stream(5), 2).batch
    assert batch.peek() is not None
    batch.open(2)
    assert (numbers(batch), batch.used, batch.images.shape) == ([None, None], [], (2, 3, 2, 2))
    assert batch.refill([0, 1]) == [0, 1]
    assert batch.images[:, 0, 0, 0].tolist() == [0.0, 1.0]
    assert batch.targets.tolist() == [-5, -4]
    batch.iterations = [7, 7]
    assert batch.refill([1]) == [1]
    assert (numbers(batch), batch.iterations) == ([0, 2], [7, 0])
    assert batch.images[:, 0, 0, 0].tolist() == [0.0, 2.0]
    assert batch.refill([0, 1]) == [0, 1]
    assert batch.refill([0]) == []
    assert (numbers(batch), batch.used) == ([None, 4], [1])
    assert batch.images[:, 0, 0, 0].tolist() == [3.0, 4.0], "the batch keeps its size"


def test_a_sweep_hands_out_one_batch_until_all_is_done() -> None:
    sweep = Sweep(stream(1), 2)
    handed = iter(sweep)
    assert next(handed) is sweep.batch
    sweep.batch.open(2)
    assert sweep.batch.refill([0, 1]) == [0]
    assert all(batch is sweep.batch for batch in islice(handed, 100))
    sweep.batch.refill([0])
    assert next(handed, None) is None


def test_failures_are_left_out() -> None:
    sweep = Sweep(stream(6, broken=(0, 2, 5)), 4)
    sweep.batch.peek()
    sweep.batch.open(4)
    assert sweep.batch.refill(range(4)) == [0, 1, 2]
    assert numbers(sweep.batch) == [1, 3, 4, None]
    assert sweep.failed == 3
    assert list(Sweep(stream(2, broken=(0, 1)), 2)) == []


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
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith("decode")]:
        thread.join(5)
        assert not thread.is_alive()
