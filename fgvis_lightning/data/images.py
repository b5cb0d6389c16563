"""Image files → tensors, by a network's preprocessing."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from fgvis_lightning.data.arrays import TIFF, Levels, as_channels, is_array, read_array, to_unit
from fgvis_lightning.data.photos import FORMATS
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.preprocessing import Preprocessing

Picture = TypeVar("Picture", Image.Image, Tensor)


def load_image(path: str, preprocessing: Preprocessing, *, upscale: bool = False, sha256: str | None = None) -> Tensor:
    """Load an image file (C,H,W) with the network's channels, resized and center-cropped to its input.

    Any format that Pillow opens becomes 8-bit gray or RGB, rotated by its EXIF orientation, with transparent parts in
    white. NumPy arrays (``.npy`` and ``.npz``) and files whose bands or pages are channels have values in [0,1]. This
    function is thread-safe.

    Args:
        path: the file.
        preprocessing: preprocessing of the network.
        upscale: whether the image may be smaller than half of the network's input.
        sha256: expected `content` of the file; None for any content.

    Raises:
        InputError: if the file is missing, unreadable, not an image, damaged, too large, too small, or has another
            content than ``sha256``.
    """
    opened = _opened(path, preprocessing)
    if isinstance(opened, Tensor):
        image = _fitted(opened, preprocessing, path, upscale)
    else:
        image = prepare(opened, preprocessing, path, upscale=upscale)
    if sha256 is not None and content(path) != sha256:
        raise InputError(
            f"Expected the image that was explained, but {path} has changed. Restore the original image, or explain "
            f"the new one."
        )
    return image


def upright_size(path: str, preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width of an image file in its own pixels, rotated by its EXIF orientation.

    Raises:
        InputError: see `load_image`.
    """
    height, width = tvf.get_size(_opened(path, preprocessing))
    return height, width


def carried(mask: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize and center-crop a mask of an image's pixels like the image itself.

    A pixel of the input is marked if its center lies in a marked pixel of the image.

    Args:
        mask: booleans with the image's own height and width, see `upright_size`.
        preprocessing: preprocessing of the network.

    Returns:
        Booleans with the input's height and width.
    """
    nearest = replace(preprocessing, interpolation=InterpolationMode.NEAREST_EXACT.value)
    return _fitted(mask[None].float(), nearest, "the mask", upscale=True)[0] > 0


def as_float(images: Tensor) -> Tensor:
    """Images in [0,1], from 8-bit images or images in [0,1]."""
    return images if images.is_floating_point() else images / 255


def content(path: str) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits, which identifies an image.

    Raises:
        InputError: if the file cannot be read.
    """
    try:
        _check_regular(path)
        with open(path, "rb") as file:  # noqa: PTH123, a million times
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"Expected an image, but {path} cannot be read: {error.strerror}.") from error


def prepare(image: Image.Image, preprocessing: Preprocessing, name: str, *, upscale: bool = False) -> Tensor:
    """Convert a PIL image of any mode to the network's channels (C,H,W) and size, as `load_image` does.

    Raises:
        InputError: if the image is too small, or has other channels.
    """
    if preprocessing.chosen_channels == "all":
        array = as_channels(np.asarray(ImageOps.exif_transpose(image)), preprocessing.count, preprocessing.levels, name)
        return _fitted(array, preprocessing, name, upscale)
    image = _as_rgb(image, preprocessing.levels, name)
    gray = preprocessing.chosen_channels == "gray"
    fitted = tvf.pil_to_tensor(_fitted(image.convert("L") if gray else image, preprocessing, name, upscale))
    return fitted.expand(preprocessing.count, -1, -1).contiguous()


def _fitted(image: Picture, preprocessing: Preprocessing, name: str, upscale: bool) -> Picture:
    """Resize and center-crop an image."""
    if len(preprocessing.size) != 2:
        raise InputError(f"Expected a size of height and width for {name}, but got {preprocessing.size}.")
    height, width = preprocessing.size
    own_height, own_width = tvf.get_size(image)
    if not upscale and (2 * own_height < height or 2 * own_width < width):
        raise InputError(
            f"Expected an image of at least half the network's input of {height}×{width} pixels, but {name} has "
            f"{own_height}×{own_width}. To enlarge such images, set --data.upscale true. If the "
            f"network takes smaller ones, set --model.classifier.size (in Python, size)."
        )
    resize = [preprocessing.resize] if isinstance(preprocessing.resize, int) else list(preprocessing.resize)
    mode = InterpolationMode(preprocessing.interpolation)
    resized: Picture = tvf.resize(image, resize, mode, antialias=True)
    new_height, new_width = tvf.get_size(resized)
    if new_height < height or new_width < width:  # a crop with another aspect ratio must be covered
        scale = max(height / own_height, width / own_width)
        covering = [max(height, round(scale * own_height)), max(width, round(scale * own_width))]
        resized = tvf.resize(image, covering, mode, antialias=True)
    cropped: Picture = tvf.center_crop(resized, [height, width])
    return cropped.clamp(0, 1) if isinstance(cropped, Tensor) else cropped  # bicubic interpolation overshoots


def _opened(path: str, preprocessing: Preprocessing) -> Image.Image | Tensor:
    """A file in RGB; or its bands, pages or array (C,H,W) in [0,1]."""
    if not is_array(path) and preprocessing.chosen_channels != "all":
        return _decode(path, preprocessing.levels)
    if is_array(path) or Path(path).suffix.lower() in TIFF:
        _check_regular(path)
        array = read_array(path)
    else:
        array = np.asarray(_decode(path, preprocessing.levels, as_it_is=True))
    gray = preprocessing.chosen_channels == "gray" and array.ndim == 2
    image = as_channels(array, 1 if gray else preprocessing.count, preprocessing.levels, path)
    return image.expand(preprocessing.count, -1, -1)


def _decode(path: str, levels: Levels, as_it_is: bool = False) -> Image.Image:
    """Decode any image file, upright, and in RGB unless ``as_it_is``."""
    try:
        _check_regular(path)
        with Image.open(path, formats=FORMATS) as file:
            # Above this limit Pillow only warns; above twice the limit it refuses. Warnings cannot be used here: their
            # filters belong to the whole process, so a thread must not change them.
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and file.width * file.height > limit:
                raise Image.DecompressionBombError(f"{file.height}×{file.width} pixels.")
            return ImageOps.exif_transpose(file) if as_it_is else _as_rgb(file, levels, path)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"Expected an image, but Pillow does not recognize the format of {path}.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"Expected an image of at most {(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.3g} million pixels, Pillow's limit, "
            f"but {path} is larger: {error} Scale it down."
        ) from error
    except Exception as error:  # Pillow's plugins raise many kinds of errors
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"Expected an image, but {path} cannot be read: {error.strerror}.") from error
        reason = str(error) or type(error).__name__
        raise InputError(f"Expected an image, but {path} cannot be decoded: {reason}") from error


def _check_regular(path: str) -> None:
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116, a million times
    except FileNotFoundError as error:
        raise InputError(f"Expected an image, but the file {path} does not exist.") from error
    except OSError as error:
        raise InputError(f"Expected an image, but {path} cannot be read: {error.strerror}.") from error
    if not regular:
        raise InputError(f"Expected an image, but {path} is not a regular file.")


def _as_rgb(file: Image.Image, levels: Levels, name: str) -> Image.Image:
    """Convert an image to upright RGB, with transparent parts in white."""
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith(("I", "F")):  # Pillow's own conversion would clip
        gray = to_unit(np.asarray(image), levels, name) * 255 + 0.5
        image = Image.fromarray(gray.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
