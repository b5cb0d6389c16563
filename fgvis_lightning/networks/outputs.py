"""The logits of networks with several outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fgvis_lightning.errors import InputError


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among values, also in tuples, lists and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list | Mapping):
        for one in values.values() if isinstance(values, Mapping) else values:
            yield from tensors_in(one)


def two_classes(logit: Tensor) -> Tensor:
    """One logit (B,1,…) of a sigmoid as logits (B,2,…) of two classes, the second of which has its probability."""
    return torch.cat([-logit / 2, logit / 2], 1)


def own_network(network: nn.Module) -> nn.Module:
    """The user's network inside the wrappers of this package, such as a head; messages and paths are about it."""
    while type(network).__module__.startswith("fgvis_lightning.networks.") and hasattr(network, "network"):
        network = network.get_submodule("network")
    return network


def select(outputs: Any, output: str | int | None, name: str) -> Tensor:
    """Select the logits among a network's outputs.

    Args:
        outputs: a tensor, tuple, list, mapping or object, such as torchvision's ``InceptionOutputs`` or the
            ``ModelOutput`` of HuggingFace.
        output: a key, an attribute or an index; None for the output named ``logits``, or the only tensor.
        name: name of the network, for error messages.

    Raises:
        InputError: if the output does not exist; the message lists all outputs.
    """
    if isinstance(outputs, Tensor):
        if output is None:
            return outputs
        raise InputError(f"Expected {name} to have several outputs, since output is {output!r}, but it has one tensor.")
    if isinstance(outputs, Mapping):
        known: dict[Any, Any] = dict(outputs)
    elif isinstance(outputs, tuple | list):
        known = {**dict(enumerate(outputs)), **dict(zip(getattr(outputs, "_fields", ()), outputs, strict=False))}
    else:
        named = [one.name for one in fields(outputs)] if is_dataclass(outputs) else []  # it may have no __dict__
        known = {**{one: getattr(outputs, one, None) for one in named}, **getattr(outputs, "__dict__", {})}
    choice = "logits" if output is None else output
    found = known.get(choice)
    alone = {id(value): value for value in known.values() if isinstance(value, Tensor)}
    if output is None and found is None and len(alone) == 1:
        return next(iter(alone.values()))
    if not isinstance(found, Tensor):
        there = [repr(key) for key, value in known.items() if isinstance(value, Tensor)]
        raise InputError(
            f"Expected the logits of {name} in its output {choice!r}, but got {type(outputs).__name__} with "
            f"{', '.join(there) or 'no tensors'}. Choose one with output."
        )
    return found


class Selected(nn.Module):
    """A network that returns only the logits, see `select`."""

    def __init__(self, network: nn.Module, output: str | int) -> None:
        super().__init__()
        self.network = network
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return select(self.network(x), self.output, type(self.network).__name__)
