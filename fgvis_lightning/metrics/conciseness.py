"""Conciseness-preciseness scores: the share of the score that an explanation keeps per share of the image it shows.

Kolek et al., Explaining Image Classifiers with Multiscale Directional Image Representation (ShearletX), CVPR 2023:
CP = retained class probability / retained image information. Both fall as masks get smaller; a score above 1 means that
the shown parts matter more than the hidden parts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fgvis_lightning.errors import InputError, one_of
from fgvis_lightning.metrics.checks import shape
from fgvis_lightning.metrics.masks import score_preserved


def _entropy(values: Tensor) -> Tensor:
    """Entropy of the entries' shares (B,N) in the sum of squares, in nats."""
    energies = values.square()
    shares = energies / energies.sum(1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum(1)


INFORMATION: dict[str, Callable[[Tensor], Tensor]] = {"entropy": _entropy, "l1": lambda values: values.abs().sum(1)}
"""Measures of the information of images (B,N), (B,) ≥ 0."""


def conciseness_preciseness(
    score_explanation: Tensor, score_image: Tensor, explanations: Tensor, images: Tensor, information: str = "entropy"
) -> Tensor:
    """CP score of each explanation (B,) ≥ 0, high if a small part of the image keeps much of the score.

    The authors' CP-Entropy and CP-ℓ1 use the coefficients that a method masks, wavelets or shearlets. Here, as in their
    CP-ℓ1 Pixel, pixels are used for all kinds of masks. As in the authors' code (github.com/skmda37/ShearletX,
    ``code/scatterplot.py``, which adds 1e-7 in the logarithm), the entropy is that of the squared entries as shares of
    their sum. That code takes the probability of the explanation's own top class; here, p is the target's.

    Args:
        score_explanation: p(e) (B,).
        score_image: p(x) (B,).
        explanations: explanations e (B,C,H,W). Removed parts must be zero, since only zero has no information: use
            normalized images for FGVis, and images in [0,1] for masks that leave black, like the authors'.
        images: images x (B,C,H,W) in the same space.
        information: ``entropy`` or ``l1``.

    Returns:
        p(e)/p(x) divided by e's share of the image's information; NaN if e has no information.

    Raises:
        InputError: if shapes do not match, or if ``information`` is unknown.
    """
    one_of(INFORMATION, information=information)
    if explanations.ndim < 2 or explanations.shape != images.shape or len(images) != len(score_image):
        raise InputError(
            f"Expected explanations and images of one shape and a score for each, but got {shape(explanations)}, "
            f"{shape(images)} and {shape(score_image)}."
        )
    measure = INFORMATION[information]
    shown, whole = (measure(pictures.detach().float().flatten(1)) for pictures in (explanations, images))
    retained = shown / whole.clamp(min=torch.finfo(whole.dtype).tiny)
    kept = score_preserved(score_explanation, score_image).to(retained.device)
    return torch.where(retained > 0, kept / retained, torch.nan)
