"""Images with any number of channels: arrays, and bands or pages of TIFF files.

They may have more than 8 bits: 16-bit, signed, and floating-point values, which are scaled by black and white levels.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fgvis_lightning.errors import InputError

ARRAYS = frozenset({".npy", ".npz"})
TIFF = frozenset({".tif", ".tiff"})
WHITE = 65535  # of integers with more than 8 bits

Levels = tuple[float, float] | None
"""Values of black and white; None for the rule of `to_unit`."""


def is_array(path: str) -> bool:
    """Whether a file contains a NumPy array, according to its name."""
    return Path(path).suffix.lower() in ARRAYS


def read_array(path: str) -> NDArray[Any]:
    """Read the single array of an ``.npy`` or ``.npz`` file, or the bands or pages of a TIFF file.

    Raises:
        InputError: if there are several arrays, or if the array has objects, is too large, or is damaged.
    """
    most = 16 * (Image.MAX_IMAGE_PIXELS or 1e9)
    try:
        if Path(path).suffix.lower() in TIFF:
            array = _read_tiff(path, most)
        else:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                if len(array.files) != 1:
                    raise InputError(f"Expected one array in {path}, but it has {', '.join(array.files) or 'none'}.")
                array = array[array.files[0]]
        if array.size > most:
            raise InputError(f"Expected at most {most:.3g} values, but {path} has {array.size:.3g}. Scale it down.")
        return np.array(array)
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"Expected an image, but {path} cannot be decoded: {error}") from error


def _read_tiff(path: str, most: float) -> NDArray[Any]:
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise InputError(
            f"Expected the package tifffile to read the bands of {path}, but it is not installed. Install it "
            f'with: pip install "fgvis-lightning[bands]"'
        ) from error
    try:
        with tifffile.TiffFile(path) as file:
            first = file.series[0]
            alike = [page for page in file.pages if page.shape == first.shape] if len(first.shape) == 2 else []
            if math.prod(first.shape) * max(1, len(alike)) > most:
                raise InputError(f"Expected at most {most:.3g} values, but {path} has more. Scale it down.")
            return np.stack([page.asarray() for page in alike]) if len(alike) > 1 else np.asarray(first.asarray())
    except (tifffile.TiffFileError, IndexError) as error:
        raise InputError(f"Expected an image, but {path} cannot be decoded: {error}") from error


def as_channels(array: NDArray[Any], count: int, levels: Levels, name: str) -> Tensor:
    """Convert an array (H,W), (C,H,W) or (H,W,C) of ``count`` channels to an image (C,H,W) in [0,1], see `to_unit`.

    Raises:
        InputError: if the shape is invalid, or if the values need levels.
    """
    shape = "×".join(map(str, array.shape))
    array = array[None] if array.ndim == 2 else array
    first, last = array.ndim == 3 and array.shape[0] == count, array.ndim == 3 and array.shape[-1] == count
    if first == last or not array.size:
        both = " in both its first and last dimension. Convert it to (C,H,W) with another height" if first else ""
        raise InputError(f"Expected an array (C,H,W) or (H,W,C) of {count} channels, but {name} has {shape}{both}.")
    values = array if first else np.moveaxis(array, -1, 0)
    return torch.from_numpy(np.ascontiguousarray(to_unit(values, levels, name), dtype=np.float32))


def to_unit(gray: NDArray[np.generic], levels: Levels, name: str) -> NDArray[np.float64]:
    """Scale values of any shape from the levels to [0,1], and clip.

    By default, black and white are 0 and 1 for floating point, 0 and 255 for 8-bit numbers, and 0 and 65535 for other
    integers. Values outside this range, or integers that are all below 4096, as those of 12-bit cameras and scanners,
    are refused, since the file does not tell whether they are dark or have another unit.

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
