"""Weights cast once; autocast caches only tensors with gradients and would cast frozen weights in every pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Casts:
    """Copies of a network's weights in the data types of autocast."""

    def __init__(self) -> None:
        self._known: dict[int, dict[torch.dtype, Tensor]] = {}

    def clear(self) -> None:
        """Discard all copies, since the weights may have changed."""
        self._known.clear()

    def caster(self, network: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """A function that casts weights for a pass on ``x``; None without autocast."""
        kind = x.device.type
        if not torch.is_autocast_enabled(kind):
            return None
        dtype, known = torch.get_autocast_dtype(kind), self._known
        if not known:  # only stored weights; computed ones differ in every pass
            known.update((id(weight), {}) for weight in network.buffers() if weight.dtype == torch.float32)

        def cast(weight: Tensor) -> Tensor:
            if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) != dtype:
                return weight  # the network has switched it off for a part of itself
            if id(weight) in known and dtype not in known[id(weight)]:
                known[id(weight)][dtype] = weight.to(dtype)
            return known.get(id(weight), {}).get(dtype, weight)

        return cast
