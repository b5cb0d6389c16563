"""Explanations in a notebook: panels as PIL images and PNG."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.results.figures import explanation_image, explanation_panel, made_visible, overlay, pixels

if TYPE_CHECKING:
    from fgvis_lightning.results.explanation import Explanation


def draw(
    explanation: Explanation,
    images: Tensor | None = None,
    index: int | None = None,
    name: str | None = None,
    background: Sequence[float] | None = None,
) -> Image.Image:
    """Image, explanation and mask of each item side by side, one item below another, for a notebook.

    The image of an explanation from a file is read again if it is still where it was explained; `with_image` takes the
    folder to which it has moved. For print, ``explanation.save("panel.pdf")``, or ``.svg``, writes lines and text as
    such.

    Args:
        explanation: result of `fgvis_lightning.explain` or `fgvis_lightning.load_explanation`.
        images: the explained images (B,C,H,W) in [0,1]; default: the images in the explanation.
        index: index of a single item to draw; default: all items.
        name: name of the target class; default: the name in the explanation.
        background: color of removed parts in [0,1], the mean of the normalization; default: the explanation's.

    Raises:
        InputError: if the images do not belong to the explanation, if its image file is missing or has changed, or if
            the index is invalid.
    """
    if images is None:
        explanation = with_images(explanation)
    places = range(max(1, len(explanation))) if index is None else [index]
    figures = (figure_of(explanation, place, images, name, background) for place in places)
    panels = [Image.fromarray(pixels(figure)) for figure in figures]
    sheet = Image.new("RGB", (max(one.width for one in panels), sum(one.height for one in panels)), "white")
    top = 0
    for one in panels:
        sheet.paste(one, (0, top))
        top += one.height
    return sheet


def figure_of(
    explanation: Explanation,
    index: int,
    images: Tensor | None = None,
    name: str | None = None,
    background: Sequence[float] | None = None,
) -> Figure:
    """One item's panel as a figure; arguments and errors as in `draw`."""
    image, color = _of(explanation, images, index, background)
    return explanation_panel(explanation, index, image, color, explanation.name(index) if name is None else name)


def evidence_picture(explanation: Explanation, index: int = 0) -> Image.Image:
    """One item's evidence on the background, at the network's own resolution; faint evidence is brightened.

    Raises:
        InputError: if the explanation has no images, if they are signals or volumes, or if the index is invalid.
    """
    image, color = _of(explanation, None, index, None, flat=True)
    shown, _ = made_visible(explanation.evidence[index].float().cpu())
    return as_pil(explanation_image(image, shown, color, explanation.bands))


def overlay_picture(explanation: Explanation, index: int = 0) -> Image.Image:
    """One item's brightened evidence on the image in dim gray; errors as in `evidence_picture`."""
    image, _ = _of(explanation, None, index, None, flat=True)
    return as_pil(overlay(image, explanation.evidence[index].float().cpu(), explanation.bands))


def _of(
    explanation: Explanation, images: Tensor | None, index: int, background: Sequence[float] | None, flat: bool = False
) -> tuple[Tensor, Tensor]:
    """An item's image, and the color (C,1,1) of removed parts."""
    if images is None:
        explanation = with_images(explanation)
        images = explanation.images
    if images is None:
        raise InputError(
            "Expected the explained images, but this explanation has none. Pass them as draw(explanation, images)."
        )
    if not isinstance(images, Tensor) or images.shape != explanation.mask.shape:
        there = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"Expected the images of the explanation, {tuple(explanation.mask.shape)}, but got {there}.")
    if not isinstance(index, int) or not -len(images) <= index < len(images):
        raise InputError(f"Expected an index below {len(images)}, but got {index!r}.")
    if flat and images.ndim != 4:
        raise InputError(f"Expected images (B,C,H,W), but got {tuple(images.shape)}. Use draw() for other inputs.")
    image = images[index].detach().float().cpu()
    color = explanation.background if explanation.background is not None else image.new_full((1, 1, 1), 0.5)
    color = color if background is None else image.new_tensor(background)[:, None, None]
    return image, color.to(image).expand(len(image), 1, 1)


def with_images(explanation: Explanation) -> Explanation:
    """An explanation with its images, which one from a file reads again; unchanged if it has or knows none.

    Raises:
        InputError: if the image file is missing or has changed.
    """
    if explanation.images is not None or explanation.reread is None:
        return explanation
    return explanation.reread(explanation)


def as_pil(picture: Tensor) -> Image.Image:
    """Convert a picture (3,H,W) in [0,1] to a PIL image."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def png(explanation: Explanation) -> bytes | None:
    """The panels of the first five items, stacked vertically, for a notebook; None if there are no images."""
    with suppress(ValueError):  # an image file is missing or has changed, or a stranger's file names no path at all
        explanation = with_images(explanation)
    if explanation.images is None or not len(explanation):
        return None
    file = BytesIO()
    draw(explanation[:5]).save(file, "PNG")
    return file.getvalue()


def html(lines: str, picture: bytes | None) -> str:
    """A picture with its text for a notebook; the text alone if the picture is None.

    Args:
        lines: the text, which is also the picture's description for screen readers.
        picture: as PNG.
    """
    text = escape(lines)
    if picture is None:
        return f"<pre>{text}</pre>"
    source = f"data:image/png;base64,{b64encode(picture).decode()}"
    return f'<figure><img src="{source}" alt="{text}"><figcaption><pre>{text}</pre></figcaption></figure>'
