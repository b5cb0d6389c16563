from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage, stats  # type: ignore[import-untyped]
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics import (
    average_drop,
    average_increase,
    boxes_to_masks,
    class_kept,
    connectedness,
    energy_pointing_game,
    highlight,
    pointing_game,
    rank_correlation,
    score_preserved,
    sparsity,
)


def test_scores() -> None:
    explanation, image = torch.tensor([0.5, 0.9, 0.3, 0.0]), torch.tensor([1.0, 0.6, 0.3, 0.5])
    assert score_preserved(explanation, image).tolist() == pytest.approx([0.5, 1.5, 1, 0])
    assert average_drop(explanation, image).tolist() == pytest.approx([0.5, 0, 0, 1])
    assert average_increase(explanation, image).tolist() == [0, 1, 0, 0]
    drops = [max(0.0, float(y) - float(o)) / float(y) for o, y in zip(explanation, image, strict=True)]
    assert average_drop(explanation, image).tolist() == pytest.approx(drops)


def test_class_kept() -> None:
    logits = torch.tensor([[0.0, 1, 2], [3, 1, 2], [0, 5, 4]])
    assert class_kept(logits, torch.tensor([2, 2, 1])).tolist() == [1, 0, 1]


def test_sparsity() -> None:
    evidence = torch.zeros(2, 3, 4, 4)
    evidence[0, :, :2] = 1
    evidence[1, 0] = 0.3
    assert sparsity(evidence).tolist() == pytest.approx([0.5, 0.9])
    assert sparsity(evidence.mean(1)).tolist() == pytest.approx([0.5, 0.9])


def drawn(*rows: str) -> Tensor:
    return torch.tensor([[float(character == "#") for character in row] for row in rows])


SPIRAL = drawn(
    "#########", "........#", "#######.#", "#.....#.#", "#.###.#.#", "#.#...#.#", "#.#####.#", "#.......#", "#########"
)


def test_connectedness() -> None:
    assert connectedness(drawn("#..#", "#..#", "....", "...#")[None]).tolist() == pytest.approx([2 / 5])
    assert connectedness(drawn("#...", ".#..", "..#.", "...#")[None]).tolist() == [1], "corners touch"
    assert connectedness(SPIRAL[None]).tolist() == [1], "however long the way is"
    assert connectedness(torch.zeros(1, 4, 4)).tolist() == [0]
    assert connectedness(torch.full((1, 4, 4), 0.2)).tolist() == [1]
    strengths = torch.tensor([[0.8, 0.4, 0.0, 0.39, 0.0, 0.4]])
    assert connectedness(strengths[None]).tolist() == pytest.approx([2 / 3]), "half the maximum belongs to it"
    colors = torch.stack([drawn("##.#"), drawn("##.."), drawn("##..")])
    assert connectedness(colors[None]).tolist() == [1], "the mean over the colors counts"


@pytest.mark.parametrize("share", [0.3, 0.45, 0.7])
def test_connectedness_by_scipy(share: float) -> None:
    random = torch.rand(6, 37, 52, generator=torch.Generator().manual_seed(1))
    evidence = (random < share) * (0.6 + random / 10)
    expected = []
    for one in evidence.numpy():
        labels, _ = ndimage.label(one >= one.max() / 2, np.ones((3, 3)))
        sizes = np.bincount(labels.flatten())[1:]
        expected.append(sizes.max() / sizes.sum())
    assert connectedness(evidence).tolist() == pytest.approx(expected)
    assert torch.equal(connectedness(evidence)[2:3], connectedness(evidence[2:3]))


def test_highlight() -> None:
    x, saliency = torch.randn(2, 3, 4, 5), torch.randn(2, 4, 5)
    found = highlight(x, saliency)
    for i in range(2):
        weight = saliency[i].clamp(min=0) / saliency[i].max()
        torch.testing.assert_close(found[i], x[i] * weight)
    assert torch.equal(highlight(x, -torch.ones(2, 4, 5)), torch.zeros_like(x))
    assert torch.equal(highlight(x, torch.full((2, 4, 5), 0.3)), x)


def test_highlight_from_the_minimum_to_the_maximum() -> None:
    x, saliency = torch.randn(2, 3, 4, 5), torch.randn(2, 4, 5)
    found = highlight(x, saliency, "min-max")
    for i in range(2):
        low, high = float(saliency[i].min()), float(saliency[i].max())
        weight = torch.tensor([[(float(v) - low) / (high - low) for v in row] for row in saliency[i]])
        torch.testing.assert_close(found[i], x[i] * weight)
    assert torch.equal(highlight(x, torch.full((2, 4, 5), 0.3), "min-max"), torch.zeros_like(x))
    positive = saliency.clamp(min=0)
    torch.testing.assert_close(highlight(x, positive, "min-max"), highlight(x, positive))


def test_boxes() -> None:
    boxes = [torch.tensor([[1, 0, 3, 2]]), torch.tensor([[0, 0, 1, 1], [2, 1, 4, 3]]), torch.zeros(0, 4)]
    masks = boxes_to_masks(boxes, 3, 4)
    expected = [
        drawn(".##.", ".##.", "...."),
        drawn("#...", "..##", "..##"),
        drawn("....", "....", "...."),
    ]
    assert torch.equal(masks, torch.stack(expected).bool())


