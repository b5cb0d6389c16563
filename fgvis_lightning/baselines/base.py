"""The signature that all attribution methods share.

A method is an object that has its parameters and is called with a network, images and target classes::

    maps = GradCAM()(network, images, targets)  # (B,H,W), high = evidence

A class of your own needs `Method` as its base and ``__call__``, and can then be given by ``class_path``. Where what the
method leaves of an image is a claim of its own, "this is enough", the base is `MaskMethod` and the function
``explanation``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from fgvis_lightning.baselines.maps import MapModule
from fgvis_lightning.baselines.progress import steps
from fgvis_lightning.engine.sweep_module import SweepModule
from fgvis_lightning.errors import InputError
from fgvis_lightning.method.tasks import task_of
from fgvis_lightning.networks.classifier import Classifier

__all__ = ["MaskMethod", "Method", "require", "scores", "steps"]


class Method(ABC):
    """An attribution method with its parameters.

    Attributes:
        black_box: whether it asks the network for logits and their gradient by the image, and for nothing inside of it.
            It is then given a network of the same function with batch normalization folded away, which is faster.
    """

    black_box = False

    def effort(self) -> dict[str, float]:
        """Parameters that buy precision with passes → the least that the method's authors take."""
        return {}

    @property
    def cheap(self) -> bool:
        """Whether it is run at less than its authors' effort; a comparison then says so wherever it names it."""
        return any(getattr(self, name) < least for name, least in self.effort().items())

    @abstractmethod
    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Attribute the target class's score to pixels.

        Args:
            network: a classifier in eval mode, left as it is; takes normalized images (B,3,H,W), returns logits (B,K).
            images: normalized (B,3,H,W), on the network's device.
            targets: class indices (B,), on the network's device.

        Returns:
            (B,H,W) in float32, on the same device, without a gradient; high = evidence. An image's map does not depend
            on the other images.
        """

    def module(self, classifier: Classifier, name: str, parameters: dict[str, Any]) -> SweepModule:
        """What makes the method's maps of many images, see `fgvis_lightning.experiments.comparison`.

        Args:
            classifier: the frozen network.
            name: what the method is called in the comparison.
            parameters: its own, which a map depends on.
        """
        return MapModule(self, classifier, name, parameters, fold=self.black_box)


class MaskMethod(Method):
    """A method that leaves a part of the image, which is to be enough for the class: an image that can be judged.

    In a comparison this image is kept beside the map, see `fgvis_lightning.results.explanation.Attribution`.
    """

    @abstractmethod
    def explanation(self, network: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What is left of the images, and where.

        Args:
            network: as in `Method.__call__`, likewise ``images`` and ``targets``.
            images: normalized (B,3,H,W).
            targets: class indices (B,).

        Returns:
            images with what the method keeps, normalized (B,3,H,W), and its maps (B,H,W), as in `Method.__call__`; both
            in float32, without a gradient.
        """

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return self.explanation(network, images, targets)[1]

    def module(self, classifier: Classifier, name: str, parameters: dict[str, Any]) -> SweepModule:
        return MapModule(self.explanation, classifier, name, parameters, fold=self.black_box)


def scores(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Probability (B,) of the target classes, in float32 and without a gradient."""
    with torch.no_grad():
        return task_of(network).probability(network(images).float(), targets)


def require(method: Method, least: float, *names: str) -> None:
    """Refuse parameters of a method that are below a bound, or not a number.

    Raises:
        InputError: if one of the named parameters is less than ``least``.
    """
    for name in names:
        value = getattr(method, name)
        if not value >= least:
            raise InputError(
                f"Expected {name} to be {least} or more, but {type(method).__name__} got {value}. Give a larger one."
            )
