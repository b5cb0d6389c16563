"""The parts of a bias analysis: statistics of explanations and interventions on images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fgvis_lightning.networks.classifier import Classifier


class Statistic(ABC):
    """Numbers that say what an explanation's evidence is made of.

    Attributes:
        names: of the numbers.
        parts: those of them that are shares of one whole → the color in which a figure draws them.
    """

    names: tuple[str, ...]
    parts: Mapping[str, str]

    @abstractmethod
    def __call__(self, images: Tensor, weights: Tensor, reference: Tensor) -> Tensor:
        """The numbers of each image.

        It is asked twice: for the evidence, and for the image itself, with its contrast |x − r| as weights, which is
        all that there is to be used.

        Args:
            images: (B,C,H,W) in [0,1].
            weights: (B,C,H,W) in [0,1], how much each pixel and channel counts.
            reference: the color (C,1,1) in [0,1] that the mask uncovers.

        Returns:
            (B,K), a column for each name; NaN where a number is undefined, e.g. without any evidence.
        """

    def dependence(self, means: Tensor) -> Tensor:
        """How much a class's evidence hangs on what is suspected: unless overridden, `imbalance` of the parts.

        Args:
            means: over a class's images (…,K), as above. What differs from image to image has evened out in them.

        Returns:
            (…), high = dependent.
        """
        return imbalance(means[..., [self.names.index(name) for name in self.parts]])


class ChannelStatistic(Statistic):
    """Evidence by channel: a statistic whose names are those of the columns below, with ``opponent`` the last.

    * the mean mask of each channel, in [0,1];
    * each channel's share of all evidence;
    * ``opponent``: share of evidence for which, in one pixel, channels brighter than the reference and channels darker
      than it stand together. Brightness alone cannot ask for both; an object's color does.
    """

    def __call__(self, images: Tensor, weights: Tensor, reference: Tensor) -> Tensor:
        sums = total(weights)
        signed = weights * (images - reference).sign()
        sides = torch.stack([signed.clamp(min=0).sum(1), (-signed).clamp(min=0).sum(1)], 1)  # (B,2,H,W)
        opponent = 2 * total(sides.amin(1, keepdim=True)) / total(sides).sum(1, keepdim=True)
        return torch.cat([sums / weights[0, 0].numel(), shares(sums), opponent], 1).float()

    def dependence(self, means: Tensor) -> Tensor:
        """Imbalance of the channels times ``opponent``.

        A network that sees gray alone takes what is brighter, or what is darker, and that can be a single channel of a
        colored object: the imbalance alone would call that color, but opponent evidence it has none.
        """
        return super().dependence(means) * means[..., self.names.index("opponent")]


class Intervention(ABC):
    """A change of images that takes away what is suspected, and leaves the rest.

    Attributes:
        name: for tables.
    """

    name: str

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Changed copies of images (B,C,H,W) in [0,1]."""


class Pair(ABC):
    """A suspicion: what to look for in explanations, and how to test it on images.

    Attributes:
        statistic: of the explanations.
    """

    statistic: Statistic

    def suited(self, classifier: Classifier) -> Pair:
        """The pair for the network's channels: unless overridden, this one."""
        return self

    @abstractmethod
    def interventions(self, classifier: Classifier) -> Sequence[Intervention]:
        """Those whose mean effect is a class's dependence; names differ."""

    def controls(self, classifier: Classifier) -> Sequence[Intervention]:
        """Others, to be shown beside them."""
        return ()

    def averages(self, classifier: Classifier) -> Mapping[str, Sequence[str]]:
        """Name → interventions whose mean a table is to show."""
        return {}


def shares(values: Tensor) -> Tensor:
    """Values (B,N) ≥ 0 as shares of their sum; NaN where that is zero."""
    return values / values.sum(1, keepdim=True)


def imbalance(parts: Tensor) -> Tensor:
    """How unevenly shares (…,N) are spread (…): 0 where all are 1/N, 1 where one has all.

    The total variation distance from equal shares, divided by the largest that there can be.
    """
    count = parts.shape[-1]
    return (parts - 1 / count).abs().sum(-1) * count / (2 * (count - 1))


def total(weights: Tensor) -> Tensor:
    """Sums (B,C) over the pixels of (B,C,H,W), in float64 where there is float64."""
    return weights.to(torch.float32 if weights.device.type == "mps" else torch.float64).sum((2, 3))
