"""The solvers, on networks whose evidence is known, and FGVis against the method's own loop."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_networks import Tiny

from fgvis_lightning import DefendedCNN, explain
from fgvis_lightning.method.games import GAMES, Game, log_odds
from fgvis_lightning.method.level import bound, lead
from fgvis_lightning.method.loop import solve
from fgvis_lightning.method.options import sgd
from fgvis_lightning.method.runs import agreement, top
from fgvis_lightning.method.solver import Solver
from fgvis_lightning.method.solvers import SOLVERS, Pruning, Thresholding
from fgvis_lightning.method.storage import give_back, rounded

SHAPE = (3, 28, 28)
PLANTED = (..., slice(8, 14), slice(8, 14))  # the pixels that alone decide
TARGETS = torch.zeros(1, dtype=torch.long)


def logits(mask: Tensor) -> Tensor:
    """An analytic network of two classes: the log-odds of class 0 fall by 10 with the planted pixels of masks (B,…)."""
    own = 2 - 10 * (1 - mask[PLANTED].flatten(1).mean(1))
    return torch.stack([own, torch.zeros_like(own)], 1)


def masks_of(game: Game, seeds: int) -> nn.Parameter:
    return nn.Parameter(torch.full((seeds, *SHAPE), game.start))


def run(game: Game, level: float, iterations: int, seeds: int, **options: Any) -> tuple[Solver, list[float]]:
    """A solver on the analytic network; and the size of the best evidence after each iteration."""
    masks = masks_of(game, seeds)
    group = {"params": [masks], "runs": seeds, "keeps": game.keeps, "iterations": iterations, **options}
    solver = SOLVERS[game.name]([group])
    goal = bound(level, logits(torch.ones(1, *SHAPE)), TARGETS)
    sizes = []
    for _ in range(iterations):
        found = logits(masks)
        game.loss(log_odds(found, TARGETS.expand(seeds)), masks, 0.0).sum().backward()
        solver.tell(lead(game, found.detach(), TARGETS.expand(seeds), goal))
        solver.step()
        solver.zero_grad()
        best = solver.found(0)
        assert best is not None
        sizes.append(best.size if best.reached >= 0 else math.inf)
    return solver, sizes


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("game", GAMES.values(), ids=lambda game: game.name)
def test_finds_the_planted_evidence(game: Game, seeds: int) -> None:
    level = 1.0 if game.keeps else 0.5
    solver, _ = run(game, level, 60, seeds)
    found = solver.found(0)
    assert found is not None
    assert found.reached >= 0
    goal = bound(level, logits(torch.ones(1, *SHAPE)), TARGETS)
    assert (lead(game, logits(game.evidence(found.best)[None]), TARGETS, goal) >= 0).all()
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[PLANTED] = True
    assert found.best[inside].mean() > (0.95 if game.keeps else 0.2)
    assert found.best[~inside].mean() < 0.01
    assert torch.equal(found.best, found.best.half().float()), "not what a file would hold"
    assert found.ranking[inside].min() > found.ranking[~inside].max(), "what matters ranks highest"
    assert (0 < solver.agreement(0) <= 1) if seeds > 1 else True


@pytest.mark.parametrize("game", GAMES.values(), ids=lambda game: game.name)
def test_the_best_only_gets_smaller(game: Game) -> None:
    _, sizes = run(game, 1.0 if game.keeps else 0.1, 40, 1)
    assert all(later <= before for before, later in itertools.pairwise(sizes))
    assert sizes[-1] < 1


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize("game", GAMES.values(), ids=lambda game: game.name)
def test_a_level_that_cannot_be_reached_is_said(game: Game, seeds: int) -> None:
    solver, sizes = run(game, 2.0 if game.keeps else 1e-9, 30, seeds)
    found = solver.found(0)
    assert found is not None
    assert found.reached == -1
    assert sizes[-1] == math.inf
    assert found.best.isfinite().all()


@pytest.mark.parametrize("game", GAMES.values(), ids=lambda game: game.name)
def test_entries_are_chosen_by_gradients_alone(game: Game) -> None:
    """With one run there is no chance at all, and other seeds change nothing."""
    one, other = (run(game, 0.9 if game.keeps else 0.3, 25, 1, seed=seed)[0] for seed in (0, 1))
    found = [solver.found(0) for solver in (one, other)]
    assert torch.equal(found[0].best, found[1].best)  # type: ignore[union-attr]


def test_a_pruning_that_can_spare_nothing_goes_on_from_brighter_evidence() -> None:
    """It made the same few attempts again and again."""
    masks = nn.Parameter(torch.ones(1, *SHAPE))
    solver = Pruning([{"params": [masks], "runs": 1, "keeps": True, "iterations": 100}])
    draw = torch.Generator().manual_seed(0)
    tried: list[float] = []
    size = 1.0
    for _ in range(100):
        tried.append(float(masks.detach().mean()))
        masks.grad = -torch.rand(masks.shape, generator=draw)
        solver.tell(torch.tensor([1.0 if size > 0.3 or tried[-1] >= 1.1 * size else -1.0]))
        solver.step()
        size = float(solver.best().mean())
    stuck = tried[tried.index(size) + 1 :]
    assert len(stuck) > 80
    assert 0.2 < size < 0.3
    assert max(stuck) == pytest.approx(1.2 * size, rel=0.05)
    assert sum(one > size for one in stuck) > 10
    assert len({round(one, 6) for one in stuck}) > 40


def test_entries_of_much_worth_take_the_place_of_others() -> None:
    """Entries of a photo that fades in are equally bright; those of ten times the weight alone need less in total."""
    weight = torch.zeros(SHAPE)
    weight[0], weight[1] = 10, 1
    weight /= weight.sum()
    masks = nn.Parameter(torch.zeros(1, *SHAPE))
    solver = Pruning([{"params": [masks], "runs": 1, "keeps": True, "iterations": 200}])
    for _ in range(200):
        masks.grad = -weight.expand_as(masks).clone()
        solver.tell((masks * weight).sum((1, 2, 3)).detach() - 0.39)  # after 0.1 and 0.2, all entries have 0.4
        solver.step()
    heavy, light, none = solver.best()[0].mean((1, 2)).tolist()
    assert heavy == pytest.approx(0.429, rel=0.03)  # 0.39 · 11 / 10
    assert light < 0.02
    assert none == 0


def test_reached_is_the_first_time_in_any_run() -> None:
    """Not in the run with the smallest evidence, which changes until the runs are joined."""
    masks = masks_of(GAMES["deletion"], 2)
    solver = Thresholding([{"params": [masks], "runs": 2, "keeps": False, "iterations": 100}])
    draw = torch.Generator().manual_seed(0)
    smallest = set()
    for iteration in range(25):
        masks.grad = torch.rand(masks.shape, generator=draw)
        leads = torch.tensor([float(iteration == 1), float(iteration > 2)]) - 0.5
        solver.tell(leads[1:] if solver.finishing else leads)
        solver.step()
        found = solver.found(0)
        assert found is not None
        smallest.add(found.reached)
        assert solver.summary([0])["reached"].tolist() == [1 if iteration else -1]
    assert smallest >= {1, 3}
    assert solver.finishing


def test_without_gradients_nothing_happens() -> None:
    """As when a gradient scaler leaves a step out."""
    masks = masks_of(GAMES["preservation"], 1)
    solver = Pruning([masks])
    solver.tell(torch.zeros(1))
    solver.step()
    assert torch.equal(masks, torch.ones(1, *SHAPE))


@pytest.mark.parametrize("solver", [Pruning, Thresholding])
def test_an_image_does_not_know_of_the_others(solver: Any) -> None:
    game = GAMES["preservation" if solver is Pruning else "deletion"]
    options = {"iterations": 12, "seeds": 3, "level": 0.9 if game.keeps else 0.3}
    network = DefendedCNN(Tiny().double().eval(), gate="restoring" if game.keeps else "strict")
    x = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    targets = torch.tensor([0, 1, 2])
    together = solve(network, x, targets, game, solver, **options)  # type: ignore[arg-type]
    for i in range(3):
        alone = solve(network, x[i : i + 1], targets[i : i + 1], game, solver, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(alone[0], together[i], rtol=1e-6, atol=2e-3)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("game", GAMES)
def test_fgvis_is_the_methods_loop(game: Any, seeds: int) -> None:
    """Places, hooks and all: the same masks, bit for bit."""
    network = Tiny().double().eval()
    images = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    level = 0.9 if GAMES[game].keeps else 0.3
    options: dict[str, Any] = {"iterations": 14, "seeds": seeds, "level": level}
    means = (0.5,) * 3, (0.25,) * 3
    found = explain(network, images, [0, 1, 2], game=game, precision="64-true", normalize=means, fold=False, **options)
    x = ((images - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
    defended = DefendedCNN(network, gate="restoring" if GAMES[game].keeps else "strict")
    masks = solve(defended, x, torch.tensor([0, 1, 2]), GAMES[game], SOLVERS[game], **options)
    assert found.feasible is not None
    assert torch.equal(found.mask[found.feasible], masks[found.feasible].float())
    assert found.feasible.any()


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("game", GAMES)
def test_fgvis_is_the_methods_loop_for_a_fixed_lam(game: Any, seeds: int) -> None:
    """Also where the masks start: not at 1, where all gates are open."""
    network = Tiny().double().eval()
    images = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    options: dict[str, Any] = {"iterations": 5, "seeds": seeds, "lam": 1e-3}
    given: dict[str, Any] = {
        "precision": "64-true",
        "normalize": ((0.5,) * 3, (0.25,) * 3),
        "fold": False,
        "noise": 0.0,
    }
    found = explain(network, images, [0, 1, 2], game=game, **given, **options)
    x = ((images - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
    masks = solve(DefendedCNN(network), x, torch.tensor([0, 1, 2]), GAMES[game], sgd, **options)
    assert torch.equal(found.mask, rounded(masks, GAMES[game]).float())


@pytest.mark.parametrize("game", ["preservation", "deletion"])
def test_joined_runs_cost_one_pass(game: Any) -> None:
    """After the runs are joined, one row of each image passes through the network."""
    sizes: list[int] = []

    class Counting(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    network = DefendedCNN(Counting().double().eval(), gate="restoring" if GAMES[game].keeps else "strict")
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    level = 0.9 if GAMES[game].keeps else 0.3
    solve(network, x, torch.tensor([0, 1]), GAMES[game], SOLVERS[game], iterations=40, seeds=3, level=level)
    assert sizes.count(6) < 20
    assert sizes[-20:] == [2] * 20


@pytest.mark.parametrize(("level", "image"), [(1.0, 2.0), (0.5, 2.0), (0.1, -3.0)])
def test_bound_is_the_levels_log_odds(level: float, image: float) -> None:
    p = level / (1 + math.exp(-image))
    found = bound(level, torch.tensor([[image, 0.0]]), TARGETS)
    torch.testing.assert_close(found, torch.tensor([math.log(p / (1 - p))]), rtol=1e-5, atol=0)
    assert bound(2.0, torch.tensor([[2.0, 0.0]]), TARGETS).isinf().all()


def test_top_and_agreement() -> None:
    worth = torch.tensor([0.0, 3.0, 1.0, 2.0])
    assert top(worth, 0.5).tolist() == [0, 1, 0, 1]
    assert top(worth, 0.1).tolist() == [0, 0, 0, 0]
    assert top(worth, 1.0).tolist() == [1, 1, 1, 1]
    assert agreement([worth, 2 * worth]) == pytest.approx(1)
    assert agreement([worth, -worth]) == pytest.approx(-1)
    assert math.isnan(agreement([torch.ones(3), worth[:3]]))


@pytest.mark.parametrize("game", GAMES.values(), ids=lambda game: game.name)
def test_what_rounding_spoils_is_given_back(game: Game) -> None:
    best = game.evidence(torch.full((1, *SHAPE), 0.3))
    asked = logits(game.evidence(torch.full((1, *SHAPE), 0.35)))
    goal = log_odds(asked, TARGETS)

    def judge(mask: Tensor) -> tuple[Tensor, Tensor]:
        return logits(mask), lead(game, logits(mask), TARGETS, goal)

    masks, _, leads = give_back(best, game, judge)
    assert (leads >= 0).all()
    assert 0.35 <= game.evidence(masks).mean() < 0.5
    assert torch.equal(give_back(masks, game, judge)[0], masks)


def test_confirmation_by_another_precision_takes_evidence_back() -> None:
    solver, _ = run(GAMES["preservation"], 0.9, 10, 1)
    before = solver.found(0)
    assert before is not None
    solver.confirm(0, 0.5)
    sure = before.best.clone()
    before.best = before.best * 0.5
    before.size = float(before.best.mean())
    solver.confirm(0, -0.2)
    after = solver.found(0)
    assert after is not None
    assert torch.equal(after.best, sure)
    assert after.margin > 0.2
