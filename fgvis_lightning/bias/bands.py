"""Pairs that replace color for other channels than red, green and blue: bands, or tones of a single channel."""

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
"""Maximum number of interventions on bands, equal to the number of swaps of red, green and blue."""


class BandStatistic(ChannelStatistic):
    """Evidence by band.

    * ``mask band 1`` …: mean mask of the band, in [0,1];
    * ``band 1`` …: the band's share of all evidence;
    * ``opponent``: see `ChannelStatistic`.

    Args:
        count: number of bands, two or more.
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
    """Rotates bands: band 1 moves to the place of band 1 + ``by``, and the last bands move to the first places.

    Args:
        by: number of places, one or more.
    """

    def __init__(self, by: int) -> None:
        if by < 1:
            raise InputError(f"Expected at least 1 place, but got {by}.")
        self.by = by
        self.name = f"bands moved by {by}"

    def __call__(self, images: Tensor) -> Tensor:
        return images.roll(self.by, 1)


class MeanOfBands(Intervention):
    """Replaces each band with the mean of all bands."""

    name = "mean of bands"

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean(1, keepdim=True).expand_as(images)


class Bands(Pair):
    """Evidence by band, and rotations of bands; their mean is a control.

    Many bands have too many permutations to try all. A rotation moves every band, and over all rotations each band is
    once in each place. For many bands, five evenly spread rotations are tried.

    Args:
        count: number of bands, two or more.
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
    """Evidence by tone, for one channel.

    ``mask`` is the mean mask; ``brighter`` and ``darker`` are the shares of evidence in pixels brighter and darker than
    the reference.
    """

    names = ("mask", "brighter", "darker")
    parts: Mapping[str, str] = {"brighter": "#c7c7c7", "darker": "#3f3f3f"}

    def __call__(self, images: Tensor, weights: Tensor, reference: Tensor) -> Tensor:
        brighter = images >= reference
        sums = torch.cat([total(weights * brighter), total(weights * ~brighter)], 1)
        return torch.cat([sums.sum(1, keepdim=True) / weights[0].numel(), shares(sums)], 1).float()


class Inversion(Intervention):
    """Inverts images: x becomes 1 − x."""

    name = "negative"

    def __call__(self, images: Tensor) -> Tensor:
        return 1 - images


class Gamma(Intervention):
    """Changes tones without changing their order: x becomes x to the power of gamma.

    Args:
        gamma: exponent greater than 0; less than 1 brightens.
    """

    def __init__(self, gamma: float) -> None:
        if not gamma > 0:
            raise InputError(f"Expected gamma above 0, but got {gamma}.")
        self.gamma = gamma
        self.name = f"gamma {gamma:g}"

    def __call__(self, images: Tensor) -> Tensor:
        return images.clamp(0, 1) ** self.gamma


class Tone(Pair):
    """Evidence in pixels brighter and darker than the reference, and the negative; gammas are controls."""

    def __init__(self) -> None:
        self.statistic = ToneStatistic()

    def interventions(self, classifier: Classifier) -> Sequence[Intervention]:
        return [Inversion()]

    def controls(self, classifier: Classifier) -> Sequence[Intervention]:
        return [Gamma(0.5), Gamma(2)]
