"""Common code of the methods that run a network with other rules instead of derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fgvis_lightning.networks.classifier import constant


@contextmanager
def differentiable(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Inside this context, only tensors that depend on the image require a gradient, whatever the caller's modes.

    Autocast is off, since it would round at every layer.
    """
    exact = torch.autocast(images.device.type, enabled=False)
    with constant(network.parameters()), torch.inference_mode(False), torch.enable_grad(), exact:
        yield


class Call:
    """A call of a function by the network.

    Attributes:
        function: a torch function or tensor method.
        args: positional arguments.
        kwargs: keyword arguments.
        tensors: the tensors among the arguments.
        depending: the tensors that depend on the image, the only ones that require a gradient.
        options: keyword arguments other than input, weight and bias.
    """

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self.depending = [value for value in self.tensors if value.requires_grad]
        self.options = {name: value for name, value in kwargs.items() if name not in ("input", "weight", "bias")}

    def __call__(self) -> Any:
        return self.function(*self.args, **self.kwargs)

    def at(self, x: Tensor) -> Any:
        """Call the function with another first tensor, which is not changed."""
        named = {name: value for name, value in self.kwargs.items() if name != "input" or self.args}
        return self.function(x.clone(), *self.args[1:], **named)

    def argument(self, place: int, name: str) -> Any:
        """An argument by its position or name; None if it is not given."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name)

    def changed(self, output: Tensor) -> list[Tensor]:
        """The tensors that are both input and output, since they are changed in place."""
        return [x for x in self.depending if x is output]


class Rules(TorchFunctionMode):
    """Calls the functions of a table through `apply` if their arguments depend on the image."""

    table: dict[Any, str]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call(func, args, kwargs or {})
        name = self.table.get(func)
        return call() if name is None or not call.depending else self.apply(name, call)

    def apply(self, name: str, call: Call) -> Any:
        """The output of a call, with the rule as its gradient."""
        raise NotImplementedError
