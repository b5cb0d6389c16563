"""Position: does it matter whether an object is on the left or on the right?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fgvis_lightning.bias.base import Intervention, Pair, Statistic, shares, total
from fgvis_lightning.networks.classifier import Classifier


class PositionStatistic(Statistic):
    """``left`` and ``right``: shares of the evidence in each half."""

    names = ("left", "right")
    parts: Mapping[str, str] = {"left": "#7f7f7f", "right": "#c7c7c7"}

    def __call__(self, images: Tensor, weights: Tensor, reference: Tensor) -> Tensor:
        half = weights.shape[-1] // 2  # a middle column belongs to neither
        sides = [weights[..., :half], weights[..., -half:]]
        return shares(torch.stack([total(side).sum(1) for side in sides], 1)).float()


class Mirror(Intervention):
    """Mirrors images horizontally."""

    name = "mirrored"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flip(-1)


class Position(Pair):
    """Evidence on the left and on the right, and the mirrored image."""

    def __init__(self) -> None:
        self.statistic = PositionStatistic()

    def interventions(self, classifier: Classifier) -> Sequence[Intervention]:
        return [Mirror()]
