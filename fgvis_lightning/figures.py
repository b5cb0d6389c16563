"""Tensors → pictures; no files.

Three views of one item, each at the network's own resolution so that every pixel of the mask is there:

* the image, as the network gets it before normalization;
* the explanation: the evidence of the image on the reference's gray, everything else gone;
* the mask: the evidence by color channel on black, so white is evidence in all three channels, and
  yellow, say, evidence in red and green.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

TITLE_INCHES = 0.62
GAP_INCHES = 0.12
DPI = 100


def explanation_image(image: Tensor, evidence: Tensor, background: Tensor) -> Tensor:
    """What is shown as the explanation: the evidence on a plain background.

    Args:
        image: (3,H,W) in [0,1].
        evidence: (3,H,W) in [0,1], the mask or 1 - mask.
        background: (3,1,1) in [0,1], e.g. the data set's mean color.

    Returns:
        (3,H,W) in [0,1].
    """
    return torch.lerp(background.expand_as(image), image, evidence)


def panel(views: Mapping[str, Tensor], title: str) -> Figure:
    """Pictures (3,H,W) in [0,1] side by side, each under its name; pixels are whole screen pixels.

    Args:
        views: name → picture, all of one size.
        title: above all of them.
    """
    height, width = next(iter(views.values())).shape[-2:]
    zoom = max(1, round(448 / max(height, width)))
    tall, wide = height * zoom / DPI, width * zoom / DPI
    total_wide = len(views) * (wide + GAP_INCHES) + GAP_INCHES
    total_tall = tall + TITLE_INCHES + GAP_INCHES
    figure = Figure(figsize=(total_wide, total_tall), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.text(0.5, 1 - 0.08 / total_tall, title, ha="center", va="top", fontsize=12)
    for index, (name, view) in enumerate(views.items()):
        left = GAP_INCHES + index * (wide + GAP_INCHES)
        axes = figure.add_axes(
            (left / total_wide, GAP_INCHES / total_tall, wide / total_wide, tall / total_tall), frameon=False
        )
        axes.imshow(view.clamp(0, 1).permute(1, 2, 0).float().numpy(), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(name, fontsize=10, pad=4)
    return figure


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure as (H,W,3), for loggers that take arrays."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
