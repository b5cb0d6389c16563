from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]

from fgvis_lightning.experiments.statistics import holm, sign_flip


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


def test_few_and_no_values() -> None:
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
