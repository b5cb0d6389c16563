"""The order of pixels in a map, including pixels of equal value.

Many values of a map may be equal, such as the zeros of a mask. Taking them from the top left would assume where objects
are, for example that sky comes before ground. So they are shuffled by default.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fgvis_lightning.errors import one_of

TIES = {
    "random": "in an order drawn at random",
    "first": "those at the top left first, row by row",
}
"""Orders of equal values, with descriptions."""


def ranked(values: Tensor, ties: str = "random", seed: int = 0) -> Tensor:
    """Indices (N,) of values (N,), from the highest value to the lowest.

    Args:
        values: values (N,).
        ties: order of equal values: ``random``, or ``first`` for the order of their indices.
        seed: seed of the random order, which is the same for all maps with N values, so that maps do not depend on each
            other and methods are compared with the same order.

    Raises:
        InputError: if ``ties`` is unknown.
    """
    one_of(TIES, ties=ties)
    values = values.detach()
    if ties == "first":
        return values.argsort(descending=True, stable=True)
    mixed = _shuffled(len(values), seed).to(values.device)
    return mixed[values[mixed].argsort(descending=True, stable=True)]


def peaks(values: Tensor, ties: str = "random", seed: int = 0) -> Tensor:
    """Index (B,) of the highest value in each row (B,N), the first of `ranked`; arguments as in `ranked`."""
    one_of(TIES, ties=ties)
    if ties == "first":
        return values.argmax(1)
    mixed = _shuffled(values.shape[1], seed).to(values.device)
    return mixed[values[:, mixed].argmax(1)]


@lru_cache(maxsize=8)
def _shuffled(count: int, seed: int) -> Tensor:
    """The numbers below ``count`` in a random order from the CPU, so that it is the same on every device."""
    with torch.inference_mode(False):
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
