from __future__ import annotations

import pytest
import torch

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics import peaks, ranked

VALUES = torch.tensor([0.0, 2.0, 0.0, 1.0, 2.0, 0.0, -0.0, 2.0])


def test_higher_values_come_first() -> None:
    for ties in ("random", "first"):
        order = ranked(VALUES, ties)
        assert order.sort().values.tolist() == list(range(8))
        assert VALUES[order].tolist() == [2, 2, 2, 1, 0, 0, 0, 0]
        distinct = torch.randn(50, generator=torch.Generator().manual_seed(0))
        assert ranked(distinct, ties).tolist() == sorted(range(50), key=lambda place: -float(distinct[place]))


def test_first_is_the_order_of_the_indices() -> None:
    assert ranked(VALUES, "first").tolist() == [1, 4, 7, 3, 0, 2, 5, 6]
    assert peaks(VALUES[None], "first").tolist() == [1]


def test_at_random_every_order_is_as_likely() -> None:
    counts = torch.zeros(8, 8)
    for seed in range(2000):
        order = ranked(VALUES, seed=seed)
        counts[torch.arange(8), order] += 1
        assert int(peaks(VALUES[None], seed=seed)) == int(order[0])
    twos, zeros = torch.tensor([1, 4, 7]), torch.tensor([0, 2, 5, 6])
    torch.testing.assert_close(counts[:3, twos] / 2000, torch.full((3, 3), 1 / 3), rtol=0, atol=0.05)
    torch.testing.assert_close(counts[4:, zeros] / 2000, torch.full((4, 4), 1 / 4), rtol=0, atol=0.05)
    assert counts[3, 3] == 2000


def test_a_seed_makes_the_order_and_nothing_else_does() -> None:
    state = torch.random.get_rng_state()
    once = ranked(VALUES, seed=5)
    with torch.inference_mode():
        assert torch.equal(ranked(VALUES, seed=5), once)
        ranked(torch.zeros(77))
    assert torch.equal(ranked(torch.zeros(77, requires_grad=True)), ranked(torch.zeros(77)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(ranked(torch.zeros(77)), ranked(torch.zeros(77), seed=1))
    rows = torch.stack([VALUES, VALUES.flip(0)])
    assert torch.equal(peaks(rows)[:1], peaks(rows[:1]))


def test_unknown_ties() -> None:
    for call in (lambda: ranked(VALUES, "last"), lambda: peaks(VALUES[None], "last")):
        with pytest.raises(InputError, match="Expected ties to be one of random, first, but got 'last'"):
            call()
