from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from test_explainer import images
from toy_networks import Hungry, Tiny

from fgvis_lightning import explain
from fgvis_lightning.engine.batch_size import FreeMemory, is_out_of_memory, largest_batch_size

FULL = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory"),
    lambda: MemoryError(),
]


@pytest.fixture(autouse=True)
def _only_garbage_of_their_own() -> Iterator[None]:
    """Collecting the garbage of all tests before, again and again, would take minutes."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize("fits", [1, 2, 3, 7, 8, 9, 100, 1000])
@pytest.mark.parametrize("first", [1, 64])
def test_finds_the_largest_to_within_an_eighth(fits: int, first: int, error: Callable[[], Exception]) -> None:
    tried: list[int] = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > fits:
            raise error()

    found = largest_batch_size(attempt, 400, first)
    best = min(fits, 400)
    assert best - max(0, best // 8) <= found <= best
    assert found in tried
    assert len(tried) == len(set(tried)) < 16
    assert found == best or best >= 8


def test_no_more_than_there_are() -> None:
    tried: list[int] = []
    assert largest_batch_size(tried.append, 11) == 11
    assert tried == [1, 2, 4, 8, 11]
    tried.clear()
    assert largest_batch_size(tried.append, 11, first=64) == 11
    assert tried == [11]


def test_estimates_keep_from_trying_what_will_not_fit() -> None:
    tried: list[int] = []
    assert largest_batch_size(tried.append, 1000, room=lambda size: 37) == 37
    assert max(tried) == 37
    assert largest_batch_size(tried.append, 1000, first=20, room=lambda size: size) == 20


def test_errors_of_another_kind_and_no_room_for_one() -> None:
    def broken(size: int) -> None:
        raise ValueError("broken")

    def full(size: int) -> None:
        raise MemoryError

    with pytest.raises(ValueError, match="broken"):
        largest_batch_size(broken, 8)
    with pytest.raises(MemoryError):
        largest_batch_size(full, 8, first=8)
    assert not is_out_of_memory(ValueError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("something else"))


def test_free_memory_is_measured() -> None:
    room = FreeMemory()
    kept = torch.ones(2**25)  # 128 MB
    some = room(4)
    more = torch.ones(2**27)  # 512 MB
    less = room(4)
    assert len(kept) + len(more)
    assert 4 <= less < some
    assert FreeMemory(processes=4)._budget < 0.5 * room._budget


def test_auto_backs_off_and_explains_the_same() -> None:
    """Seven images where five fit at a time; what was tried leaves no trace."""
    batch = images(7)
    found = explain(Hungry(), batch, iterations=10, seeds=1, batch_size="auto")
    fixed = explain(Tiny(), batch, iterations=10, seeds=1, batch_size=5)
    assert torch.equal(found.mask, fixed.mask)
    assert torch.equal(found.score_explanation, fixed.score_explanation)
    with pytest.raises(torch.OutOfMemoryError):
        explain(Hungry(), batch, iterations=10, seeds=1, batch_size=7)
