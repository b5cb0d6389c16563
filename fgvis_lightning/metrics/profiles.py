"""Profiles: definitions of deletion and insertion curves.

Libraries differ in all of these choices, so numbers are meaningless without them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from fgvis_lightning.errors import InputError, one_of
from fgvis_lightning.metrics.order import TIES


@dataclass(frozen=True)
class Substrate:
    """Replacement of pixels that are not shown.

    Attributes:
        name: description of the substrate.
        make: function of a normalized image (3,H,W) in float32 that returns the substrate, with the same shape.
        kernel: description of the blur's kernel.
    """

    name: str
    make: Callable[[Tensor], Tensor]
    kernel: str = "none"


@dataclass(frozen=True)
class Profile:
    """A definition of deletion and insertion curves, see `fgvis_lightning.metrics.curves`.

    Attributes:
        name: name of the profile in `PROFILES`.
        source: source of the definition, and differences from it.
        deletion: substrate of deleted pixels.
        insertion: substrate of pixels that are not inserted yet.
        rows: size of a step as a number of rows of pixels; the last step may be smaller. Set either this or ``steps``.
        steps: number of equal steps, rounded down to whole pixels.
        tile: side in pixels of squares that are changed as a whole, in the order of their mean; 1 for single pixels.
            Squares are cut off at the right and bottom border.
        relative: whether scores are divided by the score of the clean image.
        area: name of the area in `AREAS`.
        ties: order of pixels or tiles of equal value in `TIES`; in the libraries, it depends on their sort.
        seed: seed of a random order of equal values.
    """

    name: str
    source: str
    deletion: Substrate
    insertion: Substrate
    rows: int | None = None
    steps: int | None = None
    tile: int = 1
    relative: bool = False
    area: str = "trapezoid"
    ties: str = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.steps is None):
            raise InputError(f"Expected either rows or steps, but got rows={self.rows} and steps={self.steps}.")
        for name in ("rows", "steps", "tile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"Expected {name} to be at least 1, but got {value}.")
        if self.rows is not None and self.tile > 1:
            raise InputError(f"Expected steps for tiles, but got rows={self.rows} and tile={self.tile}.")
        one_of(TIES, ties=self.ties)
        one_of(AREAS, area=self.area)

    def counts(self, height: int, width: int) -> Tensor:
        """Number of pixels or tiles changed at each of the S scores (S,), from none to all."""
        if self.rows is not None:
            return (torch.arange(ceil(height / self.rows) + 1) * self.rows * width).clamp(max=height * width)
        steps = self.steps or 1
        return torch.arange(steps + 1) * (ceil(height / self.tile) * ceil(width / self.tile)) // steps

    def describe(self) -> dict[str, str]:
        """Describe the profile with names and values to report with a number."""
        if self.rows is not None:
            step = f"{self.rows} W of the H W pixels, {self.rows / 2.24:.2g} % of an image of 224 by 224"
        else:
            step = (
                f"1/{self.steps} of the {'pixels' if self.tile == 1 else f'tiles of {self.tile} by {self.tile} pixels'}"
            )
        kernels = dict.fromkeys(f"{s.kernel} ({s.name})" for s in (self.deletion, self.insertion) if s.kernel != "none")
        return {
            "profile": self.name,
            "step": step,
            "deletion substrate": self.deletion.name,
            "insertion substrate": self.insertion.name,
            "kernel": ", ".join(kernels) or "none",
            "score": "softmax probability" + (" divided by that of the clean image" if self.relative else ""),
            "class": "the target; the authors take the top class of the clean image",
            "ties": TIES[self.ties] + (f", seed {self.seed}" if self.ties == "random" else ""),
            "normalization": AREAS[self.area][1],
            "source": self.source,
        }


def find_profile(profile: Profile | str) -> Profile:
    """Return a profile, or the one of `PROFILES` with this name.

    Raises:
        InputError: if `PROFILES` has no such name.
    """
    if isinstance(profile, Profile):
        return profile
    one_of(PROFILES, profile=profile)
    return PROFILES[profile]


# --- areas: scores (B,S) → (B,), and the formula in words ---


def _trapezoid(scores: Tensor) -> Tensor:
    return (scores.sum(1) - scores[:, 0] / 2 - scores[:, -1] / 2) / (scores.shape[1] - 1)


AREAS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "trapezoid": (_trapezoid, "(sum - first/2 - last/2)/(n - 1) over n scores"),
    "mean": (lambda scores: scores.mean(1), "sum/n over n scores"),
}


# --- substrates ---


@dataclass(frozen=True)
class Blur:
    """A blur with a kernel that is the outer product of a line with itself.

    It multiplies by a matrix along each axis, which is in full float32 also on a GPU, unlike a convolution.

    Args:
        line: line of the kernel, 2r + 1 weights.
        mirrored: whether the image is mirrored at its outermost pixels; otherwise it is zero beyond the border.
    """

    line: tuple[float, ...]
    mirrored: bool

    def __call__(self, image: Tensor) -> Tensor:
        height, width = (self._along(side).to(image) for side in image.shape[-2:])
        return height @ image @ width.T

    def _along(self, side: int) -> Tensor:
        """Weights (side,side) of all pixels of a line for each pixel."""
        reach = len(self.line) // 2
        taken = torch.arange(side)[:, None] + torch.arange(-reach, reach + 1)
        weights = torch.tensor(self.line).expand(side, -1)
        if self.mirrored:
            period = max(2 * (side - 1), 1)  # several mirror images if the kernel is larger than the image
            taken = taken % period
            taken = torch.minimum(taken, period - taken)
        else:
            weights = weights * ((taken >= 0) & (taken < side))
        return torch.zeros(side, side).scatter_add_(1, taken.clamp(0, side - 1), weights)


def _mean_color(image: Tensor) -> Tensor:
    return image.mean((-2, -1), keepdim=True).expand_as(image)


def _gaussian(sigma: float, reach: int) -> tuple[float, ...]:
    weights = torch.exp(-(torch.arange(-reach, reach + 1).double() ** 2) / (2 * sigma**2))
    return tuple((weights / weights.sum()).tolist())


def _rise_line() -> tuple[float, ...]:
    """A line of RISE's kernel (11,): the result of scipy's Gaussian filter with σ = 5 on a point in an 11×11 square.

    The filter reaches 4 σ, beyond the square, and is reflected at the square's border.
    """
    line = [0.0] * 11
    for offset, weight in enumerate(_gaussian(5, 20), start=-20):
        place = (5 + offset) % 22
        line[min(place, 21 - place)] += weight
    return tuple(line)


ZERO = Substrate("zero in normalized space", torch.zeros_like)
OWN_MEAN = Substrate("the image's own mean color", _mean_color)
RISE_BLUR = Substrate(
    "blurred by 11 by 11",
    Blur(_rise_line(), mirrored=False),
    "11 by 11 of scipy's Gaussian filter, sigma 5, with zero padding",
)
STRONG_BLUR = Substrate(
    "blurred by 51 by 51",
    Blur(_gaussian(50, 25), mirrored=True),
    "51 by 51 Gaussian, sigma 50, mirrored border",
)

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "rise",
            "Petsiuk, Das and Saenko, BMVC 2018; github.com/eclique/RISE, evaluation.py. How pixels of equal value are "
            "ordered they leave to numpy's sort, whose order of those is another on another processor",
            deletion=ZERO,
            insertion=RISE_BLUR,
            rows=8,
        ),
        Profile(
            "group_cam",
            "Zhang, Rao and Yang, arXiv:2103.13859, 2021; github.com/wofmanaf/Group-CAM, ins_del_gc.py",
            deletion=ZERO,
            insertion=STRONG_BLUR,
            rows=8,
        ),
        Profile(
            "xplique",
            "Fel et al., Xplique, 2022; github.com/deel-ai/xplique, xplique/metrics/fidelity.py, defaults of Deletion "
            "and Insertion with activation='softmax'",
            deletion=ZERO,
            insertion=ZERO,
            steps=10,
        ),
        Profile(
            "degradation",
            "after Schulz et al., Restricting the Flow, ICLR 2020; github.com/BioroboticsLab/IBA-paper-code, "
            "evaluate/degradation.py: tiles of 8 by 8, the image's mean color, 100 scores. Insertion minus deletion is "
            "the area between their curves, least and most relevant first. They normalize by the mean scores over the "
            "data set instead of each image's own, and their first step is a single tile, so that the last score comes "
            "before all tiles are changed",
            deletion=OWN_MEAN,
            insertion=OWN_MEAN,
            steps=99,
            tile=8,
            relative=True,
        ),
    )
}
