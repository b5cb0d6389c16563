"""Black and white of images with more than 8 bits: 16-bit, signed, and floating-point values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fgvis_lightning.errors import InputError

Levels = tuple[float, float] | None
WHITE = 65535


def to_unit(gray: NDArray[np.generic], levels: Levels, name: str) -> NDArray[np.float64]:
    """Values of any shape as 0 to 1, what lies outside of the levels clipped.

    Unless they are given, floating point is black at 0 and white at 1, 8-bit numbers at 0 and 255, and other whole
    numbers at 0 and 65535. Values that do not fit these, or that are all below 4096 as those of 12-bit cameras and
    scanners, are refused: the file does not say whether they are dark or in other units.

    Args:
        gray: of any type of numbers.
        levels: values that are black and white.
        name: of the image, for messages.

    Raises:
        InputError: values that are not finite, or that need levels.
    """
    if not np.issubdtype(gray.dtype, np.number) or np.iscomplexobj(gray):
        raise InputError(f"Expected numbers, but {name} has values of type {gray.dtype}.")
    if not gray.size or not np.isfinite(gray).all():
        raise InputError(f"Expected finite values, but {name} has others.")
    if gray.dtype == np.uint8:
        levels = levels or (0, 255)
    values = gray.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if levels is None:
        whole = np.issubdtype(gray.dtype, np.integer)
        levels = (0, WHITE) if whole else (0, 1)
        if low < 0 or high > levels[1] or (whole and 0 < high < 4096):
            raise InputError(
                f"Expected {name} to have values from {levels[0]:g} to {levels[1]:g}{', not all below 4096' * whole}, "
                f"but it has {low:g} to {high:g}. Say which are black and white, e.g. --model.classifier.levels "
                f"{f'[0, {4095 if whole else 255}]' if low >= 0 else f'[{low:g}, {high:g}]'}."
            )
    return np.clip((values - levels[0]) / (levels[1] - levels[0]), 0, 1)


def to_8_bits(gray: NDArray[np.generic], levels: Levels, name: str) -> NDArray[np.uint8]:
    """The same as 0 to 255."""
    return np.asarray(to_unit(gray, levels, name) * 255 + 0.5, dtype=np.uint8)
