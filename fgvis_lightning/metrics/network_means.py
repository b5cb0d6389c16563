"""Means over images of metrics that run a network, each on many pictures of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fgvis_lightning.metrics.curves import Network, auc, deletion_curve, insertion_curve
from fgvis_lightning.metrics.means import MeanOverImages
from fgvis_lightning.metrics.profiles import Profile, find_profile
from fgvis_lightning.metrics.road import SHARES, road, road_curves


class _CurveAUC(MeanOverImages):
    def __init__(self, network: Network, profile: Profile | str = "rise", batch_size: int = 64, **options: Any) -> None:
        super().__init__(**options)
        # In a tuple: else its weights would be in every checkpoint of a module that has this metric.
        self._network = (network,)
        self.profile = find_profile(profile)
        self.batch_size = batch_size


class DeletionAUC(_CurveAUC):
    """Mean area under the `fgvis_lightning.metrics.deletion_curve`; arguments as `InsertionAUC`."""

    higher_is_better = False

    def update(self, x: Tensor, saliency: Tensor, targets: Tensor) -> None:
        """Take in normalized images (B,3,H,W), their maps (B,H,W) and classes (B,)."""
        scores = deletion_curve(self._network[0], x, saliency, targets, self.profile, self.batch_size)
        self.add(auc(scores, self.profile))


class InsertionAUC(_CurveAUC):
    """Mean area under the `fgvis_lightning.metrics.insertion_curve`.

    Args:
        network: takes normalized images, returns logits. It is not part of the metric's state.
        profile: how the curve is made, or the name of it; ``.profile.describe()`` belongs beside the number.
        batch_size: pictures in one network pass.
        options: torchmetrics' own.

    Raises:
        InputError: an unknown profile.
    """

    higher_is_better = True

    def update(self, x: Tensor, saliency: Tensor, targets: Tensor) -> None:
        """Take in normalized images (B,3,H,W), their maps (B,H,W) and classes (B,)."""
        scores = insertion_curve(self._network[0], x, saliency, targets, self.profile, self.batch_size)
        self.add(auc(scores, self.profile))


class ROAD(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.road`, which is between -1/2 and 1/2.

    Args:
        network: takes normalized images, returns logits. It is not part of the metric's state.
        shares: of the pixels that are removed.
        batch_size: pictures in one network pass.
        options: torchmetrics' own.
    """

    higher_is_better = True
    plot_lower_bound = -0.5
    plot_upper_bound = 0.5

    def __init__(
        self, network: Network, shares: Sequence[float] = SHARES, batch_size: int = 64, **options: Any
    ) -> None:
        super().__init__(**options)
        self._network = (network,)
        self.shares, self.batch_size = tuple(shares), batch_size

    def update(self, x: Tensor, saliency: Tensor, targets: Tensor) -> None:
        """Take in normalized images (B,3,H,W), their maps (B,H,W) and classes (B,)."""
        curves = road_curves(self._network[0], x, saliency, targets, self.shares, batch_size=self.batch_size)
        self.add(road(*curves))
