"""Image classifiers of HuggingFace, with their preprocessing and class names."""

from __future__ import annotations

from typing import Any

from PIL.Image import Resampling
from torch import nn

from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.preprocessing import Preprocessing

PREFIX = "hf:"


def load_huggingface(name: str) -> tuple[nn.Module, Preprocessing]:
    """An image classifier and its preprocessing, from HuggingFace's hub or a folder written by ``save_pretrained``.

    Raises:
        InputError: if transformers is not installed, or cannot load it.
    """
    try:
        from transformers import AutoImageProcessor, AutoModelForImageClassification
    except ImportError as error:
        raise InputError(
            f"Expected the package transformers to load {PREFIX}{name}, but it is not installed. Install it with: "
            f'pip install "fgvis-lightning[huggingface]"'
        ) from error
    try:
        network: nn.Module = AutoModelForImageClassification.from_pretrained(name)
        processor: Any = AutoImageProcessor.from_pretrained(name)
    except Exception as error:  # transformers and the hub raise dozens of kinds of errors
        says = str(error).strip().splitlines()
        raise InputError(
            f"Expected transformers to load an image classifier from {name}, but it could not: "
            f"{says[0] if says else type(error).__name__}"
        ) from error
    return network, preprocessing_of(processor)


def task_of_config(network: nn.Module) -> str:
    """The task in a network's ``config.problem_type``; ``multiclass`` if there is none."""
    kind = getattr(getattr(network, "config", None), "problem_type", None)
    return {"multi_label_classification": "multilabel", "regression": "regression"}.get(str(kind), "multiclass")


def preprocessing_of(processor: Any) -> Preprocessing:
    """The preprocessing of an image processor: resize, center crop, normalize."""
    size = {key: value for key, value in dict(processor.size).items() if value}
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    short = size.get("shortest_edge")
    resize: int | tuple[int, int] = short if short else (size["height"], size["width"])
    if crop:
        inputs = crop["height"], crop["width"]
    elif short:  # ConvNeXt's processor crops without a crop_size
        inputs, share = (short, short), getattr(processor, "crop_pct", None) or 1
        resize = int(short / share) if short < 384 else (short, short)
    else:
        inputs = size["height"], size["width"]
    normalized = getattr(processor, "do_normalize", True)
    return Preprocessing(
        size=inputs,
        resize=resize,
        interpolation=Resampling(int(processor.resample)).name.lower(),
        mean=tuple(processor.image_mean) if normalized else (0.0,) * 3,
        std=tuple(processor.image_std) if normalized else (1.0,) * 3,
        source="from HuggingFace's image processor",
    )


def class_names(network: nn.Module) -> tuple[str, ...]:
    """The names in a network's ``config.id2label``; empty if there are none."""
    labels = getattr(getattr(network, "config", None), "id2label", None)
    if not isinstance(labels, dict) or sorted(labels) != list(range(len(labels))):
        return ()
    return tuple(str(labels[index]) for index in range(len(labels)))
