"""Color: how evidence is spread over channels and hues, and what swapping channels does.

The last experiment of Wagner et al., CVPR 2019: a network that knows a class by its color has its evidence in certain
channels, and loses the class when channels are swapped; one that knows it by its shape keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import torch
from torch import Tensor
from torchvision.transforms import functional

from fgvis_lightning.bias.bands import Bands, Tone
from fgvis_lightning.bias.base import ChannelStatistic, Intervention, Pair, shares, total
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.preprocessing import COLORS

HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")
GRAY = 0.15  # saturation below which a pixel has no hue
SWAPPED = "BGR", "BRG"
"""The channels that stand for red, green and blue in the two swaps of Wagner et al.: RGB and GRB for BGR."""


class ColorStatistic(ChannelStatistic):
    """Evidence by channel and by hue.

    * ``mask red`` …: mean mask of the channel, in [0,1];
    * ``red`` …: its share of all evidence;
    * ``red hues`` … and ``gray``: share of evidence in pixels that have this hue in the image, within 30 degrees; gray
      is a saturation below 0.15;
    * ``opponent``: as in `ChannelStatistic`.
    """

    names = (
        *(f"mask {name}" for name in COLORS),
        *COLORS,
        *(f"{name} hues" for name in HUES),
        "gray",
        "opponent",
    )
    parts: Mapping[str, str] = {"red": "#d62728", "green": "#2ca02c", "blue": "#1f77b4"}

    def __call__(self, images: Tensor, weights: Tensor, reference: Tensor) -> Tensor:
        channels = super().__call__(images, weights, reference)
        by_hue = shares(total(weights.sum(1, keepdim=True) * hues(images))).float()
        return torch.cat([channels[:, :-1], by_hue, channels[:, -1:]], 1)


def hues(images: Tensor) -> Tensor:
    """Which of six hues a pixel has, or none: (B,7,H,W) as 0 and 1, of images (B,3,H,W) in [0,1]."""
    high, low = images.amax(1), images.amin(1)
    spread = high - low
    red, green, blue = images.unbind(1)
    sixth = torch.where(
        high == red,
        (green - blue) / spread.clamp(min=1e-12) % 6,
        torch.where(
            high == green, (blue - red) / spread.clamp(min=1e-12) + 2, (red - green) / spread.clamp(min=1e-12) + 4
        ),
    )
    hue = sixth.round().long() % 6
    number = torch.where(spread < GRAY * high.clamp(min=1e-12), 6, hue)
    return torch.nn.functional.one_hot(number, 7).movedim(-1, 1).to(images.dtype)


class ChannelSwap(Intervention):
    """Color channels in another order.

    Args:
        fed: the channels as the network gets them, ``BGR``.
        order: as it expects them, ``RGB``.
    """

    def __init__(self, fed: str, order: str = "RGB") -> None:
        if sorted(fed) != sorted(order) or sorted(order) != sorted("RGB"):
            raise InputError(f"Expected orders of the letters R, G and B, but got {fed!r} and {order!r}.")
        self.name = fed
        # The image's channels are in the order RGB: which of them the network is to take for each.
        self.taken = ["RGB".index(fed[order.index(color)]) for color in "RGB"]

    def __call__(self, images: Tensor) -> Tensor:
        return images[:, self.taken]


class Desaturation(Intervention):
    """Gray of the same luma (ITU-R BT.601)."""

    name = "gray"

    def __call__(self, images: Tensor) -> Tensor:
        return functional.rgb_to_grayscale(images, 3)


class HueRotation(Intervention):
    """All hues turned by an angle, at constant value and saturation (HSV).

    Args:
        degrees: from -180 to 180.
    """

    def __init__(self, degrees: float) -> None:
        if not -180 <= degrees <= 180:
            raise InputError(f"Expected degrees from -180 to 180, but got {degrees}.")
        self.degrees = degrees
        self.name = f"hue {degrees:+g}°"

    def __call__(self, images: Tensor) -> Tensor:
        return functional.adjust_hue(images, self.degrees / 360)


class Color(Pair):
    """Evidence by channel, and the five swaps of channels; gray and turned hues as controls.

    Of a network with one channel it is `Tone`, with other channels than red, green and blue `Bands`.

    Args:
        turns: of the hues, in degrees.
    """

    def __init__(self, turns: Sequence[float] = (90, 180, -90)) -> None:
        self.statistic = ColorStatistic()
        self.turns = tuple(turns)

    def suited(self, classifier: Classifier) -> Pair:
        names = classifier.preprocessing.names
        if names == COLORS:
            return self
        return Tone() if len(names) == 1 else Bands(len(names))

    def interventions(self, classifier: Classifier) -> Sequence[Intervention]:
        order = classifier.order
        return [ChannelSwap("".join(fed), order) for fed in permutations(order) if "".join(fed) != order]

    def controls(self, classifier: Classifier) -> Sequence[Intervention]:
        return [Desaturation(), *map(HueRotation, self.turns)]

    def averages(self, classifier: Classifier) -> Mapping[str, Sequence[str]]:
        names = ["".join(swap["RGB".index(color)] for color in classifier.order) for swap in SWAPPED]
        return {f"mean of {' and '.join(names)}": names}
