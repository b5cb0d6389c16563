"""Color: the distribution of evidence over channels and hues, and the effect of swapping channels.

This is the last experiment of Wagner et al., CVPR 2019: if a network recognizes a class by its color, its evidence is
in certain channels, and the class is lost when channels are swapped; if it uses the shape, the class is kept.
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
"""The channels in place of red, green and blue in the two swaps of Wagner et al.: RGB and GRB for BGR."""


class ColorStatistic(ChannelStatistic):
    """Evidence by channel and by hue.

    * ``mask red`` …: mean mask of the channel, in [0,1];
    * ``red`` …: the channel's share of all evidence;
    * ``red hues`` … and ``gray``: share of evidence in pixels with this hue in the image, within 30 degrees; gray means
      a saturation below 0.15;
    * ``opponent``: see `ChannelStatistic`.
    """

    names = (*(f"mask {name}" for name in COLORS), *COLORS, *(f"{name} hues" for name in HUES), "gray", "opponent")
    parts: Mapping[str, str] = {"red": "#d62728", "green": "#2ca02c", "blue": "#1f77b4"}

    def __call__(self, images: Tensor, weights: Tensor, reference: Tensor) -> Tensor:
        channels = super().__call__(images, weights, reference)
        by_hue = shares(total(weights.sum(1, keepdim=True) * hues(images))).float()
        return torch.cat([channels[:, :-1], by_hue, channels[:, -1:]], 1)


def hues(images: Tensor) -> Tensor:
    """One-hot hue of each pixel (B,7,H,W), six hues or none, for images (B,3,H,W) in [0,1]."""
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
    """Reorders color channels.

    Args:
        fed: order of the channels that the network receives, e.g. ``BGR``.
        order: order that the network expects, e.g. ``RGB``.
    """

    def __init__(self, fed: str, order: str = "RGB") -> None:
        if sorted(fed) != sorted(order) or sorted(order) != sorted("RGB"):
            raise InputError(f"Expected orders of the letters R, G and B, but got {fed!r} and {order!r}.")
        self.name = fed
        # For each channel of the RGB image, the channel that the network receives instead.
        self.taken = ["RGB".index(fed[order.index(color)]) for color in "RGB"]

    def __call__(self, images: Tensor) -> Tensor:
        return images[:, self.taken]


class Desaturation(Intervention):
    """Converts images to gray of the same luma (ITU-R BT.601)."""

    name = "gray"

    def __call__(self, images: Tensor) -> Tensor:
        return functional.rgb_to_grayscale(images, 3)


class HueRotation(Intervention):
    """Rotates all hues by an angle, at constant value and saturation (HSV).

    Args:
        degrees: angle from -180 to 180.
    """

    def __init__(self, degrees: float) -> None:
        if not -180 <= degrees <= 180:
            raise InputError(f"Expected degrees from -180 to 180, but got {degrees}.")
        self.degrees = degrees
        self.name = f"hue {degrees:+g}°"

    def __call__(self, images: Tensor) -> Tensor:
        return functional.adjust_hue(images, self.degrees / 360)


class Color(Pair):
    """Evidence by channel, and the five swaps of channels; gray and rotated hues are controls.

    For a network with one channel, it is replaced by `Tone`; for other channels than red, green and blue, by `Bands`.

    Args:
        turns: angles of the hue rotations, in degrees.
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
