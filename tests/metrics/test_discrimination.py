from __future__ import annotations

import math

import pytest
import torch
from toy_networks import Tiny

from fgvis_lightning.metrics.discrimination import delete_evidence, remaining_scores, summarize


def test_the_highest_pixels_go_in_all_channels() -> None:
    torch.manual_seed(0)
    x, saliency = torch.rand(3, 4, 5) + 1, torch.rand(4, 5)
    result = delete_evidence(x, saliency, 0.15)
    order = sorted(((float(saliency[i, j]), i, j) for i in range(4) for j in range(5)), reverse=True)
    expected = x.clone()
    for _, i, j in order[:3]:
        expected[:, i, j] = 0
    assert torch.equal(result, expected)
    assert torch.equal(delete_evidence(x, saliency, 0.0), x)
    assert torch.equal(delete_evidence(x, saliency, 1.0), torch.zeros_like(x))


def test_among_equal_pixels_the_top_left_goes_first_if_asked_for() -> None:
    left = delete_evidence(torch.ones(3, 2, 2), torch.zeros(2, 2), 0.25, ties="first")
    assert left[0].tolist() == [[0, 1], [1, 1]]


def test_what_is_left_are_ratios_of_probabilities() -> None:
    torch.manual_seed(0)
    network = Tiny().double().eval()
    x, targets = torch.randn(3, 8, 8, dtype=torch.float64), torch.tensor([3, 0])
    without = [x * (torch.rand(8, 8) > 0.5), x * 0.5]
    before = network(x[None]).softmax(1)[0].detach()
    left = remaining_scores(network, x, without, targets)
    for a in range(2):
        after = network(without[a][None]).softmax(1)[0].detach()
        for b, target in enumerate(targets.tolist()):
            assert float(left[a, b]) == pytest.approx(float(after[target] / before[target]), rel=1e-5)


def test_summary_of_two_images() -> None:
    first = torch.tensor([[0.1, 0.8], [1.6, 0.4]])
    second = torch.tensor([[0.5, 0.5, 2.0], [0.3, 0.2, 0.1], [1.0, 1.0, 0.9]])
    own, others, wins = summarize([first, second])
    assert own == pytest.approx(math.prod([0.1, 0.4, 0.5, 0.2, 0.9]) ** (1 / 5), rel=1e-5)
    foreign = [0.8, 1.6, 0.5, 2.0, 0.3, 0.1, 1.0, 1.0]
    assert others == pytest.approx(math.prod(foreign) ** (1 / 8), rel=1e-5)
    assert wins == pytest.approx((1 + 1 + 0.5 + 1 + 1 + 0 + 1 + 1) / 8)
