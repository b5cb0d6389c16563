"""The parts of a bias analysis: statistics of explanations and interventions on images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fgvis_lightning.networks.classifier import Classifier


class Statistic(ABC):
    """Numbers that describe an explanation's evidence.

    Attributes:
        names: names of the numbers.
        parts: names of the numbers that are shares of a whole → their color in figures.
    """

    names: tuple[str, ...]
    parts: Mapping[str, str]

    @abstractmethod
    def __call__(self, images: Tensor, weights: Tensor, reference: Tensor) -> Tensor:
        """The numbers of each image.

        It is called twice: for the evidence, and for the image itself with its contrast |x − r| as weights, which is
        all available evidence.

        Args:
            images: images (B,C,H,W) in [0,1].
            weights: weights (B,C,H,W) of pixels and channels in [0,1].
            reference: color (C,1,1) of the reference in [0,1].

        Returns:
            Numbers (B,K), one column for each name; NaN if a number is undefined, e.g. without any evidence.
        """

    def dependence(self, means: Tensor) -> Tensor:
        """How strongly a class's evidence depends on the suspected feature; default: `imbalance` of the parts.

        Args:
            means: numbers (…,K) averaged over a class's images, so that differences between images cancel out.

        Returns:
            Dependence (…), high = dependent.
        """
        return imbalance(means[..., [self.names.index(name) for name in self.parts]])


class ChannelStatistic(Statistic):
    """Evidence by channel, in these columns:

    * the mean mask of each channel, in [0,1];
    * each channel's share of all evidence;
    * ``opponent``: share of evidence in which channels brighter and channels darker than the reference occur in the
      same pixel. Brightness alone never needs both, but an object's color does.
    """

    def __call__(self, images: Tensor, weights: Tensor, reference: Tensor) -> Tensor:
        sums = total(weights)
        signed = weights * (images - reference).sign()
        sides = torch.stack([signed.clamp(min=0).sum(1), (-signed).clamp(min=0).sum(1)], 1)  # (B,2,H,W)
        opponent = 2 * total(sides.amin(1, keepdim=True)) / total(sides).sum(1, keepdim=True)
        return torch.cat([sums / weights[0, 0].numel(), shares(sums), opponent], 1).float()

    def dependence(self, means: Tensor) -> Tensor:
        """Imbalance of the channels times ``opponent``.

        A network that only sees gray uses brighter or darker pixels, possibly in a single channel of a colored object.
        The imbalance alone would count this as color, but such a network has no opponent evidence.
        """
        return super().dependence(means) * means[..., self.names.index("opponent")]


class Intervention(ABC):
    """A change of images that removes the suspected feature and keeps everything else.

    Attributes:
        name: name in tables.
    """

    name: str

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Return changed copies of images (B,C,H,W) in [0,1]."""


class Pair(ABC):
    """A suspicion: a statistic of explanations, and interventions that test it on images.

    Attributes:
        statistic: the statistic of explanations.
    """

    statistic: Statistic

    def suited(self, classifier: Classifier) -> Pair:
        """The pair for the network's channels; this one by default."""
        return self

    @abstractmethod
    def interventions(self, classifier: Classifier) -> Sequence[Intervention]:
        """Interventions whose mean effect is a class's dependence; their names must differ."""

    def controls(self, classifier: Classifier) -> Sequence[Intervention]:
        """Further interventions to show for comparison."""
        return ()

    def averages(self, classifier: Classifier) -> Mapping[str, Sequence[str]]:
        """Name → names of interventions whose mean a table should show."""
        return {}


def shares(values: Tensor) -> Tensor:
    """Values (B,N) ≥ 0 as shares of their sum; NaN if the sum is zero."""
    return values / values.sum(1, keepdim=True)


def imbalance(parts: Tensor) -> Tensor:
    """Imbalance (…) of shares (…,N): 0 if all are 1/N, 1 if one share is 1.

    It is the total variation distance from equal shares, divided by its maximum.
    """
    count = parts.shape[-1]
    return (parts - 1 / count).abs().sum(-1) * count / (2 * (count - 1))


def total(weights: Tensor) -> Tensor:
    """Sums (B,C) over the pixels of (B,C,H,W), in float64 if available."""
    return weights.to(torch.float32 if weights.device.type == "mps" else torch.float64).sum((2, 3))
