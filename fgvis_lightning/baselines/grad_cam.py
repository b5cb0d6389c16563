"""Grad-CAM (Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra, ICCV 2017, section 3, eq. 1 and 2)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.networks.outputs import own_network


@dataclass(frozen=True)
class GradCAM(Method):
    """``ReLU(Σ_k α_k A_k)``: feature maps A_k, weighted by the mean gradient α_k of the target's logit.

    Args:
        layer: name of the module whose output contains the feature maps. Default: the end of the last convolutional
            layer, as in the paper, that is, the last completed module with maps of the size of the last convolution
            with more than one position: ``layer4`` of a ResNet, ``features.29`` (the last ReLU) of VGG16.
    """

    layer: str | None = None

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        layer = cam_layer(network, self.layer, images[:1])
        maps = LayerGradCam(network, layer).attribute(images, targets, relu_attributions=True)
        return LayerAttribution.interpolate(maps, images.shape[-2:], "bilinear")[:, 0].detach().float()


def cam_layer(network: nn.Module, name: str | None, image: Tensor) -> nn.Module:
    """The module with this name, or the one of `last_convolutional`; it returns maps for images like this (1,3,H,W).

    Raises:
        InputError: if it does not exist, does not run, or returns something else; see also `last_convolutional`.
    """
    if name is None:
        return module_called(network, last_convolutional(network, image))
    module = module_called(network, name)
    with torch.no_grad():
        shapes = [shape for _, done, shape in completed(network, image) if done is module]
    if not shapes or len(shapes[-1]) != 4:
        does = f"returns {shapes[-1]}" if shapes else "does not run, or returns several tensors"
        raise InputError(
            f"Expected layer to be a module of {type(network).__name__} that returns maps (B,C,H,W), but {name!r} "
            f"{does}. Choose another layer."
        )
    return module


def last_convolutional(network: nn.Module, image: Tensor) -> str:
    """Name of the module at the end of the last convolutional layer, for images like this (1,3,H,W).

    Raises:
        InputError: if the network has no convolution.
    """
    with torch.no_grad():
        done = [(name, module, shape) for name, module, shape in completed(network, image) if len(shape) == 4]
    sizes = [shape[-2:] for _, module, shape in done if isinstance(module, nn.Conv2d) and shape[-2:] != (1, 1)]
    if not sizes:
        raise InputError(
            f"Expected a network with convolutions, but no module of {type(network).__name__} is one. Set layer to the "
            f"name of the module whose output to use."
        )
    return [name for name, _, shape in done if name and shape[-2:] == sizes[-1]][-1]


def module_called(network: nn.Module, name: str) -> nn.Module:
    """The module with this name; raises `InputError` with similar names if it does not exist."""
    own = own_network(network)
    modules = {**dict(own.named_modules()), **dict(network.named_modules())}
    if name not in modules:
        raise InputError(
            f"Expected layer to be a module of {type(own).__name__}, but got {name!r}.{nearest(name, modules)}"
        )
    return modules[name]


def completed(network: nn.Module, image: Tensor) -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Name, module and output shape of all calls of modules that return one tensor, in order of completion."""
    done: list[tuple[str, nn.Module, tuple[int, ...]]] = []
    names = {module: name for name, module in network.named_modules()}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            done.append((names[module], module, tuple(output.shape)))

    with ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_hook(note))
        network(image)
    return done
