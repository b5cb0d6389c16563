"""Metrics over many images that are means over classes, or over pairs of classes."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import torch
from torch import Tensor

from fgvis_lightning.errors import InputError, one_of
from fgvis_lightning.metrics.checks import check_targets, shape
from fgvis_lightning.metrics.discrimination import summarize
from fgvis_lightning.metrics.localization import pointing_game
from fgvis_lightning.metrics.means import Plotted
from fgvis_lightning.metrics.order import TIES


class PointingGame(Plotted):
    """Accuracy of `fgvis_lightning.metrics.pointing_game`: the mean over the classes of the share of hits.

    As in TorchRay, except that classes without images are ignored; in TorchRay, they count as classes without hits.
    ``num_classes`` is their number in the data set; for the other arguments see there.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    hits: Tensor
    counts: Tensor

    def __init__(
        self, num_classes: int, tolerance: int = 15, ties: str = "random", seed: int = 0, **options: Any
    ) -> None:
        super().__init__(**options)
        one_of(TIES, ties=ties)
        self.tolerance, self.ties, self.seed = tolerance, ties, seed
        self.add_state("hits", torch.zeros(num_classes), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_classes), dist_reduce_fx="sum")

    def update(self, saliency: Tensor, masks: Tensor, targets: Tensor) -> None:
        """Update with maps and boolean masks of the objects, both (B,H,W), and the objects' classes (B,)."""
        found = pointing_game(saliency, masks, self.tolerance, self.ties, self.seed).to(self.hits)
        check_targets(targets, len(found))
        if not 0 <= int(targets.min()) <= int(targets.max()) < len(self.hits):
            raise InputError(f"Expected targets from 0 to {len(self.hits) - 1}, but got {targets.tolist()}.")
        targets = targets.to(self.hits.device)
        self.hits.index_add_(0, targets, found)
        self.counts.index_add_(0, targets, torch.ones_like(found))

    def compute(self) -> Tensor:
        """The accuracy; NaN if there were no images."""
        return (self.hits / self.counts).nanmean()


class Discrimination(Plotted):
    """`fgvis_lightning.metrics.discrimination.summarize` over many images.

    Its value has ``own`` and ``others``, the geometric means of the remaining shares of the class's own score and of
    the other classes' scores without its evidence, and ``told_apart``, the share of the pairs in which a class loses
    more without its own evidence than another class does, which should be high.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    sums: Tensor
    counts: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("sums", torch.zeros(3), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(3), dist_reduce_fx="sum")

    def update(self, remaining: Tensor | Sequence[Tensor]) -> None:
        """Update with ``remaining_scores`` (T,T) of an image with T ≥ 2 classes, or of several images."""
        for left in [remaining] if isinstance(remaining, Tensor) else remaining:
            if left.ndim != 2 or left.shape[0] != left.shape[1] or len(left) < 2:
                raise InputError(f"Expected the remaining scores to be (T,T) with T > 1, but got {shape(left)}.")
            own, others, told_apart = summarize([left])
            pairs = len(left) * (len(left) - 1)
            counts = self.counts.new_tensor([len(left), pairs, pairs])
            self.sums += self.sums.new_tensor([log(own), log(others), told_apart]) * counts
            self.counts += counts

    def compute(self) -> dict[str, Tensor]:
        """The three values; NaN if there were no images."""
        means = self.sums / self.counts
        return {"own": means[0].exp(), "others": means[1].exp(), "told_apart": means[2]}
