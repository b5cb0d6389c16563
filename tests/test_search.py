from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fgvis_lightning.games import GAMES
from fgvis_lightning.search import GRID, MARGIN, Search

SHAPE = (2, 3, 28, 28)
PLANTED = (slice(None), slice(None), slice(8, 14), slice(8, 14))  # the pixels that alone decide


def logits(mask: Tensor) -> Tensor:
    """An analytic network of two classes: the log-odds of class 0 fall by 10 with the planted pixels of the mask."""
    own = 2 - 10 * (1 - mask[PLANTED].flatten(1).mean(1))
    return torch.stack([own, torch.zeros_like(own)], 1)


def gradient(mask: Tensor) -> Tensor:
    """Of the log-odds to the mask, 1 at most."""
    slope = torch.zeros_like(mask)
    slope[PLANTED] = 1.0
    return slope


class Counting(Search):
    """A search that counts iterations itself, the same for all images."""

    observed = proposed = 0

    def observe(self, mask: Tensor, logits: Tensor, iterations: Sequence[int] = ()) -> None:
        super().observe(mask, logits, iterations or [self.observed] * len(mask))
        self.observed += 1

    def propose(self, mask: Tensor, iterations: Sequence[int] = ()) -> Tensor:
        proposal = super().propose(mask, iterations or [self.proposed] * len(mask))
        self.proposed += 1
        return proposal


def start(game: str, level: float, iterations: int = 100, seed: int = 0) -> tuple[Counting, Tensor]:
    mask = torch.full(SHAPE, GAMES[game].start)
    targets = torch.zeros(2, dtype=torch.long)
    at_image = logits(torch.ones(SHAPE))
    whole = logits(GAMES[game].evidence(torch.ones(SHAPE)))
    search = Counting(GAMES[game], level, mask, iterations, seed)
    search.start(torch.ones(2, dtype=torch.bool), targets, mask, at_image, whole)
    return search, mask


def run(game: str, level: float, iterations: int) -> Counting:
    """What FGVis does with a search, the optimizer being steps of 0.1 along the gradient."""
    search, mask = start(game, level, iterations)
    direction = -1 if GAMES[game].keeps else 1
    for _ in range(iterations):
        search.observe(mask, logits(mask))
        objective = direction * gradient(mask)
        search.learn(objective)
        mask = search.propose((mask - 0.1 * objective).clamp(0, 1))
    search.observe(mask, logits(mask))
    return search


@pytest.mark.parametrize("game", GAMES)
def test_finds_the_planted_evidence(game: str) -> None:
    keeps = GAMES[game].keeps
    search = run(game, 1.0 if keeps else 0.5, 250)
    evidence = GAMES[game].evidence(search.best)
    assert search.feasible.all()
    assert search.reached(logits(search.best)).all()
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[PLANTED] = True
    assert evidence[inside].mean() > (0.95 if keeps else 0.2)
    assert evidence[~inside].mean() < 0.03
    assert torch.equal(search.best, search.best.half().float()), "not what a file would hold"


@pytest.mark.parametrize(("game", "level"), [("preservation", 1.0), ("preservation", 0.5), ("deletion", 0.1)])
def test_bound_is_the_levels_log_odds(game: str, level: float) -> None:
    search, _ = start(game, level)
    p = level / (1 + math.exp(-2))
    torch.testing.assert_close(search.bound, torch.full((2,), math.log(p / (1 - p))), rtol=1e-5, atol=0)
    assert search.feasible.all() == (game == "preservation")


def test_level_that_no_probability_reaches() -> None:
    search, mask = start("preservation", 2.0)
    assert search.bound.isinf().all()
    search.observe(mask, logits(mask))
    assert not search.feasible.any()
    assert torch.equal(search.propose(mask * 0.5), mask * 0.5)


def test_best_is_never_worse_than_before() -> None:
    search, _ = start("preservation", 1.0)
    sizes = []
    for _ in range(60):
        proposal = search.propose(search.best)
        search.observe(proposal, logits(proposal))
        search.learn(-gradient(proposal))
        assert (search.lead(logits(search.best)) >= 0).all()
        sizes.append(search.best.mean().item())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.5


def test_margin_keeps_rounding_from_deciding() -> None:
    search, mask = start("preservation", 1.0)
    proposal = search.propose(mask)
    just = logits(torch.ones(SHAPE)) + torch.tensor([MARGIN / 2, 0.0])
    search.observe(mask, logits(mask) + torch.tensor([1.0, 0.0]))
    search.observe(proposal, just)
    assert torch.equal(search.best, mask)
    search.observe(proposal, just + torch.tensor([MARGIN, 0.0]))
    assert torch.equal(search.best, proposal)


def test_spared_pixels_are_not_touched() -> None:
    search, mask = start("preservation", 1.0)
    search.learn(-gradient(mask))
    for _ in range(30):
        assert (search.propose(mask)[PLANTED] == 1).all()
        search.observe(mask, logits(mask) + torch.tensor([1.0, 0.0]))  # all is well: larger and larger proposals
        search.best = mask
    assert search.propose(mask).mean() < 0.9


def test_the_share_of_blocks_waits_for_the_first_proposal() -> None:
    search, mask = start("generation", 1.0)
    before = search._share.clone()
    for _ in range(5):
        search.observe(mask, logits(mask))
    assert torch.equal(search._share, before)


