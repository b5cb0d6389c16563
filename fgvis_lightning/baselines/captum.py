"""Captum's interface: FGVis as a Captum attribution class, and Captum's attribution classes as methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from captum.attr import Attribution, LayerAttribution
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method, steps
from fgvis_lightning.baselines.fgvis import explain_normalized
from fgvis_lightning.errors import InputError
from fgvis_lightning.names import class_at

Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])


class FGVisAttribution(Attribution):
    """FGVis with the interface of Captum's attribution classes, so that it works with code written for them.

    Args:
        forward_func: a network of normalized images (B,C,H,W); it must be an ``nn.Module``, since its activations are
            gated.
        options: options of `fgvis_lightning.FGVis`: ``game``, ``iterations``, ``seeds``, …. There is no normalization:
            ``inputs`` go directly into the network.
    """

    def __init__(self, forward_func: nn.Module, **options: Any) -> None:
        if not isinstance(forward_func, nn.Module):
            raise InputError(f"Expected forward_func to be an nn.Module, but got {type(forward_func).__name__}.")
        super().__init__(forward_func)
        self.options = options

    def attribute(self, inputs: Inputs, target: Any = None, **options: Any) -> Inputs:
        """The evidence of each entry of the inputs.

        Args:
            inputs: the network's inputs (B,C,H,W), or a tuple that contains only these.
            target: class indices or names, one for all inputs or (B,); None for the predicted class.
            options: further options of this call.

        Returns:
            Evidence (B,C,H,W) in [0,1], on the device of ``inputs``, high = evidence; a tuple if ``inputs`` is a tuple.

        Raises:
            InputError: if inputs or targets have another type or shape.
        """
        if isinstance(inputs, tuple) and len(inputs) == 1:
            return (self.attribute(inputs[0], target, **options),)
        if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.is_floating_point():
            raise InputError("Expected inputs to be one tensor (B,C,H,W) of floating-point numbers.")
        found = explain_normalized(self.forward_func, inputs, target, **{**self.options, **options})
        return found.evidence.to(inputs.device)


@dataclass(frozen=True)
class Captum(Method):
    """Any of Captum's attribution classes as a method: its attributions, summed over the channels.

    Args:
        attribution: class_path of the class, e.g. ``captum.attr.IntegratedGradients``.
        init: further arguments of its constructor.
        arguments: further arguments of its ``attribute``.
        layer: name of a module of the network, for classes that explain a layer; the maps are upsampled bilinearly.
        seed: seed of its random numbers, if any.
    """

    attribution: str
    init: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    layer: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise `InputError` if the class does not exist."""
        if class_at(self.attribution, Attribution) is None:
            raise InputError(
                f"Expected attribution to be the class_path of one of Captum's classes, e.g. "
                f"captum.attr.IntegratedGradients, but got {self.attribution!r}."
            )

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        made: Any = class_at(self.attribution, Attribution)

        def attribute(image: Tensor, target: Tensor) -> Tensor:
            found = attribution.attribute(image, target=target, **self.arguments)
            return LayerAttribution.interpolate(found.detach().sum(1, keepdim=True), images.shape[-2:], "bilinear")

        try:
            layer = () if self.layer is None else (network.get_submodule(self.layer),)
            attribution = made(network, *layer, **self.init)
            return one_by_one(attribute, images, targets, self.seed, made.__name__)[:, 0]
        except (AttributeError, TypeError, ValueError, AssertionError) as error:
            raise InputError(
                f"Expected {self.attribution} to attribute with {self.init} and {self.arguments}, but it raised {error}"
            ) from error


def one_by_one(attribute: Callable[..., Tensor], images: Tensor, targets: Tensor, seed: int, name: str) -> Tensor:
    """Captum's attributions (B,C,H,W) in float32, computed for each image separately.

    Args:
        attribute: function of an image (1,C,H,W) that requires a gradient, and of its ``target`` (1,).
        images: normalized images (B,C,H,W).
        targets: class indices (B,).
        seed: seed of the random numbers, the same for each image; the global generators do not change.
        name: name of the method, for the progress bar.
    """
    with isolate_rng(), steps(len(images), name) as advance:
        maps = []
        for image, target in zip(images.detach().split(1), targets.split(1), strict=True):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002, Captum uses it
            maps.append(attribute(image.clone().requires_grad_(), target=target).detach().float())
            advance()
    return torch.cat(maps)
