"""Metrics of masks and of their explanations' scores: one number for each image.

Scores are probabilities of the target class for the explanation ``e`` and the image ``x``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fgvis_lightning.errors import InputError, one_of
from fgvis_lightning.metrics.checks import check_batch, check_classes, check_maps, check_targets, shape


def score_preserved(score_explanation: Tensor, score_image: Tensor) -> Tensor:
    """p(e)/p(x) (B,) ≥ 0: 1 if the explanation has the image's full score.

    Args:
        score_explanation: p(e) (B,).
        score_image: p(x) (B,).

    Raises:
        InputError: if shapes do not match.
    """
    check_batch(score_explanation=score_explanation, score_image=score_image)
    return score_explanation.float() / score_image.float().clamp(min=torch.finfo(torch.float32).tiny)


def class_kept(logits: Tensor, classes: Tensor) -> Tensor:
    """1 if the top class is the given one, otherwise 0 (B,).

    Args:
        logits: logits of the explanations (B,K).
        classes: class indices (B,): the top classes of the images, or other classes that may become the top class.

    Raises:
        InputError: if shapes do not match.
    """
    check_targets(classes, len(logits))
    check_classes(logits, classes, len(classes))
    return (logits.argmax(1) == classes.to(logits.device)).float()


def sparsity(evidence: Tensor) -> Tensor:
    """Share of the image that is not evidence (B,), 1 - mean: 0 for the whole image, 1 for none.

    Args:
        evidence: evidence (B,3,H,W) or (B,H,W) in [0,1].

    Raises:
        InputError: if the evidence has another shape, or values outside [0,1].
    """
    evidence = check_maps("evidence", evidence.flatten(2) if evidence.ndim == 4 else evidence)
    if evidence.min() < 0 or evidence.max() > 1:
        raise InputError(f"Expected evidence in [0,1], but got values from {evidence.min():g} to {evidence.max():g}.")
    return 1 - evidence.flatten(1).mean(1)


def connectedness(evidence: Tensor) -> Tensor:
    """Share of the evidence in its largest connected component (B,), from 0 to 1.

    Pixels with at least half of the maximum count as evidence; pixels of a component are neighbors along sides or at
    corners. The share is 0 if there is no evidence at all.

    Args:
        evidence: evidence (B,3,H,W), which is averaged over the channels, or (B,H,W); ≥ 0.

    Raises:
        InputError: if the evidence has another shape, or NaN values.
    """
    evidence = check_maps("evidence", evidence.float().mean(1) if evidence.ndim == 4 else evidence)
    there = (evidence > 0) & (evidence >= evidence.amax((1, 2), keepdim=True) / 2)
    labels = _components(there).flatten(1)
    sizes = torch.zeros(len(labels), there[0].numel() + 1, device=labels.device)
    sizes.scatter_add_(1, labels, there.flatten(1).float())
    return sizes.amax(1) / there.flatten(1).sum(1).clamp(min=1)


def _components(there: Tensor) -> Tensor:
    """A positive label for each 8-connected component (B,H,W), 0 elsewhere."""
    count, height, width = there.shape
    labels = torch.arange(1, height * width + 1, device=there.device).view(height, width) * there
    # float32 holds the numbers of up to 4096 by 4096 pixels.
    kind = torch.float32 if height * width < 2**24 else torch.float64
    while True:
        spread = F.max_pool2d(labels[:, None].to(kind), 3, stride=1, padding=1)[:, 0].long() * there
        # A label is the position of a pixel of the same component. This pixel takes the largest label that pixels with
        # its label have met, and they take its label; through neighbors alone, labels would move one pixel per round.
        old, new = labels.flatten(1), spread.flatten(1)
        table = F.pad(new, (1, 0)).scatter_reduce_(1, old, new, "amax")
        table = table.gather(1, table)
        moved = table.gather(1, table)[:, 1:].view(count, height, width)
        if torch.equal(moved, labels):
            return labels
        labels = moved


SCALES = "maximum", "min-max"
"""Ways in which `highlight` scales maps to [0,1]."""


def highlight(x: Tensor, saliency: Tensor, scale: str = "maximum") -> Tensor:
    """The image multiplied by the map, which `average_drop` and `average_increase` compare with the image.

    Chattopadhyay et al., Grad-CAM++, WACV 2018, section 4. The product is taken in normalized space, so that the data
    set's mean color remains where the map is 0. The authors do not specify how maps are scaled to [0,1]; their maps are
    not negative and most of them reach 0, so both scales are equal.

    Args:
        x: normalized images (B,3,H,W).
        saliency: maps (B,H,W), high = evidence.
        scale: ``maximum``: negative values become 0, and the maximum becomes 1; or ``min-max``: the minimum becomes 0,
            whether it is evidence against the class or not, and the maximum becomes 1. A constant map, which has no
            evidence, becomes 0.

    Returns:
        Images (B,3,H,W).

    Raises:
        InputError: if shapes do not match, maps contain NaN, or the scale is unknown.
    """
    one_of(SCALES, scale=scale)
    if x.ndim != 4:
        raise InputError(f"Expected x to be (B,3,H,W), but got {shape(x)}.")
    maps = check_maps("saliency", saliency, len(x), *x.shape[-2:]).to(x.device)
    maps = maps.clamp(min=0) if scale == "maximum" else maps - maps.amin((1, 2), keepdim=True)
    maps = maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    return x * maps[:, None].to(x.dtype)


def average_drop(score_explanation: Tensor, score_image: Tensor) -> Tensor:
    """max(0, p(x) - p(e))/p(x) (B,), from 0 to 1 (Chattopadhyay et al., Grad-CAM++, WACV 2018, section 4).

    Args:
        score_explanation: p(e) (B,), the authors' ``o``, for the image times the map, see `highlight`.
        score_image: p(x) (B,), the authors' ``y``.

    Returns:
        Shares; the authors report their mean in percent.

    Raises:
        InputError: if shapes do not match.
    """
    return 1 - score_preserved(score_explanation, score_image).clamp(max=1)


def average_increase(score_explanation: Tensor, score_image: Tensor) -> Tensor:
    """1 if the explanation's score is higher than the image's, otherwise 0 (B,); arguments as in `average_drop`."""
    check_batch(score_explanation=score_explanation, score_image=score_image)
    return (score_explanation > score_image).float()
