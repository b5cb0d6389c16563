"""The common signature of all attribution methods.

A method is an object with parameters, which is called with a network, images and target classes::

    maps = GradCAM()(network, images, targets)  # (B,H,W), high = evidence

To add your own method, subclass `Method`, implement ``__call__``, and set its ``class_path``. If the method claims that
the remaining part of the image is sufficient for the class, subclass `MaskMethod` and implement ``explanation``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from fgvis_lightning.baselines.maps import MapModule
from fgvis_lightning.baselines.progress import steps
from fgvis_lightning.engine.sweep_module import SweepModule
from fgvis_lightning.errors import InputError
from fgvis_lightning.method.tasks import task_of
from fgvis_lightning.networks.classifier import Classifier, require_eval_mode

__all__ = ["MaskMethod", "Method", "require", "scores", "steps"]


def _with_checks(attribute: Callable[..., Any]) -> Callable[..., Any]:
    """A method's function with checks of its arguments, which also works where the caller has no gradients."""

    @wraps(attribute)
    def checked(self: Method, network: nn.Module, images: Tensor, targets: Tensor) -> Any:
        if isinstance(network, nn.Module):
            require_eval_mode(network)
        if not _is_filled(images) or not images.is_floating_point() or images.ndim == 1:
            raise InputError(f"Expected images to be normalized images (B,3,H,W), but got {_kind(images)}.")
        if not _is_filled(targets) or targets.is_floating_point() or targets.dtype == torch.bool or targets.ndim != 1:
            raise InputError(f"Expected targets to be class indices (B,), but got {_kind(targets)}.")
        if len(targets) != len(images) or targets.min() < 0:
            raise InputError(f"Expected {len(images)} targets, class indices from 0, but got {targets.tolist()}.")
        with torch.inference_mode(False), torch.enable_grad():
            images, targets = (one.clone() if one.is_inference() else one.detach() for one in (images, targets))
            return attribute(self, network, images, targets)

    return checked


def _is_filled(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 0


def _kind(value: Any) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)


class Method(ABC):
    """An attribution method with its parameters.

    Attributes:
        black_box: whether it asks the network for logits and their gradient by the image, and for nothing inside of it.
            It is then given a network of the same function with batch normalization folded away, which is faster.
    """

    black_box = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in vars(cls).keys() & {"__call__", "explanation"}:
            setattr(cls, name, _with_checks(getattr(cls, name)))

    def effort(self) -> dict[str, float]:
        """Parameters that trade passes for precision → the authors' smallest values."""
        return {}

    @property
    def cheap(self) -> bool:
        """Whether the method takes less than its authors' effort; comparisons then mark it as cheap."""
        return any(getattr(self, name) < least for name, least in self.effort().items())

    @abstractmethod
    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Attribute the target class's score to pixels.

        Args:
            network: a classifier in eval mode, which is not changed; takes normalized images (B,3,H,W), returns logits
                (B,K).
            images: normalized images (B,3,H,W), on the network's device.
            targets: class indices (B,), on the network's device.

        Returns:
            Maps (B,H,W) in float32, on the same device, without a gradient; high = evidence. An image's map does not
            depend on the other images.

        Raises:
            InputError: if the network is in training mode, or if images or targets have another type or shape.
        """

    def module(self, classifier: Classifier, name: str, parameters: dict[str, Any]) -> SweepModule:
        """The LightningModule that makes the method's maps, see `fgvis_lightning.experiments.comparison`.

        Args:
            classifier: the frozen network.
            name: name of the method in the comparison.
            parameters: the method's parameters, which a map depends on.
        """
        return MapModule(self.prepared(classifier), classifier, name, parameters, fold=self.black_box)

    def prepared(self, classifier: Classifier) -> Method:
        """The method with all that it needs to know of the classifier, such as its normalization."""
        return self


class MaskMethod(Method):
    """A method that leaves a part of the image as an image.

    In a comparison, this image is stored with the map, see `fgvis_lightning.results.attribution.Attribution`.

    Attributes:
        hides: what replaces the rest: ``blurred`` for the blurred image, where the map is the mask in [0,1]; ``black``;
            or empty if it is neither. The conciseness–preciseness scores need it.
    """

    hides = ""

    @abstractmethod
    def explanation(self, network: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The remaining images and the maps.

        Args:
            network: see `Method.__call__`.
            images: normalized images (B,3,H,W).
            targets: class indices (B,).

        Returns:
            Normalized images (B,3,H,W) of the parts that the method keeps, and maps (B,H,W) as in `Method.__call__`;
            both in float32, without a gradient.
        """

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return self.explanation(network, images, targets)[1]

    def module(self, classifier: Classifier, name: str, parameters: dict[str, Any]) -> SweepModule:
        method: Any = self.prepared(classifier)
        return MapModule(method.explanation, classifier, name, parameters, fold=self.black_box, hides=self.hides)


def scores(network: nn.Module, images: Tensor, targets: Tensor, advance: Callable[[], None] = lambda: None) -> Tensor:
    """Probabilities (B,) of the target classes, in float32 and without a gradient; ``advance`` is called afterwards."""
    with torch.no_grad():
        found = task_of(network).probability(network(images).float(), targets)
    advance()
    return found


def require(method: Method, least: float, *names: str) -> None:
    """Raise `InputError` if one of a method's parameters with these names is less than ``least``, or NaN."""
    for name in names:
        value = getattr(method, name)
        if not value >= least:
            raise InputError(
                f"Expected {name} to be {least} or more, but {type(method).__name__} got {value}. Use a larger value."
            )
