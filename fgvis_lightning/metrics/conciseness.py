"""Conciseness-preciseness scores: how much of the score an explanation keeps, for how much of the image it shows.

Kolek et al., Explaining Image Classifiers with Multiscale Directional Image Representation (ShearletX), CVPR 2023:
CP = retained class probability / retained image information. As masks get smaller both fall, so that a score
above 1 says that what is shown matters more than what is not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics.checks import shape
from fgvis_lightning.metrics.masks import score_preserved


def _entropy(values: Tensor) -> Tensor:
    """Of the shares (B,N) that the entries have in the sum of their squares, in nats."""
    energies = values.square()
    shares = energies / energies.sum(1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum(1)


def _l1(values: Tensor) -> Tensor:
    return values.abs().sum(1)


INFORMATION: dict[str, Callable[[Tensor], Tensor]] = {"entropy": _entropy, "l1": _l1}
"""What the information of images (B,N) is measured by, (B,) ≥ 0."""


def check_information(information: str) -> None:
    """Check the name of a measure of information.

    Raises:
        InputError: if `INFORMATION` has no such name.
    """
    if information not in INFORMATION:
        raise InputError(f"Expected information to be one of {', '.join(INFORMATION)}, but got {information!r}.")


def conciseness_preciseness(
    score_explanation: Tensor, score_image: Tensor, explanations: Tensor, images: Tensor, information: str = "entropy"
) -> Tensor:
    """CP score of each explanation (B,) ≥ 0, high where little of the image keeps much of the score.

    The authors' CP-Entropy and CP-ℓ1 take the coefficients in which a method masks, wavelets or shearlets; here, as
    their CP-ℓ1 Pixel, it is always the pixels, so that masks of all kinds are measured alike. The entropy is that of
    the squared entries, as shares of their sum, as in the authors' code (github.com/skmda37/ShearletX,
    ``code/scatterplot.py``), which adds 1e-7 in the logarithm.

    Args:
        score_explanation: p(e) (B,).
        score_image: p(x) (B,).
        explanations: (B,C,H,W), e. Zero is to be what stands for nothing, for only that has no information: for FGVis
            normalized images, for masks that leave black images in [0,1], as the authors' do.
        images: (B,C,H,W), x, in the same space.
        information: ``entropy`` or ``l1``.

    Returns:
        p(e)/p(x) divided by the share of the image's information that e has; NaN where it has none.

    Raises:
        InputError: shapes that do not fit, unknown ``information``.
    """
    check_information(information)
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
