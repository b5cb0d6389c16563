"""Networks that take more than images: the rest of their inputs, fixed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fgvis_lightning.errors import InputError


class FixedInputs(nn.Module):
    """A network whose further inputs are fixed.

    Args:
        network: takes images (B,…) and further inputs.
        inputs: by name. Tensors (1,…) are repeated for each image of a batch; all else is given as it is.
    """

    def __init__(self, network: nn.Module, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(name for name, value in inputs.items() if isinstance(value, Tensor))
        for place, name in enumerate(self.names):  # buffers, since explanations depend on them as on the weights
            self.register_buffer(f"input{place}", inputs[name])
        self.others = {name: value for name, value in inputs.items() if name not in self.names}

    def forward(self, x: Tensor) -> Any:
        values = {name: getattr(self, f"input{place}") for place, name in enumerate(self.names)}
        each = {
            name: value.expand(len(x), *value.shape[1:]) if value.shape[:1] == (1,) else value
            for name, value in values.items()
        }
        return self.network(x, **each, **self.others)


def unbound(network: Any) -> tuple[Any, Mapping[str, Any]]:
    """A network, and the inputs that ``functools.partial`` has bound to it.

    Raises:
        InputError: one that is bound by its place.
    """
    if not isinstance(network, partial):
        return network, {}
    if network.args:
        raise InputError(f"Expected inputs of {type(network.func).__name__} by name, but got some by their place.")
    return network.func, network.keywords


def with_inputs(network: nn.Module, bound: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> nn.Module:
    """A network with its further inputs fixed, where there are any.

    Args:
        network: takes images and further inputs by name.
        bound: as the network takes them.
        inputs: of one image: numbers and lists of them, or ``.npy`` files.

    Raises:
        InputError: an input that is none of these, or a file that cannot be read.
    """
    made = {**bound, **{name: _tensor(name, value)[None] for name, value in (inputs or {}).items()}}
    return FixedInputs(network, made) if made else network


def _tensor(name: str, value: Any) -> Tensor:
    try:
        array = np.load(value, allow_pickle=False) if isinstance(value, str | Path) else value
        tensor = torch.as_tensor(array)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"Expected the input {name} as numbers or an .npy file, but got {value!r}: {error}") from error
    return tensor.float() if tensor.dtype == torch.float64 else tensor
