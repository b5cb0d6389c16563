"""In which order a map puts pixels, those of equal value included.

Many values of a map may be equal, as those of a mask that are 0. To take them from the top left would be an opinion on
where things are: it takes the sky before the ground. So they come in a shuffled order unless another is asked for.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fgvis_lightning.errors import InputError

TIES = {
    "random": "in an order drawn at random",
    "first": "those at the top left first, row by row",
}
"""How equal values are ordered, and the same in words."""


def check_ties(ties: str) -> None:
    """Check the name of a way to order equal values.

    Raises:
        InputError: if `TIES` has no such name.
    """
    if ties not in TIES:
        raise InputError(f"Expected ties to be one of {', '.join(TIES)}, but got {ties!r}.")


def ranked(values: Tensor, ties: str = "random", seed: int = 0) -> Tensor:
    """Places of values (N,) from the highest value to the lowest, as indices (N,).

    Args:
        values: (N,).
        ties: how equal values are ordered: ``random``, or ``first`` for that of their indices.
        seed: of the random order, which is the same for all that has N values: no map's depends on the others, and
            methods are compared by the same draws.

    Raises:
        InputError: unknown ``ties``.
    """
    check_ties(ties)
    values = values.detach()
    if ties == "first":
        return values.argsort(descending=True, stable=True)
    mixed = _shuffled(len(values), seed).to(values.device)
    return mixed[values[mixed].argsort(descending=True, stable=True)]


def peaks(values: Tensor, ties: str = "random", seed: int = 0) -> Tensor:
    """Index of the highest value in each row (B,N) → (B,), the first of `ranked`; arguments as there."""
    check_ties(ties)
    if ties == "first":
        return values.argmax(1)
    mixed = _shuffled(values.shape[1], seed).to(values.device)
    return mixed[values[:, mixed].argmax(1)]


@lru_cache(maxsize=8)
def _shuffled(count: int, seed: int) -> Tensor:
    """The numbers below ``count`` in an order drawn on the CPU, so that every device has the same."""
    with torch.inference_mode(False):
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
