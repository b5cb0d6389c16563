from __future__ import annotations

import torch

from fgvis_lightning.data import Sweep
from fgvis_lightning.items import Failure, Item


def stream(count: int, broken: tuple[int, ...] = ()) -> list[tuple[Item, torch.Tensor] | Failure]:
    return [
        Failure(str(i), "broken") if i in broken else (Item(str(i), "", i), torch.full((3, 2, 2), float(i)))
        for i in range(count)
    ]


def test_sweep_repeats_each_batch_and_pads_the_last() -> None:
    sweep = Sweep(stream(5), batch_size=2, iterations=3)
    assert sweep.shape == (2, 3, 2, 2)
    epochs = []
    while not sweep.exhausted:
        epochs.append(list(sweep))
    assert [[batch.number for batch in epoch] for epoch in epochs] == [[1] * 3, [2] * 3, [3] * 3]
    assert all(batch is epoch[0] for epoch in epochs for batch in epoch)
    last = epochs[-1][0]
    assert len(last) == 1
    assert last.targets.tolist() == [4, 4]
    assert last.images[:, 0, 0, 0].tolist() == [4.0, 4.0]
    assert list(sweep) == []


def test_failures_are_set_aside_and_their_places_filled() -> None:
    sweep = Sweep(stream(6, broken=(0, 2, 5)), batch_size=2, iterations=1)
    batches = []
    while not sweep.exhausted:
        batches += list(sweep)
    assert [[item.target for item in batch.items] for batch in batches] == [[1, 3], [4]]
    assert [failure.path for failure in sweep.failures] == ["0", "2", "5"]
    assert Sweep(stream(2, broken=(0, 1)), 2, 1).exhausted
