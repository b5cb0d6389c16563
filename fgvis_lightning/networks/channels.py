"""Channels that a network takes, and normalization for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from fgvis_lightning.networks.preprocessing import Preprocessing

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601), as torchvision's Grayscale has them."""

UNKNOWN = 0.5, 0.25
"""Mean and standard deviation of channels of which nothing is known."""


KINDS = {1: "signals (B,C,T)", 2: "images (B,C,H,W)", 3: "volumes (B,C,D,H,W)"}
SPATIAL = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


def channels_of(network: nn.Module) -> int:
    """The channels that a network's first convolution takes; 3 where there is none."""
    first = _first_convolution(network)
    return 3 if first is None else first.in_channels


def dimensions_of(network: Any, unknown: int = 2) -> int:
    """The spatial dimensions of what a network takes, by its first convolution; ``unknown`` where there is none."""
    first = _first_convolution(network) if isinstance(network, nn.Module) else None
    return next((count for kind, count in SPATIAL.items() if isinstance(first, kind)), unknown)


def _first_convolution(network: nn.Module) -> Any:
    return next((module for module in network.modules() if isinstance(module, tuple(SPATIAL))), None)


def as_they_are(own: Preprocessing, count: int) -> Preprocessing:
    """Preprocessing of signals and volumes, which nobody normalizes in a common way: none."""
    source = "not normalized: give mean and std if they are to be"
    return replace(own, mean=(0.0,) * count, std=(1.0,) * count, source=source)


def for_channels(own: Preprocessing, count: int, known: bool) -> Preprocessing:
    """Preprocessing of as many channels: gray by luma for one; else what is known of three again and again.

    Args:
        own: the network's or ImageNet's.
        count: number of channels.
        known: whether it is the network's own.
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
    source = f"nothing is known of the network's {count} channels: give mean and std"
    return replace(own, mean=mean, std=std, source=source)
