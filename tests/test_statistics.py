from __future__ import annotations

import math

import pytest
import torch

from fgvis_lightning.experiments.statistics import bootstrap


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
    assert bootstrap(torch.tensor([0.5]), ["a"]) == (0.5, 0.5, 0.5)
    assert all(math.isnan(value) for value in bootstrap(torch.tensor([]), []))
    mean, low, high = bootstrap(torch.tensor([0.0, 1.0]), ["a", "b"])
    assert (mean, low, high) == (0.5, 0.0, 1.0)