def test_a_mask_of_the_optimizers_is_rounded_and_judged_again() -> None:
    search, mask = start("generation", 0.5)
    search.observe(mask + 0.70001, logits(torch.ones(SHAPE)))
    result, seen = search.result(lambda masks: logits(masks))
    assert torch.equal(seen, logits(result))
    assert torch.equal(result, result.half().float())
    assert search.reached(logits(result)).all()


def test_blocks_are_smooth_of_any_size_and_alike_for_all_images() -> None:
    search, _ = start("preservation", 1.0)
    search._share = torch.tensor([0.2, 0.2])
    for size in ((28, 28), (33, 50), (5, 9)):
        blocks = search._blocks(torch.zeros(2, 3, *size), [0, 0])
        assert blocks.shape == (2, 1, *size)
        assert torch.equal(blocks[0], blocks[1])
        assert blocks.min() >= 0
        assert blocks.max() <= 1
    drawn = torch.stack([search._blocks(torch.zeros(2, 3, 56, 56), [k, k]) for k in range(400)])
    assert drawn.mean() == pytest.approx(0.2, abs=0.03)
    assert (drawn[..., 1:] - drawn[..., :-1]).abs().max() <= 1 / (56 // GRID) + 1e-6
    search._share = torch.tensor([1e-6, 0.5])
    chosen = torch.stack([search._blocks(torch.zeros(2, 3, 28, 28), [k, k]).amax((1, 2, 3)) for k in range(50)])
    assert chosen[:, 0].mean() > 0.5, "an empty proposal says nothing"


def test_short_results_get_evidence_back_until_they_reach_the_level() -> None:
    """As under mixed precision, where the network that judges the result is not the one that led to it."""
    search = run("preservation", 1.0, 100)

    def stricter(mask: Tensor) -> Tensor:
        return logits(mask) - torch.tensor([0.2, 0.0]) * (1 - mask.mean())

    assert not search.reached(stricter(search.best)).any()
    result, seen = search.result(stricter)
    assert torch.equal(seen, stricter(result))
    assert search.reached(stricter(result)).all()
    assert (result >= search.best).all()
    assert torch.equal(search.result(logits)[0], search.best)


@pytest.mark.parametrize("game", GAMES)
def test_an_image_that_begins_later_has_the_same_search(game: str) -> None:
    """Places get new images at any time: nothing of the old one is left, and the blocks are those of its own time."""
    level, steps = (1.0, 40) if GAMES[game].keeps else (0.5, 40)
    search, mask = start(game, level, steps)
    fresh = mask.clone()
    other, other_mask = start(game, level, steps)
    direction = -1 if GAMES[game].keeps else 1
    late = 7
    for step in range(steps + late):
        if step == late:
            new, whole = torch.tensor([False, True]), logits(GAMES[game].evidence(torch.ones(SHAPE)))
            search.start(new, torch.zeros(2, dtype=torch.long), fresh, logits(torch.ones(SHAPE)), whole)
            mask = torch.stack([mask[0], fresh[1]])
        at = [step, step - late if step >= late else step]
        search.observe(mask, logits(mask), at)
        search.learn(direction * gradient(mask))
        mask = search.propose((mask - 0.1 * direction * gradient(mask)).clamp(0, 1), at)
        if step < steps:
            other.observe(other_mask, logits(other_mask))
            other.learn(direction * gradient(other_mask))
            other_mask = other.propose((other_mask - 0.1 * direction * gradient(other_mask)).clamp(0, 1))
    assert torch.equal(search.best[1], other.best[1])
    assert torch.equal(mask[1], other_mask[1])
    assert not torch.equal(search.best[0], search.best[1]), "the test has shown nothing"


def test_masks_that_are_good_by_mistake_are_taken_back() -> None:
    """As under mixed precision: the iterations see log-odds that are 0.5 too good for the second image."""
    search, mask = start("preservation", 1.0)
    error, both = torch.tensor([[0.0, 0.0], [0.5, 0.0]]), torch.tensor([True, True])

    def judge(mask: Tensor) -> Tensor:
        """Any evidence that goes costs a little."""
        return logits(mask) - torch.tensor([0.3, 0.0]) * (1 - mask.flatten(1).mean(1))[:, None]

    def step(mask: Tensor) -> Tensor:
        search.observe(mask, judge(mask) + error)
        search.learn(-gradient(mask))
        return search.propose(mask)

    for _ in range(20):
        mask = step(mask)
    assert torch.equal(search.best[0], torch.ones(SHAPE[1:]))
    wrong = search.best.clone()
    assert wrong[1].mean() < 1
    assert not search.reached(judge(wrong))[1]
    search.verify(judge, torch.tensor([True, False]))
    assert torch.equal(search.best, wrong), "the second was not asked about"
    search.verify(judge, both)
    assert torch.equal(search.best[1], torch.ones(SHAPE[1:]))
    assert search._margin[1] >= 0.5 - 1e-4
    for _ in range(20):
        mask = step(mask)
    assert search.reached(judge(search.best)).all(), "it happened again"
    search.best = wrong
    assert torch.equal(search.result(judge)[0][1], torch.ones(SHAPE[1:])), "the last masks that were good"