@pytest.mark.parametrize("tolerance", [15, 3, 0])
def test_pointing_game(tolerance: int) -> None:
    generator = torch.Generator().manual_seed(0)
    saliency = torch.rand(40, 23, 31, generator=generator)
    masks = torch.rand(40, 23, 31, generator=generator) < 0.003
    expected = []
    for one, mask in zip(saliency, masks, strict=True):
        y, x = divmod(int(one.argmax()), 31)
        inside = mask.nonzero().tolist()
        expected.append(float(any((i, j) == (y, x) or (i - y) ** 2 + (j - x) ** 2 < tolerance**2 for i, j in inside)))
    assert pointing_game(saliency, masks, tolerance).tolist() == expected


def test_pointing_game_of_several_maxima() -> None:
    """A random one is as often at one place as at another; the first one is by name."""
    saliency, masks = torch.ones(1, 9, 9), torch.zeros(1, 9, 9, dtype=torch.bool)
    masks[0, 0, 0] = True
    saliency[0, 4:] = 0
    assert pointing_game(saliency, masks, 1, ties="first").tolist() == [1]
    assert pointing_game(-saliency, masks, 1, ties="first").tolist() == [0]
    hits = torch.stack([pointing_game(saliency, masks, 1, seed=seed) for seed in range(600)])
    assert 0 < hits.sum() < 60  # 1 in 36
    both = torch.cat([saliency, torch.rand(1, 9, 9)])
    assert torch.equal(pointing_game(both, masks.expand(2, 9, 9), 3)[:1], pointing_game(saliency, masks, 3))


def test_pointing_game_at_its_limit() -> None:
    saliency, masks = torch.zeros(3, 5, 40), torch.zeros(3, 5, 40, dtype=torch.bool)
    saliency[:, 2, 0] = 1
    masks[0, 2, 14] = masks[1, 2, 15] = True
    assert pointing_game(saliency, masks).tolist() == [1, 0, 0]


def test_energy_pointing_game() -> None:
    saliency = torch.tensor([[[1.0, 2, -3, 1]], [[-1, -1, 0, 0]], [[0, 1, 1, 0]]])
    masks = torch.tensor([[[1, 1, 1, 0]], [[1, 1, 1, 1]], [[0, 1, 1, 0]]]).bool()
    assert energy_pointing_game(saliency, masks).tolist() == [0.75, 0, 1]


def test_rank_correlation() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(5, 12, 13, generator=generator)
    b = a + torch.randn(5, 12, 13, generator=generator)
    a[1:3], b[2:4] = a[1:3].round(), b[2:4].round()  # with ties
    expected = [
        stats.spearmanr(*pair).statistic for pair in zip(a.flatten(1).numpy(), b.flatten(1).numpy(), strict=True)
    ]
    torch.testing.assert_close(rank_correlation(a, b), torch.tensor(expected).float())
    assert rank_correlation(a, a.exp()).tolist() == pytest.approx([1] * 5)
    assert rank_correlation(a, -a).tolist() == pytest.approx([-1] * 5)
    assert rank_correlation(a, torch.ones_like(a)).isnan().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score_preserved(torch.ones(2), torch.ones(3)), r"to be \(B,\), but got \(2,\) and \(3,\)"),
        (lambda: average_increase(torch.ones(2, 1), torch.ones(2, 1)), r"to be \(B,\), but got \(2,1\)"),
        (lambda: class_kept(torch.ones(2, 3), torch.tensor([0])), r"targets to be \(2,\) integers, but got \(1,\)"),
        (lambda: class_kept(torch.ones(2, 3), torch.tensor([0, 3])), "targets from 0 to 2, but got 0 to 3"),
        (lambda: sparsity(torch.ones(3)), r"evidence to be \(B,H,W\), but got \(3,\)"),
        (
            lambda: sparsity(torch.full((1, 3, 2, 2), torch.nan)),
            "evidence without NaN and infinity, but got some in 1 of 1",
        ),
        (lambda: connectedness(torch.full((1, 2, 2), torch.nan)), "evidence without NaN"),
        (lambda: highlight(torch.ones(2, 3, 4, 4), torch.ones(2, 4, 5)), r"\(2,4,4\), but got \(2,4,5\)"),
        (lambda: highlight(torch.ones(1, 3, 4, 4), torch.ones(1, 4, 4), "max"), "maximum, min-max, but got 'max'"),
        (lambda: highlight(torch.ones(3, 4, 4), torch.ones(1, 4, 4)), r"x to be \(B,3,H,W\), but got \(3,4,4\)"),
        (lambda: pointing_game(torch.ones(1, 2, 2), torch.ones(1, 2, 2)), "booleans as the saliency, but got"),
        (lambda: energy_pointing_game(torch.ones(1, 2, 2), torch.ones(1, 2, 3).bool()), r"got \(1,2,3\) of torch.bool"),
        (lambda: rank_correlation(torch.ones(1, 2, 2), torch.ones(1, 2, 3)), r"\(1,2,2\) and \(1,2,3\)"),
        (lambda: boxes_to_masks([torch.ones(4)], 2, 2), r"\(N,4\), but got \(4,\)"),
        (lambda: boxes_to_masks([torch.tensor([[3, 0, 1, 2]])], 4, 4), r"right and bottom, but got \[3, 0, 1, 2\]"),
    ],
)
def test_errors(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
