"""Rows that pass through the network in parts, so that all runs of a large image fit into memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fgvis_lightning.method.games import Game


def in_parts(
    network: Callable[[Tensor], Tensor],
    score: Callable[[Tensor, Tensor], Tensor],
    e: Tensor,
    targets: Tensor,
    game: Game,
    size: int,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Logits and scores of explanations, of which only a part is in the network's memory at a time.

    Each part's gradient is computed at once. The returned scores have the same gradient with respect to ``e``, bit for
    bit, provided that the loss is linear in them as in `Game.loss`.

    Args:
        network: takes normalized images, returns logits (N,K).
        score: function of logits (N,K) and targets (N,) that returns scores (N,).
        e: explanations (B,3,H,W).
        targets: target classes (B,).
        game: the game, since the direction of the minimized loss determines which gates are open.
        size: number of rows in a part.
        scale: factor of the loss inside the network, as in mixed precision with float16.

    Returns:
        Detached logits (B,K), and scores (B,).
    """
    sign = -1 if game.keeps else 1  # of the score in the loss
    found: list[tuple[Tensor, ...]] = []
    for part, wanted in zip(e.detach().split(size), targets.split(size), strict=True):
        logits = network(part.requires_grad_())
        value = score(logits, wanted)
        (slope,) = torch.autograd.grad(scale * sign * value.sum(), part)
        found.append((logits.detach(), value.detach(), sign / scale * slope))
    logits, value, slope = (torch.cat(each) for each in zip(*found, strict=True))
    return logits, value + ((e - e.detach()) * slope).flatten(1).sum(1)
