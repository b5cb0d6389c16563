"""Images and targets for `explain`: tensors, PIL images, paths; indices and names."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fgvis_lightning.data.images import as_float, load_image, prepare
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.preprocessing import Preprocessing

SHAPES = {1: "T", 2: "H,W", 3: "D,H,W"}
KINDS = "a tensor (B,C,H,W) or (C,H,W), PIL images or paths"


def as_images(images: Any, preprocessing: Preprocessing) -> Tensor:
    """Convert images to a tensor (B,C,H,W) in [0,1], without a gradient; signals and volumes may have any values.

    Args:
        images: a tensor (B,C,H,W) or (C,H,W), floating point in [0,1] or 8-bit; or a PIL image, a path, or a sequence
            of these, which are resized and cropped to the network's input; or signals (B,C,T) or volumes (B,C,D,H,W).
        preprocessing: preprocessing of the network.

    Raises:
        InputError: if the images have another type, shape or range, or if they cannot be read.
    """
    if isinstance(images, Tensor):
        one = images.ndim == 1 + len(preprocessing.size) and len(images) == preprocessing.count
        return _checked(images.detach()[None] if one else images.detach(), preprocessing)
    several = [images] if isinstance(images, str | Path | Image.Image) else images
    if not isinstance(several, Sequence) or not several:
        raise InputError(f"Expected images as {KINDS}, but got {_described(images)}.")
    return torch.stack([as_float(_image(image, preprocessing)) for image in several])


def _image(image: Any, preprocessing: Preprocessing) -> Tensor:
    if isinstance(image, Image.Image):
        return prepare(image, preprocessing, "the image")
    if isinstance(image, str | Path):
        return load_image(str(image), preprocessing)
    raise InputError(f"Expected images as {KINDS}, but got a list with {_described(image)}.")


def _checked(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    count, dimensions = preprocessing.count, len(preprocessing.size)
    if images.ndim != 2 + dimensions or images.shape[1] != count or not len(images):
        shape = f"{count},{SHAPES[dimensions]}"
        raise InputError(
            f"Expected images of shape (B,{shape}) or ({shape}), but got {tuple(images.shape)}. The number of channels "
            f"is that of mean and std or, by default, of the network's first convolution."
        )
    if images.is_complex() or images.is_meta or images.layout != torch.strided:
        kind = f"{images.dtype}, {images.layout}, on {images.device}"
        raise InputError(f"Expected images as a dense tensor of real numbers, but got {kind}.")
    if images.dtype == torch.uint8:
        return images / 255
    if dimensions != 2 and images.is_floating_point() and images.isfinite().all():
        return images  # signals and volumes have no black and white
    if not images.is_floating_point() or not (images.min() >= 0 and images.max() <= 1):
        values = images.double()  # uint16 has no minimum
        low, high = values.min().item(), values.max().item()
        remedy = "Pass mean and std as normalize=(mean, std) instead of normalized images."
        if not values.isfinite().all():
            remedy = "They have NaN or infinity."
        elif dimensions != 2 or (low >= 0 and high <= 1):
            remedy = "Convert them with .float()."
        elif low >= 0 and high <= 255:
            remedy = "Divide them by 255."
        elif low >= 0 and not images.is_floating_point():
            remedy = "Divide them by the value of white."
        raise InputError(
            f"Expected images in [0,1] before normalization, but got {images.dtype} from {low:g} to {high:g}. {remedy}"
        )
    return images


def as_targets(targets: Any, count: int, classifier: Classifier) -> list[int]:
    """Class indices of ``count`` images; -1 for the predicted class.

    Args:
        targets: class indices or names, one for all images or one for each; several for a single image; None for the
            predicted classes.
        count: number of images.
        classifier: the classifier, for the names of its classes.

    Raises:
        InputError: if a target is not a class, or if the number of targets is not ``count``, unless that is 1.
    """
    if targets is None:
        return [-1] * count
    one = isinstance(targets, str | int) or getattr(targets, "ndim", None) == 0
    values = [targets] * count if one else targets
    if hasattr(values, "tolist"):  # tensors, arrays, columns of tables
        values = values.tolist()
    elif isinstance(values, Sequence):
        values = [value.item() if getattr(value, "ndim", None) == 0 else value for value in values]
    if not isinstance(values, list) or not all(type(value) in (int, str) for value in values):
        raise InputError(f"Expected class indices or names as targets, but got {_described(targets)}.")
    classes = [classifier.class_index(value) if isinstance(value, str) else value for value in values]
    if not classes or (len(classes) != count and count > 1) or min(classes) < 0:
        raise InputError(f"Expected {count} targets, class indices from 0, but got {values}.")
    return classes


def _described(value: Any) -> str:
    """Description of a value for messages: the value itself if it is short, otherwise its type and shape."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {tuple(shape)} and type {getattr(value, 'dtype', '?')}"
    text = repr(value)
    size = f" of length {len(value)}" if isinstance(value, Sized) else ""
    return text if len(text) <= 60 else f"{type(value).__name__}{size}"
