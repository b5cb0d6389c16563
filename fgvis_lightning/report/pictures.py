"""One item → the pictures of its view, as bytes of PNG and JPEG files.

The mask is stored pixel by pixel as an 8-bit PNG, divided by its largest value. The image is the network's input, as
JPEG; the page computes the explanation from both.
"""

from __future__ import annotations

import os
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from fgvis_lightning.data.explained import stored_preprocessing
from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.errors import InputError
from fgvis_lightning.names import printable
from fgvis_lightning.networks.preprocessing import Preprocessing, channel_names
from fgvis_lightning.report.gather import Entry
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.figures import as_rgb, brightened, brightest, heat, on_dimmed, state_of, triple
from fgvis_lightning.results.folder import IMAGE
from fgvis_lightning.results.load import load_item
from fgvis_lightning.results.notebook import as_pil

THUMBNAIL = 160  # height of a thumbnail, and width of each of its two pictures
LARGE = 320  # the same, if there are few items
WIDEST = 2400  # maximum width of figures; wider figures are scaled down
SMALL = 300_000  # size in bytes up to which a figure stays unchanged


def make_pictures(entry: Entry, side: int = THUMBNAIL) -> tuple[bytes, dict[str, Any]]:
    """The pictures of an item with an explanation file.

    Args:
        entry: the item.
        side: maximum height of the thumbnail; no picture is enlarged.

    Returns:
        The thumbnail, image and overlay side by side, as JPEG (the mask if the image is missing); and data of the
        item's view with pictures as data URLs, or None: ``problem``, the reason if the image is missing; ``image``, the
        network's input, as JPEG; for a mask, ``evidence`` by color channel, divided by ``scale``, its largest value, as
        PNG; for a map, ``heat``, its colors from black to bright, as PNG, and ``shown``, the image multiplied by it, as
        JPEG; ``panel`` of the run, as JPEG, if the image is missing; ``top``, the evidence at which a brightened mask
        becomes white, 0 without evidence; ``state``, words for evidence that is the whole image or nothing; names of
        the ``channels`` shown as red, green and blue; ``means`` of the evidence in each channel, by name, empty for a
        single channel, whose mean is that of all evidence; ``background``, color of the explanation without evidence:
        red, green and blue in [0,1].

    Raises:
        InputError: the file is damaged.
    """
    item = load_item(entry.path)
    size = item.saliency().shape[-2:]
    side = min(side, max(size))
    preprocessing = stored_preprocessing(entry.settings, (int(size[0]), int(size[1])))
    image, problem = None, f"{entry.image} does not get the size of the explanation."
    if preprocessing.size == tuple(size):  # otherwise a stranger's file could take all memory
        image, problem = _image(entry, preprocessing)
    bands = item.bands if isinstance(item, Explanation) else None
    image = None if image is None else as_rgb(image, bands)
    view: dict[str, Any] = {
        "problem": problem,
        "image": None if image is None else url(_jpeg(image, 92)),
        **dict.fromkeys(("evidence", "heat", "shown")),
        "panel": _panel(entry.path.parent.parent / "panels" / f"{entry.path.stem}.png") if image is None else None,
        **{"scale": 1.0, "top": 1.0, "state": "", "channels": (), "means": {}, "background": ()},
    }
    if isinstance(item, Explanation):
        mask = item.evidence[0].nan_to_num()
        evidence, names = as_rgb(mask, bands), channel_names(len(mask), preprocessing.channels)
        view["scale"] = scale = float(evidence.max()) or 1.0
        view["evidence"] = url(_png(evidence / scale))
        view["top"] = float(brightest(evidence)) if evidence.any() else 0.0
        view["state"] = state_of(mask)
        view["channels"] = [names[place] for place in triple(len(names), bands)]
        view["means"] = evidence_by_channel(mask, preprocessing.channels)
        view["background"] = as_rgb(preprocessing.background(), bands).flatten().tolist()
        shown = brightened(evidence if image is None else evidence.mean(0, keepdim=True))
        return _thumbnail(image, shown, side), view
    saliency = item.saliency()[0].float().nan_to_num()
    colors, bright = heat(saliency), brightened(saliency)
    view["heat"] = url(_png(colors))
    view["shown"] = None if image is None else url(_jpeg(image * bright, 92))
    return _thumbnail(image, colors if image is None else bright[None], side), view


