from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]

from fgvis_lightning.experiments.statistics import bootstrap, holm, sign_flip, wilson


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
    """R's prop.test(8, 10, correct = FALSE); Newcombe, Statistics in Medicine 1998, table I: 81 of 263, and 0 of 20."""
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-5)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20)[1] == pytest.approx(1.0)
    assert wilson(0, 30)[0] == 0
    assert wilson(0, 30)[1] == pytest.approx(3.8415 / 33.8415, abs=1e-4)
    assert all(math.isnan(end) for end in wilson(0, 0))


def names(count: int) -> list[str]:
    return [str(number) for number in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_all_signs_of_few_images(seed: int) -> None:
    values = torch.randn(9, generator=torch.Generator().manual_seed(seed)) + 0.5
    numbers = values.double().tolist()
    observed = abs(sum(numbers))
    further = sum(
        abs(sum(sign * number for sign, number in zip(signs, numbers, strict=True))) >= observed - 1e-12
        for signs in product((-1, 1), repeat=9)
    )
    assert sign_flip(values, names(9)) == pytest.approx(further / 2**9)


def test_drawn_signs_by_scipy() -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(0)) + 0.3
    found = sign_flip(values, names(40))
    theirs = stats.permutation_test(
        (values.double().numpy(),),
        np.mean,
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    )
    assert 0.01 < found < 0.5
    assert found == pytest.approx(float(theirs.pvalue), abs=0.015)
    assert sign_flip(values, names(40)) == found
    assert sign_flip(values + 10, names(40)) == pytest.approx(1 / 10_001)


def test_chance_is_significant_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    small = [sign_flip(torch.randn(8, generator=generator), names(8)) <= 0.05 for _ in range(600)]
    assert 0.02 < sum(small) / 600 < 0.08


def test_values_of_one_image_change_together() -> None:
    values = torch.rand(7, generator=torch.Generator().manual_seed(1))
    once = sign_flip(values, names(7))
    assert once == 2 / 2**7
    assert sign_flip(values.repeat(10), names(7) * 10) == once


def test_signs_of_few_and_no_values() -> None:
    assert sign_flip(torch.tensor([0.5]), ["a"]) == 1
    assert sign_flip(torch.zeros(30), names(30)) == 1
    assert sign_flip(torch.tensor([0.1, 0.2, torch.nan]), names(3)) == 0.5
    assert math.isnan(sign_flip(torch.tensor([torch.nan]), ["a"]))
    assert math.isnan(sign_flip(torch.tensor([]), []))


def test_holm_by_hand() -> None:
    # R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([0.02]) == [0.02]
    corrected = holm([math.nan, 0.02, 0.03])
    assert math.isnan(corrected[0])
    assert corrected[1:] == pytest.approx([0.04, 0.04])
    assert holm([]) == []
