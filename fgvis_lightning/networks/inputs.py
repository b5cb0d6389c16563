"""Networks with further inputs, which are fixed."""

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
        network: a network of images (B,…) and further inputs.
        inputs: the further inputs by name. Tensors (1,…) are repeated for each image of a batch; other values are
            passed unchanged.
    """

    def __init__(self, network: nn.Module, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(name for name, value in inputs.items() if isinstance(value, Tensor))
        for place, name in enumerate(self.names):  # buffers, since explanations depend on them as on the weights
            self.register_buffer(f"input{place}", inputs[name])
        self.others = {name: value for name, value in inputs.items() if name not in self.names}

    def several(self) -> list[str]:
        """Names of the tensors that are not repeated for each image of a batch."""
        return [name for place, name in enumerate(self.names) if getattr(self, f"input{place}").shape[:1] != (1,)]

    def forward(self, x: Tensor) -> Any:
        values = {name: getattr(self, f"input{place}") for place, name in enumerate(self.names)}
        each = {
            name: value.expand(len(x), *value.shape[1:]) if value.shape[:1] == (1,) else value
            for name, value in values.items()
        }
        return self.network(x, **each, **self.others)


def unbound(network: Any) -> tuple[Any, Mapping[str, Any]]:
    """A network and the inputs bound to it with ``functools.partial``.

    Raises:
        InputError: if an input is bound by position.
    """
    if not isinstance(network, partial):
        return network, {}
    if network.args:
        raise InputError(f"Expected inputs of {type(network.func).__name__} by name, but got some by position.")
    return network.func, network.keywords


def with_inputs(network: nn.Module, bound: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> nn.Module:
    """Fix the further inputs of a network, if there are any.

    Args:
        network: a network of images and further inputs by name.
        bound: inputs to pass unchanged.
        inputs: inputs for one image: numbers, lists of numbers, or ``.npy`` files.

    Raises:
        InputError: if an input is none of these, or if a file cannot be read.
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
