"""Black and white levels of images with more than 8 bits: 16-bit, signed, and floating-point values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fgvis_lightning.errors import InputError

Levels = tuple[float, float] | None
WHITE = 65535


def to_unit(gray: NDArray[np.generic], levels: Levels, name: str) -> NDArray[np.float64]:
    """Scale values of any shape from the levels to [0,1], and clip.

    By default, black and white are 0 and 1 for floating point, 0 and 255 for 8-bit numbers, and 0 and 65535 for other
    integers. Values outside this range, or integers that are all below 4096, as those of 12-bit cameras and scanners,
    are refused, since the file does not tell whether they are dark or have another unit.

    Args:
        gray: values of any numeric type.
        levels: values of black and white.
        name: name of the image, for messages.

    Raises:
        InputError: if values are not finite, or if they need levels.
    """
    if not np.issubdtype(gray.dtype, np.number) or np.iscomplexobj(gray):
        raise InputError(f"Expected numbers, but {name} has values of type {gray.dtype}.")
    if not gray.size or not np.isfinite(gray).all():
        raise InputError(f"Expected finite values, but {name} has NaN, infinity or no values.")
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
                f"but it has {low:g} to {high:g}. Set the values of black and white, e.g. --model.classifier.levels "
                f"{f'[0, {4095 if whole else 255}]' if low >= 0 else f'[{low:g}, {high:g}]'}."
            )
    return np.clip((values - levels[0]) / (levels[1] - levels[0]), 0, 1)


def to_8_bits(gray: NDArray[np.generic], levels: Levels, name: str) -> NDArray[np.uint8]:
    """Scale values like `to_unit`, but to 0 to 255."""
    return np.asarray(to_unit(gray, levels, name) * 255 + 0.5, dtype=np.uint8)
