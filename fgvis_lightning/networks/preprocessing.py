"""Preprocessing: from an image to a network's input."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode

from fgvis_lightning.errors import InputError, one_of

LARGEST = 16384
"""Maximum height or width of an input in pixels."""

CHANNELS = ("gray", "rgb", "all")
COLORS = ("red", "green", "blue")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Size, cropping and normalization of a network's input.

    Attributes:
        size: height and width of the network's input in pixels; the length of a signal; or the three of a volume.
        resize: length of the short side before the center crop, or (height, width).
        interpolation: ``bilinear``, ``bicubic``, …, as in torchvision's ``InterpolationMode``.
        mean, std: normalization of images in [0,1], one value for each channel.
        channels: conversion of a file to these channels: ``gray`` (by luma), ``rgb``, or ``all`` for its bands or
            pages; None for ``gray`` with one channel, ``rgb`` with three, otherwise ``all``.
        levels: gray values of black and white in files; None for the rule of `fgvis_lightning.data.arrays.to_unit`.
        bands: channels shown as red, green and blue in pictures, from 1; None for the first, middle and last.
        source: origin of these values, for messages.
    """

    size: tuple[int, ...] = (224, 224)
    resize: int | tuple[int, int] = 256
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: str | None = None
    levels: tuple[float, float] | None = None
    bands: tuple[int, ...] | None = None
    source: str = "ImageNet's usual values, since the network has none"

    def __post_init__(self) -> None:
        """Raise `InputError` if a value is invalid, or if two values contradict each other."""
        mean, std = self.mean, self.std
        if not mean or len(mean) != len(std) or min(std) <= 0:
            raise InputError(
                f"Expected mean and std with a value for each channel and std > 0, but got {mean} and {std}."
            )
        if self.channels not in (None, *CHANNELS) or (self.channels == "rgb" and len(mean) != 3):
            raise InputError(
                f"Expected channels to be gray, rgb or all, rgb with three of them, but got {self.channels!r} with "
                f"{len(mean)}."
            )
        one_of([mode.value for mode in InterpolationMode], interpolation=self.interpolation)
        if self.levels is not None and not (len(self.levels) == 2 and -1e9 < self.levels[0] < self.levels[1] < 1e9):
            raise InputError(f"Expected levels to be black and a larger white, e.g. [0, 4095], but got {self.levels}.")
        if self.bands is not None and not (len(self.bands) == 3 and all(1 <= band <= len(mean) for band in self.bands)):
            raise InputError(f"Expected bands to be three from 1 to {len(mean)}, but got {self.bands}.")
        resized = self.resize if isinstance(self.resize, tuple) else (self.resize,)
        if (
            not 1 <= len(self.size) <= 3
            or not all(isinstance(side, Integral) for side in (*self.size, *resized))
            or min(self.size) < 1
            or min(resized) < min(self.size)
            or max(*self.size, min(resized)) > LARGEST
        ):
            raise InputError(
                f"Expected size to be a height and a width from 1 to {LARGEST} and resize at least as large, but got "
                f"{self.size} and {self.resize}."
            )

    @property
    def count(self) -> int:
        """Number of channels."""
        return len(self.mean)

    @property
    def chosen_channels(self) -> str:
        """Conversion of a file to these channels, ``gray``, ``rgb`` or ``all``."""
        return self.channels or {1: "gray", 3: "rgb"}.get(self.count, "all")

    @property
    def names(self) -> tuple[str, ...]:
        """The channels' names."""
        return channel_names(self.count, self.channels)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images (…,C,H,W) in [0,1], signals (…,C,T) or volumes (…,C,D,H,W)."""
        mean, std = self._by_channel(images)
        return (images - mean) / std

    def denormalize(self, images: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        mean, std = self._by_channel(images)
        return images * std + mean

    def _by_channel(self, images: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.count, *[1] * len(self.size)
        return images.new_tensor(self.mean).view(shape), images.new_tensor(self.std).view(shape)

    def background(self) -> Tensor:
        """The data set's mean color (C,1,1) in [0,1], which is zero in normalized space."""
        return torch.tensor(self.mean)[:, None, None]

    def __str__(self) -> str:
        short = self.resize if isinstance(self.resize, int) else "×".join(map(str, self.resize))
        mean, std = ("(" + ", ".join(f"{v:g}" for v in values) + ")" for values in (self.mean, self.std))
        size = "×".join(map(str, self.size))
        return f"{size} pixels from {short} ({self.interpolation}), mean {mean}, std {std}; {self.source}"


def channel_names(count: int, channels: str | None) -> tuple[str, ...]:
    """Names of the channels of masks and images: colors for three channels that are not bands or pages of a file.

    Args:
        count: number of channels.
        channels: see `Preprocessing`.
    """
    if count == 3 and channels != "all":
        return COLORS
    return ("gray",) if count == 1 else tuple(f"band {number}" for number in range(1, count + 1))
