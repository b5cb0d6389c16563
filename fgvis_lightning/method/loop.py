"""The method in one loop (Wagner et al., CVPR 2019, sections 3.1 and 3.2).

`FGVis` runs the same steps under Lightning; here they are in sequence, without noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fgvis_lightning.method.games import Game, blend, divide_by_largest, log_probability
from fgvis_lightning.method.level import bound, lead
from fgvis_lightning.method.options import NEAR_ONE
from fgvis_lightning.method.solver import Solver


def solve(
    network: Any,
    x: Tensor,
    targets: Tensor,
    game: Game,
    optimizer: Callable[[Iterable[Any]], Optimizer],
    *,
    iterations: int,
    lam: float = 0.0,
    level: float = 1.0,
    seeds: int = 1,
    seed: int = 0,
    score: Callable[[Tensor, Tensor], Tensor] = log_probability,
) -> Tensor:
    """Explain images with the zero reference.

    Args:
        network: a `fgvis_lightning.DefendedCNN`.
        x: normalized images (B,C,H,W).
        targets: target classes (B,).
        game: one of `fgvis_lightning.method.games.GAMES`.
        optimizer: makes the optimizer of the masks: a solver, or any torch optimizer for a fixed λ.
        iterations: number of iterations.
        lam: the fixed λ; 0 for a solver, which would take its gradient for the score's.
        level: for a solver, the score to reach as a share of the image's own.
        seeds: number of runs for each image.
        seed: seed of the first run.
        score: function of logits (B,K) and targets (B,) that returns the score of the target class (B,).

    Returns:
        The masks (B,C,H,W): the best ones found by a solver, otherwise those of the last iteration, averaged over the
        runs.
    """
    x, targets = x.repeat_interleave(seeds, 0), targets.repeat_interleave(seeds, 0)
    clean = network.record(x)  # h(x) for the gates
    goal = bound(level, clean, targets)
    mask = nn.Parameter(torch.full_like(x, game.start))
    own = {"runs": seeds, "keeps": game.keeps, "iterations": iterations, "seed": seed}
    steps = optimizer([{"params": [mask], **own}])
    if not isinstance(steps, Solver) and game.start == 1:
        mask.detach().fill_(NEAR_ONE)
    every = slice(None)
    for _ in range(iterations):
        if isinstance(steps, Solver) and seeds > 1 and steps.finishing and every == slice(None):
            every = slice(None, None, seeds)  # only one run of each image continues
            network.record(x[every])
        logits = network(blend(x[every], mask[every], None))
        game.loss(score(logits, targets[every]), mask[every], lam).sum().backward()  # through the gates
        if isinstance(steps, Solver):
            steps.tell(lead(game, logits.detach(), targets[every], goal[every]))
        else:
            assert mask.grad is not None
            divide_by_largest(mask.grad)
        steps.step()
        steps.zero_grad()
        with torch.no_grad():
            mask.clamp_(0, 1)
    if not isinstance(steps, Solver):
        return mask.detach().unflatten(0, (-1, seeds)).mean(1)
    return steps.best()
