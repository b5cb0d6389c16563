"""The image of a stored explanation, read again from its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.preprocessing import Preprocessing
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.folder import IMAGE

SETTINGS = ("size", "resize", "interpolation", "mean", "std")

LARGEST = 16
"""Maximum size of an image before the crop, in multiples of the explanation's size."""


def stored_preprocessing(settings: Mapping[str, Any], size: tuple[int, ...]) -> Preprocessing:
    """The preprocessing in a file's settings; if unknown, ImageNet's for the size of the mask."""
    given: dict[str, Any]
    try:
        given = {name: _tuple(settings[name]) for name in SETTINGS}
        levels = tuple(settings["levels"]) if settings.get("levels") else None
        known = Preprocessing(**given, levels=levels, channels=settings.get("channels"))
        resize = known.resize if isinstance(known.resize, int) else max(known.resize)
        return known if resize <= LARGEST * max(size) else Preprocessing(size=size, resize=min(size))
    except (KeyError, ValueError, TypeError):
        return Preprocessing(size=size, resize=min(size))


def explained_image(metadata: Mapping[str, str], preprocessing: Preprocessing) -> Tensor:
    """The image (C,H,W) in [0,1] explained by a file with these metadata.

    Raises:
        InputError: if it cannot be read, or has changed.
    """
    path, sha256 = metadata["image"], metadata.get(IMAGE)
    return as_float(load_image(path, preprocessing, upscale=True, sha256=sha256))


def with_image(explanation: Explanation, folder: str | Path | None = None) -> Explanation:
    """An explanation from a file together with its image, for `draw`, ``overlay`` and ``to_pil``.

    Args:
        explanation: result of `load_explanation` (B = 1).
        folder: where the image file is now, if it is not where it was explained.

    Raises:
        InputError: if the explanation is not from a file, or if the image is missing or has changed.
    """
    metadata = dict(explanation.metadata)
    if not {"image", IMAGE} <= metadata.keys():
        raise InputError("Expected an explanation of an image file, from load_explanation, but got another one.")
    if folder is not None:
        metadata["image"] = str(Path(folder) / Path(metadata["image"]).name)
    size = tuple(explanation.mask.shape[2:])
    preprocessing = stored_preprocessing(json.loads(metadata.get("settings", "{}")), size)
    image = explained_image(metadata, preprocessing)
    background = preprocessing.background().to(image)
    return replace(explanation, images=image[None], background=background)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