def evidence_by_channel(evidence: Tensor, channels: str | None) -> dict[str, float]:
    """Mean evidence of each channel of (C,H,W), by name; empty for a single channel."""
    names = channel_names(len(evidence), channels)  # for the mask: RGB is assumed for a file without names
    return dict(zip(names, evidence.flatten(1).mean(1).tolist(), strict=True)) if len(evidence) > 1 else {}


def _image(entry: Entry, preprocessing: Preprocessing) -> tuple[Tensor | None, str]:
    """The network's input (C,H,W) in [0,1], or the reason why it can no longer be read.

    A stranger's file could name any file of this machine. Therefore the image must have the explained content, or must
    be in the location that the user gave. A relative path starts at the folder in which the run was started: the
    current one, or else probably a folder above the results, see `_above`.
    """
    if not entry.image:
        return None, "Expected the path of an image, but the file does not contain it."
    sha256 = entry.metadata.get(IMAGE)
    if sha256 is None and not entry.elsewhere:
        return None, f"Expected a checksum of {entry.image}, but the file has none. Give its place with --images."
    problem = ""
    for path in entry.elsewhere if sha256 is None else (entry.image, *entry.elsewhere, *_above(entry)):
        try:
            return as_float(load_image(path, preprocessing, upscale=True, sha256=sha256)), ""
        except (InputError, ValueError) as error:
            problem = problem or printable(str(error))
    return None, problem


def _above(entry: Entry) -> list[str]:
    """The files that a relative path of an image names from each folder above the explanation, nearest first."""
    if Path(entry.image).is_absolute():
        return []
    named = (os.path.join(above, entry.image) for above in entry.path.resolve().parents)  # noqa: PTH118
    return [path for path in named if os.path.isfile(path)]  # noqa: PTH113 - a stranger's path may be too long


def _thumbnail(image: Tensor | None, evidence: Tensor, side: int) -> bytes:
    small = F.adaptive_max_pool2d(evidence[None], side)[0]  # a mean would lose single pixels
    if image is None:
        return _jpeg(small, 82)
    photo = tvf.resize(image, [side, side], antialias=True).clamp(0, 1)
    return _jpeg(torch.cat([photo, on_dimmed(photo, brightened(small.mean(0)))], 2), 82)


def _png(picture: Tensor) -> bytes:
    file = BytesIO()
    as_pil(picture).save(file, "PNG", optimize=True)
    return file.getvalue()


def _jpeg(picture: Tensor | Image.Image, quality: int) -> bytes:
    file = BytesIO()
    pil = as_pil(picture) if isinstance(picture, Tensor) else picture
    pil.save(file, "JPEG", quality=quality, subsampling=0 if quality > 90 else 2)
    return file.getvalue()


def _panel(path: Path) -> str | None:
    try:
        with Image.open(path) as file:
            return url(_jpeg(file.convert("RGB"), 85))
    except (OSError, Image.DecompressionBombError):
        return None


def figure_url(path: Path) -> tuple[str, int, int] | None:
    """A figure as a data URL, with its width and height; None if the file cannot be read."""
    try:
        data = path.read_bytes()
        with Image.open(BytesIO(data)) as file:
            width, height = file.size
            if len(data) <= SMALL and width <= WIDEST:
                return url(data), width, height
            scale = min(1.0, WIDEST / width)
            smaller = file.convert("RGB").resize(
                (round(scale * width), round(scale * height)), Image.Resampling.LANCZOS
            )
            return url(_jpeg(smaller, 88)), *smaller.size
    except (OSError, Image.DecompressionBombError):
        return None


def url(data: bytes) -> str:
    """Bytes of a PNG or JPEG file as a data URL."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{b64encode(data).decode()}"
