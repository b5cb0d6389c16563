"""Explanations in a notebook: panels as PIL images and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.results.figures import (
    FAINT,
    brightened,
    brightest,
    explanation_image,
    explanation_panel,
    overlay,
    pixels,
)

if TYPE_CHECKING:
    from fgvis_lightning.results.explanation import Explanation


def draw(
    explanation: Explanation,
    images: Tensor | None = None,
    index: int = 0,
    name: str | None = None,
    background: Sequence[float] | None = None,
) -> Image.Image:
    """One item's image, explanation and mask side by side, for a notebook.

    Args:
        explanation: as `fgvis_lightning.explain` returns it.
        images: those that were explained (B,C,H,W) in [0,1]; unless given, what the explanation remembers.
        index: which of them.
        name: of the target class; unless given, likewise.
        background: the color in [0,1] that stands for nothing, the mean that images are normalized by; likewise.

    Raises:
        InputError: the images are not those of the explanation, or there is none of that index.
    """
    image, color = _of(explanation, images, index, background)
    named = explanation.names[index] if explanation.names else f"class {int(explanation.targets[index])}"
    return Image.fromarray(
        pixels(explanation_panel(explanation, index, image, color, name if name is not None else named))
    )


def evidence_picture(explanation: Explanation, index: int = 0) -> Image.Image:
    """One item's evidence on the background, at the network's own resolution; brightened where it is faint.

    Raises:
        InputError: the explanation does not have its images, or they are no images, or there is none of that index.
    """
    image, color = _of(explanation, None, index, None, flat=True)
    evidence = explanation.evidence[index].float().cpu()
    faint = float(brightest(evidence)) < FAINT
    return as_pil(explanation_image(image, brightened(evidence) if faint else evidence, color, explanation.bands))


def overlay_picture(explanation: Explanation, index: int = 0) -> Image.Image:
    """One item's evidence, brightened, on the image in dim gray; errors as in `evidence_picture`."""
    image, _ = _of(explanation, None, index, None, flat=True)
    return as_pil(overlay(image, explanation.evidence[index].float().cpu(), explanation.bands))


def _of(
    explanation: Explanation, images: Tensor | None, index: int, background: Sequence[float] | None, flat: bool = False
) -> tuple[Tensor, Tensor]:
    """An item's image, and the color (C,1,1) that stands for nothing."""
    images = images if images is not None else explanation.images
    if images is None:
        raise InputError("Expected the images that were explained, which an explanation from a file does not have.")
    if images.shape != explanation.mask.shape:
        raise InputError(
            f"Expected the images of the explanation, {tuple(explanation.mask.shape)}, but got {tuple(images.shape)}."
        )
    if not -len(images) <= index < len(images):
        raise InputError(f"Expected an index below {len(images)}, but got {index}.")
    if flat and images.ndim != 4:
        raise InputError(f"Expected images (B,C,H,W), but got {tuple(images.shape)}. Show others with draw().")
    image = images[index].detach().float().cpu()
    color = explanation.background if explanation.background is not None else image.new_full((1, 1, 1), 0.5)
    color = color if background is None else image.new_tensor(background)[:, None, None]
    return image, color.to(image).expand(len(image), 1, 1)


def as_pil(picture: Tensor) -> Image.Image:
    """A picture (3,H,W) in [0,1]."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def png(explanation: Explanation, most: int = 5) -> bytes | None:
    """The panels of the first few items, one below the other, for a notebook; None without their images."""
    if explanation.images is None or not len(explanation):
        return None
    panels = [draw(explanation, index=index) for index in range(min(most, len(explanation)))]
    sheet = Image.new("RGB", (max(one.width for one in panels), sum(one.height for one in panels)), "white")
    top = 0
    for one in panels:
        sheet.paste(one, (0, top))
        top += one.height
    file = BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
