"""torchmetrics classes for means over many images; results on several devices equal those on one device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from fgvis_lightning.errors import one_of
from fgvis_lightning.metrics.conciseness import INFORMATION, conciseness_preciseness
from fgvis_lightning.metrics.edges import new_edges
from fgvis_lightning.metrics.localization import energy_pointing_game
from fgvis_lightning.metrics.masks import (
    average_drop,
    average_increase,
    class_kept,
    connectedness,
    score_preserved,
    sparsity,
)
from fgvis_lightning.metrics.ranks import rank_correlation


class Plotted(Metric):
    """A metric without a gradient, with torchmetrics' plots."""

    is_differentiable = False
    full_state_update = False

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value, the values of several steps, or by default the current value, with matplotlib."""
        return self._plot(val, ax)


class MeanOverImages(Plotted):
    """The mean of one number for each image.

    Args:
        options: torchmetrics' own options.
    """

    plot_lower_bound = 0.0
    plot_upper_bound: float | None = 1.0
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def add(self, values: Tensor) -> None:
        """Update with the values (B,) of some images."""
        self.total += values.sum().to(self.total)
        self.count += len(values)

    def compute(self) -> Tensor:
        """The mean over all images so far; NaN if there are none."""
        return self.total / self.count


class ScorePreserved(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.score_preserved`, p(e)/p(x)."""

    higher_is_better = True
    plot_upper_bound = None

    def update(self, score_explanation: Tensor, score_image: Tensor) -> None:
        """Update with p(e) and p(x) (B,)."""
        self.add(score_preserved(score_explanation, score_image))


class ClassKept(MeanOverImages):
    """Share of the explanations with the top class of their image, see `fgvis_lightning.metrics.class_kept`."""

    higher_is_better = True

    def update(self, logits: Tensor, classes: Tensor) -> None:
        """Update with the logits of explanations (B,K) and the top classes of the images (B,)."""
        self.add(class_kept(logits, classes))


class AdversarialRate(MeanOverImages):
    """Share of the explanations whose target, a class that is not in the image, became the top class.

    Evidence for a class that is not in the image cannot be valid (Wagner et al., CVPR 2019, section 3.2): with gates,
    the rate should be near 0.
    """

    higher_is_better = False

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Update with the logits of explanations (B,K) and their targets (B,), none of which is in its image."""
        self.add(class_kept(logits, targets))


class Sparsity(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.sparsity`, the share of the image that is not evidence."""

    higher_is_better = True

    def update(self, evidence: Tensor) -> None:
        """Update with evidence (B,3,H,W) or (B,H,W) in [0,1]."""
        self.add(sparsity(evidence))


class Connectedness(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.connectedness`, the share of the evidence in its largest component."""

    higher_is_better = True

    def update(self, evidence: Tensor) -> None:
        """Update with evidence (B,3,H,W) or (B,H,W)."""
        self.add(connectedness(evidence))


class NewEdges(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.new_edges`, which can be more than 1; for the threshold see there."""

    higher_is_better = False
    plot_upper_bound = None

    def __init__(self, threshold: float = 0.05, **options: Any) -> None:
        super().__init__(**options)
        self.threshold = threshold

    def update(self, images: Tensor, explanations: Tensor) -> None:
        """Update with pictures of images and of their explanations, both (B,3,H,W) in [0,1]."""
        self.add(new_edges(images, explanations, self.threshold))


class Conciseness(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.conciseness_preciseness` over the images for which it is defined.

    For ``information`` see there.
    """

    higher_is_better = True
    plot_upper_bound = None

    def __init__(self, information: str = "entropy", **options: Any) -> None:
        super().__init__(**options)
        one_of(INFORMATION, information=information)
        self.information = information

    def update(self, score_explanation: Tensor, score_image: Tensor, explanations: Tensor, images: Tensor) -> None:
        """Update with p(e) and p(x) (B,), e and x (B,C,H,W)."""
        values = conciseness_preciseness(score_explanation, score_image, explanations, images, self.information)
        self.add(values[~values.isnan()])


class AverageDrop(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.average_drop`; the authors' number is 100 times as large."""

    higher_is_better = False

    def update(self, score_explanation: Tensor, score_image: Tensor) -> None:
        """Update with p(e) and p(x) (B,), where e is the image times the map."""
        self.add(average_drop(score_explanation, score_image))


class AverageIncrease(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.average_increase`; the authors' number is 100 times as large."""

    higher_is_better = True

    def update(self, score_explanation: Tensor, score_image: Tensor) -> None:
        """Update with p(e) and p(x) (B,), where e is the image times the map."""
        self.add(average_increase(score_explanation, score_image))


class EnergyPointingGame(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.energy_pointing_game`."""

    higher_is_better = True

    def update(self, saliency: Tensor, masks: Tensor) -> None:
        """Update with maps and boolean masks of the objects, both (B,H,W)."""
        self.add(energy_pointing_game(saliency, masks))


class RankCorrelation(MeanOverImages):
    """Mean of `fgvis_lightning.metrics.rank_correlation` over the pairs in which neither map is constant."""

    higher_is_better = True
    plot_lower_bound = -1.0

    def update(self, a: Tensor, b: Tensor) -> None:
        """Update with two maps of each image, both (B,H,W)."""
        values = rank_correlation(a, b)
        self.add(values[~values.isnan()])
