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


class _CurveAUC(MeanOverImages):
    _curve: Callable[..., Tensor]

    def __init__(self, network: Network, profile: Profile | str = "rise", batch_size: int = 64, **options: Any) -> None:
        super().__init__(**options)
        # In a tuple, so that checkpoints of a module with this metric do not contain the network's weights.
        self._network = (network,)
        self.profile = find_profile(profile)
        self.batch_size = batch_size

    def update(self, x: Tensor, saliency: Tensor, targets: Tensor) -> None:
        """Update with normalized images (B,3,H,W), their maps (B,H,W) and classes (B,)."""
        scores = self._curve(self._network[0], x, saliency, targets, self.profile, self.batch_size)
        self.add(auc(scores, self.profile))


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


class ROAD(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.road`, which is between -1/2 and 1/2.

    Args:
        network: takes normalized images, returns logits. It is not part of the metric's state.
        shares: shares of removed pixels.
        batch_size: pictures in one network pass.
        options: torchmetrics' own options.
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
        """Update with normalized images (B,3,H,W), their maps (B,H,W) and classes (B,)."""
        curves = road_curves(self._network[0], x, saliency, targets, self.shares, batch_size=self.batch_size)
        self.add(road(*curves))


class SensitivityN(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.sensitivity_n` over the sizes of subsets, and over images that have it for all.

    Args:
        network: takes normalized images, returns logits. It is not part of the metric's state.
        shares: sizes of subsets, as shares of the pixels.
        subsets: number of subsets of each size.
        batch_size: pictures in one network pass.
        options: torchmetrics' own options.
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
        super().__init__(**options)
        self._network = (network,)
        self.shares, self.subsets, self.batch_size = tuple(shares), subsets, batch_size

    def update(self, x: Tensor, saliency: Tensor, targets: Tensor) -> None:
        """Update with normalized images (B,3,H,W), their maps (B,H,W) and classes (B,)."""
        network, size = self._network[0], self.batch_size
        values = sensitivity_n(network, x, saliency, targets, self.shares, self.subsets, batch_size=size).mean(1)
        self.add(values[~values.isnan()])


class Infidelity(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.infidelity`.

    Args:
        network: takes normalized images, returns logits. It is not part of the metric's state.
        deviation: standard deviation of the noise, in normalized space.
        samples: number of noise samples.
        scaled: whether to multiply each map by its best factor.
        batch_size: pictures in one network pass.
        options: torchmetrics' own options.
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
        super().__init__(**options)
        self._network = (network,)
        self.deviation, self.samples, self.scaled, self.batch_size = deviation, samples, scaled, batch_size

    def update(self, x: Tensor, saliency: Tensor, targets: Tensor) -> None:
        """Update with normalized images (B,3,H,W), their maps (B,3,H,W) or (B,H,W), and classes (B,)."""
        network, noise = self._network[0], (self.deviation, self.samples, self.scaled)
        self.add(infidelity(network, x, saliency, targets, *noise, batch_size=self.batch_size))


class MaxSensitivity(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.max_sensitivity`.

    Args:
        method: takes normalized images (n,3,H,W) and classes (n,), returns their maps.
        radius: radius of the changes, in normalized space.
        samples: number of changes.
        batch_size: images in one call of the method.
        options: torchmetrics' own options.
    """

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
