from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_explainer import images
from toy_networks import Tiny

from fgvis_lightning import explain
from fgvis_lightning.method.convergence import EVERY, Plateau


def stops_at(objectives: Any, patience: int, tolerance: float, relative: bool) -> int | None:
    """The iteration at which an image with this course of the objective, one value every ten iterations, stops."""
    plateau = Plateau(2, patience, tolerance, relative)
    plateau.converged(1, 10, 0.0)  # the other place is nobody's business
    for look, objective in enumerate(objectives, 1):
        assert plateau.is_due(look * EVERY) == (patience > 0)
        if patience and plateau.converged(0, look * EVERY, objective):
            return look * EVERY
    return None


@pytest.mark.parametrize(
    ("objectives", "tolerance", "relative", "expected"),
    [
        ([1.0] * 10, 0.1, True, 40),  # progress at 10 alone
        ([1.0, 0.8, 0.8, 0.79, 0.79, 0.78], 0.1, True, 50),
        ([0.9**k for k in range(20)], 0.1, True, None),
        ([0.95**k for k in range(20)], 0.2, True, 40),  # three steps of 5 % are not 20 %
        ([0.95**k for k in range(20)], 0.1, True, None),  # but of 10 %
        ([math.inf] * 10, 0.1, True, None),  # the level has not been reached
        ([math.inf] * 5 + [1.0] * 5, 0.1, True, 90),
        ([-0.5, -0.6, -0.61, -0.62, -0.63, -0.64], 0.05, False, 50),
        ([-0.5 - k for k in range(10)], 0.05, False, None),
        ([1.0, 3.0, 3.0, 0.9, 0.9, 0.9, 0.9], 0.05, False, 70),  # progress just in time
    ],
)
def test_rule(objectives: list[float], tolerance: float, relative: bool, expected: int | None) -> None:
    assert stops_at(objectives, 30, tolerance, relative) == expected
    assert stops_at(objectives, 0, tolerance, relative) is None


def adagrad(params: Any) -> torch.optim.Optimizer:
    """Whose state is there from the beginning, and counts steps."""
    return torch.optim.Adagrad(params, lr=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"game": "preservation", "seeds": 1},
        {"game": "deletion", "seeds": 1, "noise": 0.1},
        {"game": "preservation", "lam": 0.01, "optimizer": torch.optim.Adam},
        {"game": "deletion", "lam": 0.0, "optimizer": adagrad, "noise": 0.1},
        {"game": "generation", "lam": 0.001, "reference": "noise"},
        {"game": "repression", "lam": 0.001, "reference": "blurred"},
    ],
    ids=lambda options: f"{options['game']}-{options.get('lam', 'auto')}",
)
def test_places_that_become_free_change_nothing(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Six images in two places are explained as each is alone, whenever its place became free."""

    def at_any_time(plateau: Plateau, place: int, iteration: int, objective: float) -> bool:
        """By the objective's digits, so at very different times."""
        return math.isfinite(objective) and iteration >= 10 * (1 + int(objective * 2**20) % 4)

    monkeypatch.setattr(Plateau, "converged", at_any_time)
    batch = images(6, seed=2)
    together = explain(Tiny(), batch, iterations=50, batch_size=2, **options)
    assert together.iterations is not None
    assert len(set(together.iterations.tolist())) > 1, "all of them stopped together: nothing is shown"
    for i in range(6):
        # In one of two places: the batch size is the same.
        alone = explain(Tiny(), batch[i : i + 1], iterations=50, batch_size=2, **options)
        assert torch.equal(alone.mask[0], together.mask[i])
        assert alone.iterations == together.iterations[i]
        assert torch.equal(alone.score_explanation[0], together.score_explanation[i])
        assert alone.coverage is not None
        assert together.coverage is not None
        assert torch.equal(alone.coverage.closed[0], together.coverage.closed[i])  # type: ignore[index]


def test_stopping_early_is_stopping_there() -> None:
    """An image that stopped after k of many iterations has what it has after k of k, for a fixed λ."""
    batch = images(4, seed=2)
    options: dict[str, Any] = {"game": "preservation", "lam": 0.01, "batch_size": 4}
    stopped = explain(Tiny(), batch, iterations=300, patience=10, tolerance=0.05, **options)
    assert stopped.iterations is not None
    for i, count in enumerate(stopped.iterations.tolist()):
        assert count < 300
        exact = explain(Tiny(), batch, iterations=count, patience=0, **options)
        assert torch.equal(exact.mask[i], stopped.mask[i])
    off = explain(Tiny(), batch, iterations=300, patience=0, **options)
    assert off.iterations is not None
    assert off.iterations.tolist() == [300] * 4
