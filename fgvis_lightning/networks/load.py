"""Loading of classifiers by name, from a checkpoint, or from a module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fgvis_lightning.errors import InputError, one_of
from fgvis_lightning.method.tasks import ATTRIBUTE, Multilabel, Task
from fgvis_lightning.networks.channels import KINDS, as_they_are, channels_of, dimensions_of, for_channels
from fgvis_lightning.networks.checkpoint import LIGHTNING, from_hyper_parameters, load_weights
from fgvis_lightning.networks.classifier import Classifier, Reordered, check_module, freeze
from fgvis_lightning.networks.heads import IMAGES, Head, with_head
from fgvis_lightning.networks.huggingface import PREFIX, class_names, load_huggingface, task_of_config
from fgvis_lightning.networks.inputs import unbound, with_inputs
from fgvis_lightning.networks.outputs import Selected
from fgvis_lightning.networks.preprocessing import Preprocessing
from fgvis_lightning.networks.reduce import Reduced
from fgvis_lightning.networks.zoo import create, own_entry
from fgvis_lightning.texts import read_text


@dataclass(frozen=True)
class ClassifierOptions:
    """Weights, class names and preprocessing of a network.

    Args:
        checkpoint: file with the network's weights: a ``state_dict``, a training or Lightning checkpoint (read with
            ``weights_only=True``), or ``.safetensors``.
        checkpoint_key: the checkpoint's entry with the weights, if it has several or an unusual one.
        weights: torchvision's weights entry, e.g. ``ResNet18_Weights.IMAGENET1K_V1``, for preprocessing and class
            names; the command line sets it from ``network``.
        classes: class names, or a text file with one name on each line; default: the network's own, if any.
        mean: mean of each channel for the normalization of images; default: the network's own.
        std: standard deviation of each channel; default: the network's own.
        size: height and width of the network's input in pixels, or one number for both; default: the network's own.
        resize: length of an image's short side before the center crop; default: the network's own, or the short side of
            ``size``.
        interpolation: interpolation for resizing, ``bilinear``, ``bicubic``, …; default: the network's own.
        channels: conversion of a file to the network's channels: ``gray`` (by luma), ``rgb``, or ``all`` for the bands
            or pages of a file or array; default: chosen by the network's first convolution.
        levels: gray values of black and white in files of more than 8 bits, e.g. ``[0, 4095]``.
        order: order of the network's color channels, e.g. ``BGR``; mean and std are always in RGB order.
        output: key, attribute or index of the logits among the network's outputs; default: the only one, or the one
            named ``logits``.
        inputs: the network's further inputs by name: numbers or lists for one image, or ``.npy`` files.
        reduce: a function, or a class with ``__call__``, that turns the network's outputs into class scores (B,K), such
            as `fgvis_lightning.networks.reduce.SegmentationLogits` for segmentation.
        bands: the three channels shown as red, green and blue in pictures, counted from 1; default: the first, the
            middle and the last channel, if there are more than three.
    """

    checkpoint: str | Path | None = None
    checkpoint_key: str | None = None
    weights: str | None = None
    classes: list[str] | str | Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | tuple[int, ...] | None = None
    resize: int | None = None
    interpolation: str | None = None
    channels: Literal["gray", "rgb", "all"] | None = None
    levels: tuple[float, ...] | None = None
    order: str = "RGB"
    output: int | str | None = None
    inputs: dict[str, Any] | None = None
    reduce: Callable[[Any], Any] | None = None
    bands: tuple[int, ...] | None = None


def from_options(
    network: nn.Module | str,
    classifier: ClassifierOptions = ClassifierOptions(),
    task: Literal["multiclass", "multilabel", "binary"] = "multiclass",
    outputs: Literal["logits", "probabilities"] | None = None,
    threshold: float = 0.5,
) -> Classifier:
    """Load and freeze a classifier.

    Args:
        network: the name of a timm model or of a packaged network, or your own module by class_path; ``hf:`` and the
            name or folder of a HuggingFace model; or ``lightning:`` and the class_path of a LightningModule, built from
            its checkpoint's ``hyper_parameters``. A module is not changed; wrappers of ``torch.compile`` and
            DataParallel are removed. A `Classifier` is returned unchanged.
        classifier: weights, class names and preprocessing of the network.
        task: meaning of the network's outputs: ``multiclass``, ``multilabel`` or ``binary``. A network with one output
            is recognized as binary, and a network that ends in several sigmoids as multilabel.
        outputs: whether the network returns ``logits`` or ``probabilities``; detected by default.
        threshold: probability above which a label is ``predicted`` in a multilabel task.

    Raises:
        InputError: if the name is unknown, if the weights cannot be found, read or loaded, if the network cannot be
            copied or gated, or if an option is invalid or does not fit the network.
    """
    if isinstance(network, Classifier):
        return network
    if outputs is not None:
        one_of(("logits", "probabilities"), outputs=outputs)
    if not 0 < threshold < 1:
        raise InputError(f"Expected threshold between 0 and 1, but got {threshold}.")
    fresh = isinstance(network, nn.Module) and classifier.checkpoint is None and classifier.weights is None
    note = "weights: as the class makes them, since no checkpoint is given" if fresh else ""
    network, bound = unbound(network)
    while isinstance(network, nn.Module) and (inside := _wrapped(network)) is not None:
        network = inside
    name = network if isinstance(network, str) else type(network).__name__
    network, preprocessing = _made(network, classifier.checkpoint)
    check_module(network)
    meaning = task_of_config(network) if task == "multiclass" else task
    if classifier.checkpoint is not None:
        network = copy.deepcopy(network)
        note = load_weights(network, classifier.checkpoint, classifier.checkpoint_key)
        name = f"{name} ({Path(classifier.checkpoint).name})"
    known = preprocessing is not None or classifier.weights is not None or hasattr(network, "pretrained_cfg")
    entry, classes = own_entry(network, classifier.weights)
    preprocessing, classes = preprocessing or entry, classes or class_names(network)
    if classifier.mean is None and dimensions_of(network) != 2:
        preprocessing = as_they_are(preprocessing, channels_of(network))
    elif classifier.mean is None:
        preprocessing = for_channels(preprocessing, channels_of(network), known)
    if classifier.weights is not None:
        name = f"{name} ({classifier.weights})"
    if sorted(classifier.order) != sorted("RGB") or (classifier.order != "RGB" and preprocessing.count != 3):
        raise InputError(f"Expected order to be the letters R, G and B, e.g. BGR, but got {classifier.order!r}.")
    network = with_inputs(network, bound, classifier.inputs)
    network = network if classifier.order == "RGB" else Reordered(network, classifier.order)
    size = (classifier.size,) * dimensions_of(network) if isinstance(classifier.size, int) else classifier.size
    preprocessing = _preprocessing(preprocessing, classifier, size and tuple(size))
    if size is not None and len(size) != (count := dimensions_of(network, len(size))):
        raise InputError(
            f"Expected a size of {count} for {name}, whose first convolution takes {KINDS[count]}, but got one of "
            f"{len(size)}. Use explain() in Python for signals and volumes."
        )
    output = classifier.output
    if classifier.reduce is not None:
        network, output = Reduced(network, classifier.reduce, output), None
        name = f"{name} ({getattr(classifier.reduce, '__qualname__', type(classifier.reduce).__name__)})"
    own_task = getattr(network, ATTRIBUTE, None)
    meaning = own_task.name if isinstance(own_task, Task) and meaning == "multiclass" else meaning
    frozen = freeze(network)
    frozen, found, says = with_head(frozen, output, meaning, outputs, _noise(frozen, preprocessing))
    frozen = frozen if output is None or isinstance(frozen, Head) else Selected(frozen, output)
    meant = own_task if isinstance(own_task, Task) else found
    setattr(frozen, ATTRIBUTE, Multilabel(threshold) if isinstance(meant, Multilabel) else meant)
    classes = tuple(_class_names(classifier.classes) or classes)
    if found.name == "binary" and len(classes) == 1:
        classes = (f"no {classes[0]}", classes[0])
    return Classifier(frozen, preprocessing, classes, name, classifier.order, note, says)


def load_classifier(
    network: nn.Module | str, *, task: Any = "multiclass", outputs: Any = None, threshold: float = 0.5, **options: Any
) -> Classifier:
    """`from_options` with the options of `ClassifierOptions` as arguments."""
    return from_options(network, ClassifierOptions(**options), task, outputs, threshold)


def _made(network: nn.Module | str, checkpoint: str | Path | None) -> tuple[nn.Module, Preprocessing | None]:
    """The network for a name or module, and its preprocessing if it provides one."""
    if not isinstance(network, str):
        return network, None
    if network.startswith(PREFIX):
        return load_huggingface(network.removeprefix(PREFIX))
    if network.startswith(LIGHTNING):
        return from_hyper_parameters(network.removeprefix(LIGHTNING), checkpoint), None
    return create(network, pretrained=checkpoint is None), None


def _noise(network: nn.Module, preprocessing: Preprocessing) -> Tensor:
    """Normalized noise images for the network."""
    noise = torch.Generator().manual_seed(0)
    x = torch.rand(IMAGES, preprocessing.count, *preprocessing.size, generator=noise)
    weight = next((tensor for tensor in network.buffers() if tensor.is_floating_point()), x)
    return preprocessing.normalize(x).to(weight)


def _preprocessing(own: Preprocessing, given: ClassifierOptions, size: tuple[int, ...] | None) -> Preprocessing:
    """The network's own preprocessing, with the given size and the given options replaced."""
    chosen: dict[str, Any] = {
        "mean": given.mean and tuple(given.mean),
        "std": given.std and tuple(given.std),
        "size": size,
        "resize": given.resize if given.resize is not None else size and min(size),
        "interpolation": given.interpolation,
        "channels": given.channels,
        "levels": given.levels and tuple(given.levels),
        "bands": given.bands and tuple(given.bands),
    }
    chosen = {key: value for key, value in chosen.items() if value is not None}
    return replace(own, **chosen, source=f"{', '.join(chosen)} as given, the rest {own.source}") if chosen else own


def _wrapped(network: nn.Module) -> nn.Module | None:
    """The network inside a wrapper of ``torch.compile``, DataParallel or DistributedDataParallel; otherwise None."""
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel
    inside = network.module if isinstance(network, wrappers) else getattr(network, "_orig_mod", None)
    return inside if isinstance(inside, nn.Module) else None


def _class_names(classes: Sequence[str] | str | Path | None) -> Sequence[str] | None:
    if not isinstance(classes, str | Path):
        return classes
    try:
        return read_text(Path(classes)).rstrip().splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"Expected a text file with class names, but got {classes}: {reason}.") from error
