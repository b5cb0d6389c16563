"""Finding modules in a network by name and by order of execution."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
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


def layer_with_maps(network: nn.Module, name: str, image: Tensor) -> nn.Module:
    """Return the module named ``name``, which returns feature maps for images like this (1,3,H,W).

    Raises:
        InputError: if it does not exist, does not run, or returns something else.
    """
    module = module_called(network, name)
    with torch.no_grad():
        shapes = [shape for done, _, shape in completed(network, image) if done == name]
    if not shapes or len(shapes[-1]) != 4:
        does = f"returns {shapes[-1]}" if shapes else "does not run, or returns several tensors"
        raise InputError(
            f"Expected layer to be a module of {type(network).__name__} that returns maps (B,C,H,W), but {name!r} "
            f"{does}. Choose another layer."
        )
    return module


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
