"""The channels of a network's input, and their normalization."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from fgvis_lightning.networks.preprocessing import Preprocessing

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in gray (ITU-R BT.601), as in torchvision's Grayscale
UNKNOWN = 0.5, 0.25  # mean and standard deviation of unknown channels


KINDS = {1: "signals (B,C,T)", 2: "images (B,C,H,W)", 3: "volumes (B,C,D,H,W)"}
SPATIAL = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


def channels_of(network: nn.Module) -> int:
    """Number of input channels of a network's first convolution; 3 if there is none."""
    first = _first_convolution(network)
    return 3 if first is None else first.in_channels


def dimensions_of(network: Any, unknown: int = 2) -> int:
    """Number of spatial dimensions of a network's first convolution; ``unknown`` if there is none."""
    first = _first_convolution(network) if isinstance(network, nn.Module) else None
    return next((count for kind, count in SPATIAL.items() if isinstance(first, kind)), unknown)


def _first_convolution(network: nn.Module) -> Any:
    return next((module for module in network.modules() if isinstance(module, tuple(SPATIAL))), None)


def as_they_are(own: Preprocessing, count: int) -> Preprocessing:
    """Preprocessing of signals and volumes: none, since there is no common normalization."""
    source = "not normalized: set mean and std to normalize"
    return replace(own, mean=(0.0,) * count, std=(1.0,) * count, source=source)


def for_channels(own: Preprocessing, count: int, known: bool) -> Preprocessing:
    """Preprocessing for another number of channels: one channel is gray by luma; known values of three are repeated.

    Args:
        own: preprocessing of the network or of ImageNet.
        count: number of channels.
        known: whether ``own`` is the network's own preprocessing.
    """
    if count == len(own.mean):
        return own
    both = own.mean, own.std
    if count == 1:
        gray = [round(sum(w * v for w, v in zip(LUMA, values, strict=True)), 4) for values in both]
        return replace(own, mean=(gray[0],), std=(gray[1],), source=f"{own.source}, as gray")
    if known:
        mean, std = (tuple(values[place % 3] for place in range(count)) for values in both)
        return replace(own, mean=mean, std=std, source=f"{own.source}, for {count} channels")
    mean, std = ((value,) * count for value in UNKNOWN)
    source = f"the network's {count} channels are unknown: set mean and std"
    return replace(own, mean=mean, std=std, source=source)
