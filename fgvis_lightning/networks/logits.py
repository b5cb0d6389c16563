"""Checks of a network's logits, and target classes that depend on them."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.channels import KINDS, dimensions_of
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.inputs import FixedInputs


def checked(logits: Tensor, x: Tensor, classifier: Classifier) -> Tensor:
    """Return the logits of images ``x`` (B,3,H,W) after checking them.

    Raises:
        InputError: if the logits are not finite, not (B,K), with K > 1 unless they are those of labels, or
            probabilities of classes, which sum to 1.
    """
    name = classifier.name
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        dense = isinstance(logits, Tensor) and logits.ndim > 2
        remedy = " Set --model.classifier.reduce for dense outputs (reduce in Python)." if dense else ""
        raise InputError(f"Expected {name} to return logits of shape ({len(x)}, classes), but got {shape}.{remedy}")
    if logits.shape[1] < 2 and classifier.task.name == "multiclass":
        raise InputError(
            f"Expected {name} to return logits of at least two classes, but got one on images of "
            f"{x.shape[-2]}×{x.shape[-1]} pixels. Set --model.classifier.size."
        )
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise InputError(
            f"Expected {name} to return finite logits, but got NaN or infinity for {bad} of {len(x)} images. "
            f"Check its weights and its normalization ({classifier.preprocessing})."
        )
    if (logits >= 0).all() and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-4):
        raise InputError(
            f"Expected {name} to return logits, but got probabilities: they are not negative and sum to 1 for each "
            f"image. Set outputs to probabilities (--model.outputs probabilities)."
        )
    return logits


def resolve(targets: Tensor, logits: Tensor, classifier: Classifier) -> Tensor:
    """Class indices (B,), where -k is replaced by the k-th most probable class according to the logits (B,K).

    Raises:
        InputError: if a class does not exist, or if the number of class names is not K.
    """
    count = logits.shape[1]
    if targets.max() >= count or targets.min() < -count:
        worst = int(targets.max()) if targets.max() >= count else int(targets.min())
        raise InputError(
            f"Expected targets among the {count} classes of {classifier.name} (0 to {count - 1}), "
            f"but got {worst if worst >= 0 else f'the {-worst} most probable'}."
        )
    if classifier.classes and len(classifier.classes) != count:
        raise InputError(f"Expected {count} class names for {classifier.name}, but got {len(classifier.classes)}.")
    ranked = logits.argsort(dim=1, descending=True, stable=True)
    by_rank = ranked.gather(1, (-targets - 1).clamp(min=0)[:, None]).squeeze(1)
    return torch.where(targets < 0, by_rank, targets)


SIZE = (
    r"mat1 and mat2|kernel size|padded input|output size|size of tensor|shape|too small|expected input.*channels|"
    r"height|width|image size"
)
"""Parts of torch's error messages for images of a wrong size."""


def why_not(network: nn.Module, name: str, x: Tensor, error: Exception) -> str:
    """An error message, with a remedy, for a network that raised this error on its first images (B,3,H,W)."""
    says = (str(error).splitlines() or [type(error).__name__])[0]
    types = {tensor.dtype for tensor in network.buffers() if tensor.is_floating_point()}
    if types and x.dtype not in types:
        return (
            f"Expected {name} in {x.dtype}, but its weights are {types.pop()}. Pass network.to({x.dtype}), and for "
            f"more speed set precision, e.g. bf16-mixed."
        )
    dimensions = dimensions_of(network)
    if dimensions != x.ndim - 2:
        kinds = KINDS[x.ndim - 2], KINDS[dimensions]
        return f"Expected {name} to take {kinds[0]}, but it takes {kinds[1]}. Use explain() in Python for those."
    if isinstance(error, NotImplementedError) and "forward" in says:
        return f"Expected {name} to have a forward method, but it has none. Pass a module that has one."
    if channels := re.search(r"to have (\d+) channels, but got (\d+) channels", says):
        return (
            f"Expected {name} to take images of {x.shape[1]} channels, like its mean and std, but it has a "
            f"layer that takes {channels[1]} and got {channels[2]}. Set mean and std for the network's channels."
        )
    if "required positional argument" in says:
        return (
            f"Expected {name} to take only images, but it has further inputs ({says}). Set them with "
            f"--model.classifier.inputs, or with functools.partial."
        )
    fixed = next((module for module in network.modules() if isinstance(module, FixedInputs)), None)
    if fixed is not None and (several := fixed.several()):
        return (
            f"Expected {name} to run on {len(x)} images with its further inputs, but it does not ({says}). The input "
            f"{several[0]} is not repeated for each image, since its first dimension is not 1. Explain the images one "
            f"by one, each with its own inputs."
        )
    height, width = x.shape[-2:]
    sized = re.search(SIZE, says, re.IGNORECASE)
    remedy = " Use images of the network's size, or set --model.classifier.size, e.g. 96." if sized else ""
    return f"Expected {name} to run on images of {height}×{width} pixels, but it does not ({says}).{remedy}"
