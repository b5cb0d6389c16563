"""Numbers as texts: the same in the terminal, in panels and in notebooks."""

from __future__ import annotations

import math

from torch import Tensor

from fgvis_lightning.method.games import GAMES

USUAL = "0.1 to 0.6 is usual"
"""What the agreement of single runs mostly is, in every game; measured in docs/method.md, "How stable"."""


def as_number(text: str | None) -> float:
    """The number that a text is; NaN if it is none."""
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def score_after(game: str | None) -> str:
    """Name of an explanation's second score, by the name of its game; the first is the score on the image."""
    loses = game in GAMES and not GAMES[game].keeps
    return "score without the evidence" if loses else "score on the explanation"


def percent(share: float | Tensor) -> str:
    """A share in [0,1] as a percentage with one decimal; below 0.1 % with one digit, so that only nothing is 0.0 %."""
    value = 100 * float(share)
    if 0 < value < 0.0001:
        return "<0.0001 %"
    return f"{value:.1f} %" if value >= 0.1 or value == 0 else f"{value:.1g} %"


def probability(score: float | Tensor) -> str:
    """A score in [0,1] with three decimals; ``<0.001`` and ``>0.999`` if it would be rounded to 0 or 1."""
    value = float(score)
    if 0 < value < 0.0005:
        return "<0.001"
    return ">0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def level_of(feasible: bool | None, sparsity: float) -> str:
    """Whether the level was ``reached`` or ``missed``; empty without a level.

    A level that nothing but the whole image reaches is named ``whole image``, since such an explanation says nothing.
    """
    if feasible is None:
        return ""
    return "missed" if not feasible else "whole image" if sparsity == 0 else "reached"
