"""What stands for color where a network takes other channels than red, green and blue: bands, or the tones of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb

import torch
from torch import Tensor

from fgvis_lightning.bias.base import ChannelStatistic, Intervention, Pair, Statistic, shares, total
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.preprocessing import channel_names

ROTATIONS = 5
"""Interventions on bands at most: as many as there are swaps of red, green and blue."""


class BandStatistic(ChannelStatistic):
    """Evidence by band.

    * ``mask band 1`` …: mean mask of the band, in [0,1];
    * ``band 1`` …: its share of all evidence;
    * ``opponent``: as in `ChannelStatistic`.

    Args:
        count: of the bands, two or more.
    """

    def __init__(self, count: int) -> None:
        if count < 2:
            raise InputError(f"Expected two bands or more, but got {count}.")
        bands = channel_names(count, "all")
        self.names = (*(f"mask {band}" for band in bands), *bands, "opponent")
        self.parts = {band: _color(0.8 * k / (count - 1)) for k, band in enumerate(bands)}


def _color(hue: float) -> str:
    return "#" + "".join(f"{round(255 * value):02x}" for value in hsv_to_rgb(hue, 0.75, 0.8))


class Rotation(Intervention):
    """Bands moved on: band 1 stands where band 1 + ``by`` was, and the last ones where the first were.

    Args:
        by: places, one or more.
    """

    def __init__(self, by: int) -> None:
        if by < 1:
            raise InputError(f"Expected places from 1 on, but got {by}.")
        self.by = by
        self.name = f"bands moved by {by}"

    def __call__(self, images: Tensor) -> Tensor:
        return images.roll(self.by, 1)


class MeanOfBands(Intervention):
    """Each band replaced by the mean of all."""

    name = "mean of bands"

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean(1, keepdim=True).expand_as(images)


class Bands(Pair):
    """Evidence by band, and bands moved on; their mean as a control.

    There are too many orders of many bands to try all. In a rotation no band stays in its place, and over all rotations
    each band stands once in each place; of many bands five are tried, evenly spread.

    Args:
        count: of the bands, two or more.
    """

    def __init__(self, count: int) -> None:
        self.statistic = BandStatistic(count)
        self.count = count

    def interventions(self, classifier: Classifier) -> Sequence[Intervention]:
        few = min(ROTATIONS, self.count - 1)
        return [Rotation(1 + k * (self.count - 1) // few) for k in range(few)]

    def controls(self, classifier: Classifier) -> Sequence[Intervention]:
        return [MeanOfBands()]


class ToneStatistic(Statistic):
    """Evidence by tone, of one channel.

    ``mask`` is its mean; ``brighter`` and ``darker`` are the shares of evidence on this side of the reference.
    """

    names = ("mask", "brighter", "darker")
    parts: Mapping[str, str] = {"brighter": "#c7c7c7", "darker": "#3f3f3f"}

    def __call__(self, images: Tensor, weights: Tensor, reference: Tensor) -> Tensor:
        brighter = images >= reference
        sums = torch.cat([total(weights * brighter), total(weights * ~brighter)], 1)
        return torch.cat([sums.sum(1, keepdim=True) / weights[0].numel(), shares(sums)], 1).float()


class Inversion(Intervention):
    """The negative: x becomes 1 − x."""

    name = "negative"

    def __call__(self, images: Tensor) -> Tensor:
        return 1 - images


class Gamma(Intervention):
    """Tones moved, and kept in their order: x becomes x to the power of gamma.

    Args:
        gamma: above 0; below 1 brightens.
    """

    def __init__(self, gamma: float) -> None:
        if not gamma > 0:
            raise InputError(f"Expected gamma above 0, but got {gamma}.")
        self.gamma = gamma
        self.name = f"gamma {gamma:g}"

    def __call__(self, images: Tensor) -> Tensor:
        return images.clamp(0, 1) ** self.gamma


class Tone(Pair):
    """Evidence in what is brighter and in what is darker than the reference, and the negative; gammas as controls."""

    def __init__(self) -> None:
        self.statistic = ToneStatistic()

    def interventions(self, classifier: Classifier) -> Sequence[Intervention]:
        return [Inversion()]

    def controls(self, classifier: Classifier) -> Sequence[Intervention]:
        return [Gamma(0.5), Gamma(2)]
