"""The four games of FGVis: objectives to minimize over the mask (Wagner et al., CVPR 2019, section 3.1, eq. 1 to 6).

An explanation is ``e = r + m (x - r)``, with a mask ``m`` in [0,1] that has one value for each pixel and color channel,
and a reference image ``r``. Preservation and generation search for the smallest mask that keeps the class; deletion and
repression for the smallest removal that loses it. The games of a pair have the same objective but different starts: the
whole image, or the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as tvf
from torch import Tensor


@dataclass(frozen=True)
class Game:
    """One game.

    Attributes:
        name: name of the game in the paper.
        start: initial value of the mask, 1 (the image) or 0 (the reference).
        keeps: whether the game keeps the class (true) or loses it (false).
    """

    name: str
    start: float
    keeps: bool

    def loss(self, score: Tensor, mask: Tensor, lam: float | Tensor) -> Tensor:
        """The objective of each image, to be minimized: λ‖m‖₁ - score, or its negative.

        Args:
            score: CNN_c(e), the target class's probability or log-probability (B,).
            mask: (B,3,H,W) in [0,1].
            lam: λ ≥ 0, one value for all images or (B,).

        Returns:
            Loss of each image (B,); ‖·‖₁ is the sum over all 3HW entries. Sum the losses over the batch and do not
            average them, so that the batch size does not change an explanation.
        """
        objective = lam * mask.flatten(1).sum(1) - score  # m ≥ 0, so abs() is not needed; its gradient at 0 would be 0
        return objective if self.keeps else -objective

    def evidence(self, mask: Tensor) -> Tensor:
        """Evidence of a mask: m if the game keeps the class, 1 - m if it loses it."""
        return mask if self.keeps else 1 - mask

    def size(self, mask: Tensor) -> Tensor:
        """Mean evidence of each image (B,), from 0 (nothing) to 1 (the whole image); λ keeps it small."""
        return self.evidence(mask).flatten(1).mean(1)


GAMES = {
    game.name: game
    for game in (
        Game("preservation", start=1.0, keeps=True),
        Game("deletion", start=1.0, keeps=False),
        Game("generation", start=0.0, keeps=True),
        Game("repression", start=0.0, keeps=False),
    )
}


def blend(x: Tensor, mask: Tensor, reference: Tensor | None) -> Tensor:
    """``e = r + m (x - r)``, an image for the network.

    Args:
        x: normalized images (B,3,H,W).
        mask: (B,3,H,W) in [0,1]; 1 gives x and 0 gives r, bit for bit.
        reference: r, (B,3,H,W), normalized; None for zero.

    Returns:
        e, (B,3,H,W).
    """
    # lerp starts from the nearer end, so it is exact at both ends.
    return mask * x if reference is None else torch.lerp(reference, x, mask)


def of_rows(values: Tensor, like: Tensor) -> Tensor:
    """Values of the rows (B,), viewed as (B,1,…,1) with the number of dimensions of ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def divide_by_largest(gradient: Tensor) -> None:
    """Divide the gradient of each mask (B,…) by its largest absolute value in place, unless that is 0.

    NaN, as from the root of 0, becomes 0, and infinity the largest finite number.
    """
    gradient.nan_to_num_(nan=0.0)
    largest = of_rows(gradient.abs().flatten(1).amax(1), gradient)
    gradient /= torch.where(largest > 0, largest, 1)


def gaussian(e: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise like ``e`` (B,3,H,W); each image has its own generator."""
    draw = torch.empty_like(e)
    for image, generator in zip(draw, generators, strict=True):
        image.copy_(torch.randn(image.shape, generator=generator, device=e.device, dtype=e.dtype))
    return draw


# --- references: (normalized images (B,3,H,W), normalized black (3,1,1), generator) → (B,3,H,W) or None ---


def zero(x: Tensor, black: Tensor, generator: torch.Generator) -> None:
    """The data set's mean color, zero in normalized space."""


def blurred(x: Tensor, black: Tensor, generator: torch.Generator) -> Tensor:
    """The image after a Gaussian blur of σ = 10 pixels at size 224 (Fong and Vedaldi, ICCV 2017, section 4.1).

    σ is scaled to the shorter side of other images, and the kernel reaches 3 σ. Signals and volumes are blurred along
    each dimension by the same share of its length.
    """
    if x.ndim != 4:
        for dim in range(2, x.ndim):
            rows = x.movedim(dim, -1)
            sigma = 10 * rows.shape[-1] / 224
            kernel = 2 * min(int(3 * sigma), (rows.shape[-1] - 1) // 2) + 1
            smooth = tvf.gaussian_blur(rows.reshape(1, -1, 1, rows.shape[-1]), [kernel, 1], [max(sigma, 0.1)] * 2)
            x = smooth.view(rows.shape).movedim(-1, dim)
        return x
    sigma = 10 * min(x.shape[-2:]) / 224
    kernel = 2 * min(int(3 * sigma), (min(x.shape[-2:]) - 1) // 2) + 1
    return tvf.gaussian_blur(x, [kernel, kernel], [max(sigma, 0.1)] * 2)


def noise(x: Tensor, black: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise with the data set's mean and standard deviation, the same for every image."""
    draw = torch.randn(x.shape[1:], generator=generator, device=generator.device)
    return torch.empty_like(x).copy_(draw.expand_as(x))


def black(x: Tensor, black: Tensor, generator: torch.Generator) -> Tensor:
    """A black image, normalized."""
    return torch.empty_like(x).copy_(black.expand_as(x))


Reference = Callable[[Tensor, Tensor, torch.Generator], Tensor | None]
REFERENCES: dict[str, Reference] = {f.__name__: f for f in (zero, blurred, noise, black)}


# --- scores: (logits (B,K), targets (B,)) → (B,) ---


def probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax probability of the target class, 0 to 1."""
    return log_probability(logits, targets).exp()


def log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of the target class (softmax), the negative cross-entropy."""
    return logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)


Score = Callable[[Tensor, Tensor], Tensor]
SCORES: dict[str, Score] = {f.__name__: f for f in (probability, log_probability)}


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """Log p/(1 - p) of the target class (B,), exact even if p is too close to 0 or 1 for its data type."""
    own = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return own.squeeze(1) - others.logsumexp(1)
