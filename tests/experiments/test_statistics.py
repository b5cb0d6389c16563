from __future__ import annotations

import math

import pytest
import torch

from fgvis_lightning.experiments.statistics import bootstrap, wilson


def test_interval_of_many_values_is_the_normal_one() -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 3 + 5
    mean, low, high = bootstrap(values, [str(i) for i in range(2000)])
    half = 1.96 * float(values.std()) / math.sqrt(2000)
    assert mean == pytest.approx(float(values.mean()), rel=1e-6)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.01)


def test_values_of_one_image_are_drawn_together() -> None:
    """Ten times the same values of an image are no more than one."""
    values = torch.rand(30, generator=torch.Generator().manual_seed(1))
    names = [str(i) for i in range(30)]
    once = bootstrap(values, names)
    assert bootstrap(values.repeat(10), names * 10) == pytest.approx(once)
    alone = bootstrap(values.repeat(10), [str(i) for i in range(300)])
    assert alone[2] - alone[1] < (once[2] - once[1]) / 2


def test_few_and_no_values() -> None:
    for one in (bootstrap(torch.tensor([0.5]), ["a"]), bootstrap(torch.tensor([0.4, 0.6]), ["a", "a"])):
        assert one[0] == pytest.approx(0.5)
        assert math.isnan(one[1])
        assert math.isnan(one[2])
    assert all(math.isnan(value) for value in bootstrap(torch.tensor([]), []))
    mean, low, high = bootstrap(torch.tensor([0.0, 1.0]), ["a", "b"])
    assert (mean, low, high) == (0.5, 0.0, 1.0)


def test_interval_of_a_rate() -> None:
    """R's prop.test(8, 10, correct = FALSE)."""
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-5)
    assert wilson(0, 30)[0] == 0
    assert wilson(0, 30)[1] == pytest.approx(3.8415 / 33.8415, abs=1e-4)
    assert all(math.isnan(end) for end in wilson(0, 0))
