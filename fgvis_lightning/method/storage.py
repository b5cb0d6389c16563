"""Masks as files hold them: rounded, and confirmed by the network that judges the result."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fgvis_lightning.method.games import Game, of_rows

STORAGE = torch.float16
"""Type of evidence as files hold it: what is tried is what is stored.

A score computed from it differs by less than 0.001 from that of the exact one.
"""

Judge = Callable[[Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def give_back(best: Tensor, game: Game, judge: Judge) -> tuple[Tensor, Tensor, Tensor]:
    """The best masks as files hold them, confirmed by the network that judges them.

    Where rounding or another precision has spoiled a mask that had reached its level, evidence is given back evenly
    until it does again.

    Args:
        best: masks (B,3,H,W).
        game: whose they are.
        judge: of masks, the plain network's logits (B,K) and the leads (B,).

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
    # Where even all of the image does not, what was found stays.
    missed = leads < 0
    return (
        torch.where(of_rows(missed, masks), nearest[0], masks),
        torch.where(missed[:, None], nearest[1], logits),
        torch.where(missed, nearest[2], leads),
    )
