from __future__ import annotations

from typing import Any

import pytest
import torch

from fgvis_lightning.method.games import GAMES, REFERENCES, SCORES, blend, log_odds


@pytest.mark.parametrize(
    ("name", "start", "expected"),
    [
        # three pixels of 0.5, 1, 0.25 in one image, a score of 0.75 and λ = 2: λ‖m‖₁ - s = 2.75
        ("preservation", 1.0, 2.75),
        ("deletion", 1.0, -2.75),
        ("generation", 0.0, 2.75),
        ("repression", 0.0, -2.75),
    ],
)
def test_objective_by_hand(name: str, start: float, expected: float) -> None:
    game = GAMES[name]
    mask = torch.tensor([0.5, 1.0, 0.25]).reshape(1, 3, 1, 1).repeat(2, 1, 1, 1)
    assert game.start == start
    assert game.loss(torch.tensor([0.75, 0.25]), mask, 2.0).tolist() == [
        expected,
        expected + (0.5 if expected > 0 else -0.5),
    ]
    assert game.loss(torch.tensor([0.75, 0.25]), mask, torch.tensor([2.0, 0.0])).tolist()[1] == pytest.approx(
        -0.25 if expected > 0 else 0.25
    )


def test_size_is_the_mean_of_the_evidence() -> None:
    mask = torch.tensor([0.5, 1.0, 0.0, 0.5]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert GAMES["preservation"].size(mask).tolist() == [0.5]
    assert GAMES["deletion"].size(mask).tolist() == [0.5]
    assert GAMES["repression"].evidence(mask)[0, 0].tolist() == [[0.5, 0.0], [1.0, 0.5]]


@pytest.mark.parametrize("reference", REFERENCES)
def test_blend_is_exact_at_both_ends(reference: str) -> None:
    x = torch.randn(2, 3, 16, 12)
    black = torch.tensor([-2.0, -1.0, -3.0])[:, None, None]
    r = REFERENCES[reference](x, black, torch.Generator().manual_seed(0))
    assert torch.equal(blend(x, torch.ones_like(x), r), x)
    assert torch.equal(blend(x, torch.zeros_like(x), r), torch.zeros_like(x) if r is None else r)
    half = blend(x, torch.full_like(x, 0.5), r)
    torch.testing.assert_close(half, x / 2 if r is None else (x + r) / 2)


def test_references_are_what_they_say() -> None:
    x = torch.randn(2, 3, 64, 64)
    black = torch.tensor([-2.0, -1.0, -3.0])[:, None, None]
    made: dict[str, Any] = {name: make(x, black, torch.Generator().manual_seed(3)) for name, make in REFERENCES.items()}
    assert made["zero"] is None
    assert made["black"][1, :, 5, 7].tolist() == [-2.0, -1.0, -3.0]
    assert torch.equal(made["noise"][0], made["noise"][1]), "the same noise for every image of a batch"
    assert made["noise"].std() == pytest.approx(1, abs=0.05)
    assert made["blurred"].std() < 0.3 * x.std()
    torch.testing.assert_close(
        REFERENCES["blurred"](torch.ones(1, 3, 32, 32), black, torch.Generator()), torch.ones(1, 3, 32, 32)
    )


def test_scores_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.3, 0.5], [0.7, 0.2, 0.1]], dtype=torch.float64))
    targets = torch.tensor([2, 0])
    torch.testing.assert_close(SCORES["probability"](logits + 3, targets), torch.tensor([0.5, 0.7]).double())
    torch.testing.assert_close(SCORES["log_probability"](logits + 3, targets), torch.tensor([0.5, 0.7]).double().log())
    torch.testing.assert_close(log_odds(logits + 3, targets), torch.tensor([0.5 / 0.5, 0.7 / 0.3]).double().log())
    assert log_odds(torch.tensor([[60.0, 0.0], [60.5, 0.0]]), torch.tensor([0, 0])).tolist() == [60.0, 60.5]
