"""Masks as stored in files: rounded, and confirmed by the plain network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fgvis_lightning.method.games import Game, of_rows

STORAGE = torch.float16
"""Data type of stored evidence; solvers try evidence exactly as it is stored.

Its score differs by less than 0.001 from the score of the unrounded evidence.
"""

Judge = Callable[[Tensor], tuple[Tensor, Tensor]]


def rounded(mask: Tensor, game: Game) -> Tensor:
    """A mask as it is stored in a file: with its evidence rounded to float16.

    Float16 has many numbers near 0, but none between 0.9995 and 1. If evidence is 1 - mask, rounding the mask itself
    would therefore lose faint evidence. One minus a float16 number is exact in float32, and so is the way back.

    Args:
        mask: mask of any shape, in [0,1].
        game: the game of the mask.

    Returns:
        A mask of the same data type; rounding it again does not change it.
    """
    evidence = game.evidence(mask.to(torch.promote_types(mask.dtype, torch.float32)))
    return game.evidence(evidence.to(STORAGE).to(evidence.dtype)).to(mask.dtype)


@torch.no_grad()
def give_back(best: Tensor, game: Game, judge: Judge) -> tuple[Tensor, Tensor, Tensor]:
    """Round the best masks as for storage, and confirm them with the plain network.

    If a mask misses its level because of rounding or another precision, evidence is restored evenly until the mask
    reaches the level again.

    Args:
        best: masks (B,3,H,W).
        game: the game of the masks.
        judge: function of masks that returns the plain network's logits (B,K) and the leads (B,).

    Returns:
        Masks (B,3,H,W), their logits (B,K) and leads (B,).
    """
    evidence = game.evidence(best)
    masks = game.evidence(evidence.to(STORAGE).to(best.dtype))
    logits, leads = judge(masks)
    nearest = masks, logits, leads
    for back in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
        short = leads < 0
        if not short.any():
            break
        more = game.evidence((evidence + back * (1 - evidence)).to(STORAGE).to(best.dtype))
        masks = torch.where(of_rows(short, masks), more, masks)
        logits, leads = judge(masks)
    # If even the whole image misses the level, the mask stays unchanged.
    missed = leads < 0
    return (
        torch.where(of_rows(missed, masks), nearest[0], masks),
        torch.where(missed[:, None], nearest[1], logits),
        torch.where(missed, nearest[2], leads),
    )
