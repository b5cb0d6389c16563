"""Rows in parts: fewer pass through the network together than an image has runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_results import photo
from test_explainer import images
from torch import Tensor
from toy_networks import Hungry, Tiny

from fgvis_lightning import DefendedCNN, explain, load_explanations
from fgvis_lightning.cli import main
from fgvis_lightning.data.batches import divided
from fgvis_lightning.engine.mask_module import in_parts
from fgvis_lightning.method.games import GAMES, log_probability


def test_items_and_runs_are_divided_into_equal_passes() -> None:
    assert [divided(rows, 6) for rows in (1, 2, 3, 4, 5)] == [(1, 1), (1, 2), (1, 3), (1, 3), (1, 3)]
    assert [divided(rows, 6) for rows in (6, 11, 12)] == [(1, None), (1, None), (2, None)]
    assert divided(4, 5) == (1, 1)
    assert divided(8, 1) == (8, None)


@pytest.mark.parametrize("game", ["preservation", "deletion"])
@pytest.mark.parametrize("gate", ["strict", "restoring"])
def test_parts_have_the_gradient_of_the_whole(game: str, gate: str) -> None:
    x = images(1, size=16).double().repeat(6, 1, 1, 1)
    e = (x * torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1)) * 1.5).requires_grad_()
    targets, mask = torch.full((6,), 2), torch.ones_like(x)
    network, rule = DefendedCNN(Tiny().double().eval(), gate=gate), GAMES[game]

    def slope(scored: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        logits, score = scored()
        return logits, torch.autograd.grad(rule.loss(score, mask, 0.1).sum(), e)[0]

    def whole() -> tuple[Tensor, Tensor]:
        logits = network(e)
        return logits.detach(), log_probability(logits, targets)

    network.record(x)
    assert network.closed(e).any(), "all gates are open: nothing is shown"
    logits, gradient = slope(whole)
    for size, scale in ((1, 1.0), (3, 1024.0)):
        network.record(x[:size])
        found = slope(lambda: in_parts(network, log_probability, e, targets, rule, size, scale))  # noqa: B023
        torch.testing.assert_close(found, (logits, gradient), rtol=1e-9, atol=1e-12)


class Watched(Tiny):
    """Remembers the largest number of rows of a pass."""

    most = 0

    def forward(self, x: Tensor) -> Tensor:
        Watched.most = max(Watched.most, len(x))
        return super().forward(x)


@pytest.mark.parametrize("options", [["--model.lam", "auto"], ["--model.lam", "1e-3", "--model.noise", "0.1"]])
def test_batch_size_limits_the_rows_of_a_pass(options: list[str], tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png", 0)
    for rows, most in (("6", 6), ("4", 3), ("1", 2)):  # two noise images when the network is loaded
        Watched.most = 0
        run = ["fit", "--data.images", str(path), "--model.network", "test_parts.Watched", "--data.batch_size", rows]
        size = ["--model.classifier.size", "32", "--model.seeds", "6", "--model.iterations", "40"]
        main([*run, *size, *options, "--output", str(tmp_path / rows)])
        assert Watched.most == most
    whole, *parts = (load_explanations(tmp_path / rows)[0] for rows in ("6", "4", "1"))
    for found in parts:
        torch.testing.assert_close(found.score_image, whole.score_image, rtol=1e-4, atol=1e-5)
        assert found.seeds == 6
        assert float(found.evidence.mean()) == pytest.approx(float(whole.evidence.mean()), rel=0.2)


def test_several_large_inputs_in_a_pass_are_mentioned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("fgvis_lightning.data.image_data.LARGE", 32 * 32 - 1)
    path = photo(tmp_path / "a.png", 0)
    run = ["fit", "--data.images", str(path), "--model.network", "toy_networks.Tiny", "--model.iterations", "1"]
    for runs, rows in (("6", "8"), ("6", "2"), ("1", "1")):
        more = ["--model.classifier.size", "32", "--model.seeds", runs, "--data.batch_size", rows]
        main([*run, *more, "--output", str(tmp_path / f"{runs}_{rows}")])
    said = [line for line in capsys.readouterr().err.splitlines() if "together" in line]
    words = "6 inputs of 32×32 pixels pass through the network together; --data.batch_size 1 takes the least memory."
    assert said == [words]


def test_auto_divides_an_image_that_does_not_fit_with_all_runs() -> None:
    """Six runs where five fit at a time: two parts of three."""
    batch = images(2)
    found = explain(Hungry(), batch, iterations=40, seeds=6, batch_size="auto")
    assert found.feasible is not None
    assert found.feasible.all()
    assert explain(Hungry(), batch, iterations=40, seeds=6, batch_size=3) == found
    with pytest.raises(torch.OutOfMemoryError):
        explain(Hungry(), batch, iterations=40, seeds=6, batch_size=6)


def test_auto_begins_with_one_run_again_where_one_image_was_divided(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    firsts: list[int] = []

    def one_run(attempt: Callable[[int], None], most: int, first: int, room: object) -> int:
        firsts.append(first)
        attempt(1)
        return 1

    monkeypatch.setattr("fgvis_lightning.explainer.largest_batch_size", one_run)
    run = ["fit", "--model.network", "toy_networks.Tiny", "--model.classifier.size", "32", "--model.iterations", "2"]
    for name in ("a", "b"):
        path = photo(tmp_path / f"{name}.png", 0)
        main([*run, "--data.images", str(path), "--data.batch_size", "auto", "--output", str(tmp_path / "run")])
    assert len(load_explanations(tmp_path / "run")) == 2
    assert firsts == [1, 1]
