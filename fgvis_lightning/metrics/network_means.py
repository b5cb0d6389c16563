"""Means over images of metrics that run a network on many pictures of each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fgvis_lightning.metrics.curves import Network, auc, deletion_curve, insertion_curve
from fgvis_lightning.metrics.means import MeanOverImages
from fgvis_lightning.metrics.perturbations import SHARES as SUBSETS
from fgvis_lightning.metrics.perturbations import infidelity, max_sensitivity, sensitivity_n
from fgvis_lightning.metrics.profiles import Profile, find_profile
from fgvis_lightning.metrics.road import SHARES, road, road_curves

Given = tuple[Network, Tensor, Tensor, Tensor]
"""A network, images, their maps and their classes."""


class _NetworkMean(MeanOverImages):
    """Base of means for which a network runs on many pictures of each image."""

    def __init__(self, network: Network, batch_size: int, **options: Any) -> None:
        super().__init__(**options)
        # In a tuple, so that checkpoints of a module with this metric do not contain the network's weights.
        self._network = (network,)
        self.batch_size = batch_size

    def update(self, x: Tensor, saliency: Tensor, targets: Tensor) -> None:
        """Update with normalized images (B,3,H,W), their maps (B,H,W) and classes (B,)."""
        self.add(self._values((self._network[0], x, saliency, targets)))

    def _values(self, given: Given) -> Tensor:
        """One number for each image."""
        raise NotImplementedError


class _CurveAUC(_NetworkMean):
    _curve: Callable[..., Tensor]

    def __init__(self, network: Network, profile: Profile | str = "rise", batch_size: int = 64, **options: Any) -> None:
        super().__init__(network, batch_size, **options)
        self.profile = find_profile(profile)

    def _values(self, given: Given) -> Tensor:
        return auc(self._curve(*given, self.profile, self.batch_size), self.profile)


class DeletionAUC(_CurveAUC):
    """Mean area under the `fgvis_lightning.metrics.deletion_curve`; for the arguments see `InsertionAUC`."""

    higher_is_better = False
    _curve = staticmethod(deletion_curve)


class InsertionAUC(_CurveAUC):
    """Mean area under the `fgvis_lightning.metrics.insertion_curve`.

    Args:
        network: takes normalized images, returns logits. It is not part of the metric's state.
        profile: profile of the curve, or its name; report ``.profile.describe()`` with the number.
        batch_size: pictures in one network pass.
        options: torchmetrics' own options.

    Raises:
        InputError: if the profile is unknown.
    """

    higher_is_better = True
    _curve = staticmethod(insertion_curve)


class ROAD(_NetworkMean):
    """Mean of `fgvis_lightning.metrics.road`, which is between -1/2 and 1/2.

    For the arguments see `fgvis_lightning.metrics.road_curves`; the network is not part of the metric's state.
    """

    higher_is_better = True
    plot_lower_bound = -0.5
    plot_upper_bound = 0.5

    def __init__(
        self, network: Network, shares: Sequence[float] = SHARES, batch_size: int = 64, **options: Any
    ) -> None:
        super().__init__(network, batch_size, **options)
        self.shares = tuple(shares)

    def _values(self, given: Given) -> Tensor:
        return road(*road_curves(*given, self.shares, batch_size=self.batch_size))


class SensitivityN(_NetworkMean):
    """Mean of `fgvis_lightning.metrics.sensitivity_n` over the sizes of subsets, and over images that have it for all.

    For the arguments see there; the network is not part of the metric's state.
    """

    higher_is_better = True
    plot_lower_bound = -1.0

    def __init__(
        self,
        network: Network,
        shares: Sequence[float] = SUBSETS,
        subsets: int = 100,
        batch_size: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(network, batch_size, **options)
        self.shares, self.subsets = tuple(shares), subsets

    def _values(self, given: Given) -> Tensor:
        values = sensitivity_n(*given, self.shares, self.subsets, batch_size=self.batch_size).mean(1)
        return values[~values.isnan()]


class Infidelity(_NetworkMean):
    """Mean of `fgvis_lightning.metrics.infidelity`, whose maps may also be (B,3,H,W).

    For the arguments see there; the network is not part of the metric's state.
    """

    higher_is_better = False
    plot_upper_bound = None

    def __init__(
        self,
        network: Network,
        deviation: float = 0.2,
        samples: int = 50,
        scaled: bool = True,
        batch_size: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(network, batch_size, **options)
        self.deviation, self.samples, self.scaled = deviation, samples, scaled

    def _values(self, given: Given) -> Tensor:
        return infidelity(*given, self.deviation, self.samples, self.scaled, batch_size=self.batch_size)


class MaxSensitivity(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.max_sensitivity`; for the arguments see there."""

    higher_is_better = False
    plot_upper_bound = None

    def __init__(
        self,
        method: Callable[[Tensor, Tensor], Tensor],
        radius: float = 0.02,
        samples: int = 10,
        batch_size: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._method = (method,)
        self.radius, self.samples, self.batch_size = radius, samples, batch_size

    def update(self, x: Tensor, targets: Tensor) -> None:
        """Update with normalized images (B,3,H,W) and classes (B,)."""
        self.add(max_sensitivity(self._method[0], x, targets, self.radius, self.samples, batch_size=self.batch_size))
