"""Channels that a network takes, and normalization for them."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fgvis_lightning.networks.preprocessing import Preprocessing

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601), as torchvision's Grayscale has them."""

UNKNOWN = 0.5, 0.25
"""Mean and standard deviation of channels of which nothing is known."""


def channels_of(network: nn.Module) -> int:
    """The channels that a network's first convolution takes; 3 where there is none."""
    kinds = nn.Conv1d, nn.Conv2d, nn.Conv3d
    first = next((module for module in network.modules() if isinstance(module, kinds)), None)
    return 3 if first is None else first.in_channels


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
