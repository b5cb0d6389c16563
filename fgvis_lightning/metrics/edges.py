"""Hallucination score: edges of an explanation that are not in its image.

Kolek et al., Explaining Image Classifiers with Multiscale Directional Image Representation (ShearletX), CVPR 2023: the
number of edges of the explanation that are not edges of the image, divided by the number of edges of the image. Masks
can create such edges, and a network may then see objects that are not in the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics.checks import shape
from fgvis_lightning.networks.channels import LUMA


def new_edges(images: Tensor, explanations: Tensor, threshold: float = 0.05) -> Tensor:
    """Edges of each explanation that are not on an edge of its image, relative to the edges of the image (B,) ≥ 0.

    The score is 0 if the explanation has no new edges. Edges are counted in pixels. An edge of the explanation is on an
    edge of the image if the image has an edge among the 3 × 3 pixels around it, as in the authors' code
    (github.com/skmda37/ShearletX, ``code/scatterplot.py``). Here, an edge is a pixel of the gray picture (weights of
    ITU-R BT.601) whose gradient is longer than the threshold. The gradient is Sobel's divided by 4, so that it equals
    the height of a step, and the border is repeated. Values cannot be compared with those of the authors' code, which
    uses the mean of the channels, an edge detector based on shearlets (or, by default, Sobel's with a threshold that
    corresponds to 0.2 here), and, for masks of pixels, wavelets and shearlets, explanations divided by their largest
    value.

    Args:
        images: images (B,C,H,W) in [0,1], not normalized; unless there are three channels, gray is their mean.
        explanations: explanations e as pictures (B,C,H,W) in [0,1].
        threshold: threshold of an edge's gradient, in [0,1].

    Returns:
        Scores (B,), more than 1 if there are more new edges than old ones. An image without edges counts as one edge.

    Raises:
        InputError: if shapes do not match, or if values are not in [0,1].
    """
    if explanations.shape != images.shape:
        raise InputError(
            f"Expected images and explanations of one shape, but got {shape(images)} and {shape(explanations)}."
        )
    there = _edges(_gray("images", images), threshold)
    shown = _edges(_gray("explanations", explanations.to(images.device)), threshold)
    near = F.max_pool2d(there.float()[:, None], 3, stride=1, padding=1)[:, 0] > 0
    return (shown & ~near).flatten(1).sum(1) / there.flatten(1).sum(1).clamp(min=1)


def _gray(name: str, pictures: Tensor) -> Tensor:
    """Brightness (B,H,W) in [0,1]."""
    if pictures.ndim != 4 or not pictures.numel():
        raise InputError(f"Expected {name} to be (B,C,H,W), but got {shape(pictures)}.")
    low, high = pictures.min().item(), pictures.max().item()
    if not 0 <= low <= high <= 1:  # NaN included
        raise InputError(
            f"Expected {name} in [0,1], but got values from {low:.3g} to {high:.3g}. Denormalize and clamp them."
        )
    pictures = pictures.detach() if pictures.dtype == torch.float64 else pictures.detach().float()
    if pictures.shape[1] != 3:
        return pictures.mean(1)
    return (pictures * pictures.new_tensor(LUMA)[:, None, None]).sum(1)


def _edges(gray: Tensor, threshold: float) -> Tensor:
    """Mark the pixels (B,H,W) whose gradient is longer than the threshold."""
    padded = F.pad(gray, (1, 1, 1, 1), "replicate")
    right, down = padded[:, :, 2:] - padded[:, :, :-2], padded[:, 2:] - padded[:, :-2]
    right = (right[:, :-2] + 2 * right[:, 1:-1] + right[:, 2:]) / 4
    down = (down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]) / 4
    return torch.hypot(right, down) > threshold
