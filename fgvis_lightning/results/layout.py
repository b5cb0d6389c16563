"""Rows of pictures with captions, set like a figure in a printed paper: no files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from textwrap import wrap
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

FONT = ["STIXGeneral", "serif", "DejaVu Sans"]
"""Typefaces of pictures: a book face, those like it, and one with more letters. All are part of Matplotlib."""

SERIF = ["Times New Roman", "Times", "Liberation Serif", "Nimbus Roman", "DejaVu Serif"]
"""Typefaces like the first of `FONT`, for text that stays text in SVG files, if a reader's machine lacks the first."""

TITLE, TEXT = 14, 12  # sizes of the font
INK, HAIR = "#17191c", "#b9bbb8"  # colors of text, and of the line around a picture
STYLE: dict[str, Any] = {"fontfamily": FONT, "color": INK, "linespacing": 1.05, "parse_math": False}
GAP_INCHES = 0.12
DPI = 100
PICTURES = "png", "svg", "pdf"
LINE, LETTER, BOLD = 1.35, 0.42, 0.48  # height of a line, and about the width of a letter, in sizes of the font


def panel(rows: Sequence[Mapping[str, Tensor]], title: str, notes: Sequence[str] = ()) -> Figure:
    """Rows of pictures (3,H,W) in [0,1] with hairlines around them, under their captions.

    Each pixel covers whole screen pixels.

    Args:
        rows: caption → picture for each row; all pictures have the same size.
        title: title above all pictures.
        notes: notes below the title, each on a line of its own, in a smaller font.
    """
    height, width = next(iter(rows[0].values())).shape[-2:]
    zoom = max(1, round(448 / max(height, width)))
    tall, wide = height * zoom / DPI, width * zoom / DPI
    columns = max(map(len, rows))
    total_wide = columns * (wide + GAP_INCHES) + GAP_INCHES
    heads = [_fitted(text, size, total_wide) for text, size in ((title, TITLE), *((note, TEXT) for note in notes))]
    captions = [[_fitted(caption, TEXT, wide) for caption in row] for row in rows]
    talls = [GAP_INCHES + tall + max(caption_tall for *_, caption_tall in row) for row in captions]
    total_tall = sum(talls) + sum(head_tall for *_, head_tall in heads) + 2 * GAP_INCHES
    figure = Figure(figsize=(total_wide, total_tall), dpi=DPI)
    top = total_tall - GAP_INCHES
    for text, size, head_tall in heads:
        weight = "bold" if size == TITLE else "normal"
        figure.text(
            GAP_INCHES / total_wide, top / total_tall, text, va="top", fontsize=size, fontweight=weight, **STYLE
        )
        top -= head_tall
    for row, captions_of_row, row_tall in zip(rows, captions, talls, strict=True):
        top -= row_tall
        for column, (view, (caption, size, _)) in enumerate(zip(row.values(), captions_of_row, strict=True)):
            left = GAP_INCHES + column * (wide + GAP_INCHES)
            place = left / total_wide, top / total_tall, wide / total_wide, tall / total_tall
            axes = figure.add_axes(place, frameon=False)
            axes.imshow(view.clamp(0, 1).permute(1, 2, 0).float().numpy(), interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(caption, loc="left", pad=5, fontsize=size, **STYLE)
            frame(figure, *place)
    return figure


def as_file(figure: Figure, kind: str) -> bytes:
    """A figure as a file's content: ``png``, or ``svg`` and ``pdf``, whose text stays text."""
    content = BytesIO()
    with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42, "font.serif": SERIF}):
        figure.savefig(content, format=kind)
    return content.getvalue()


def frame(figure: Figure, left: float, bottom: float, wide: float, tall: float, width: int = 1) -> None:
    """Draw a line, some pixels wide, just outside of a place in the figure, so that a white picture is seen, too."""
    across, up = (1 / side for side in figure.get_size_inches() * figure.dpi)  # a pixel
    half = width / 2
    corner = left - (half + 0.25) * across, bottom - (half - 0.25) * up  # rounded to whole pixels beside the picture
    sides = wide + width * across, tall + width * up
    line = Rectangle(corner, *sides, fill=False, edgecolor=HAIR, linewidth=72 * width / figure.dpi)
    figure.add_artist(line)


def _fitted(text: str, size: float, inches: float) -> tuple[str, float, float]:
    """A text wrapped to a width, its font size, and its height in inches (a whole number of pixels)."""
    letter = BOLD if size == TITLE else LETTER
    lines = wrap(text, max(1, int(72 * inches / (letter * size))))
    return "\n".join(lines), size, math.ceil(LINE * size * len(lines) / 72 * DPI) / DPI
