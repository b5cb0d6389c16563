"""Finding modules in a network by name and by order of execution."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from fgvis_lightning.errors import InputError, nearest


def module_called(network: nn.Module, name: str) -> nn.Module:
    """Return the module named ``name``.

    Raises:
        InputError: if it does not exist; the message lists similar names.
    """
    modules = dict(network.named_modules())
    if name not in modules:
        raise InputError(
            f"Expected layer to be a module of {type(network).__name__}, but got {name!r}.{nearest(name, modules)}"
        )
    return modules[name]


def completed(network: nn.Module, image: Tensor) -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Name, module and output shape of all calls of modules that return one tensor, in order of completion."""
    done: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                done.append((name, module, tuple(output.shape)))

        return hook

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            hooks.callback(module.register_forward_hook(note(name)).remove)
        network(image)
    return done
