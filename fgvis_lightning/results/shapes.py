"""Pictures of other inputs than images: signals as lines, volumes as their middle slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from fgvis_lightning.results.layout import FONT, STYLE, TEXT, TITLE

LINES = 12  # maximum number of channels to draw for a signal
WIDE, TALL = 9.0, 1.1  # inches of a signal's channel
LEFT = 0.09  # of the lines, in shares of the figure
DARK, PALE = "#0b6e69", "#c9c9c9"


def in_view(volume: Tensor, fill: Tensor) -> tuple[Tensor, Tensor, str]:
    """A volume of any values in [0,1], from its lowest value to its highest, unless its values are in [0,1] already.

    Args:
        volume: volume (C,D,H,W).
        fill: color (C,1,1) of removed parts, which is scaled and clipped alike.

    Returns:
        Both in [0,1], and the values of black and white in words; the words are empty if nothing is scaled.
    """
    low, high = float(volume.min()), float(volume.max())
    if low >= 0 and high <= 1:
        return volume, fill, ""
    span = high - low or 1.0
    return (volume - low) / span, ((fill - low) / span).clamp(0, 1), f", black {low:.4g}, white {high:.4g}"


def middle_slices(volume: Tensor, fill: Tensor) -> Tensor:
    """The middle slices of a volume (C,D,H,W) across its depth, height and width, side by side on a color (C,1,1).

    Returns:
        Picture (C,max(H,D),W+W+H) with the slices (H,W), (D,W) and (D,H).
    """
    depth, height, width = (side // 2 for side in volume.shape[1:])
    slices = volume[:, depth], volume[:, :, height], volume[..., width]
    tall = max(one.shape[1] for one in slices)
    columns = [torch.cat([one, fill.expand(-1, tall - one.shape[1], one.shape[2])], 1) for one in slices]
    return torch.cat(columns, 2)


def signal_figure(signal: Tensor, evidence: Tensor, title: str, notes: Sequence[str]) -> Figure:
    """A signal (C,T) as a pale line for each channel, dark at its evidence (C,T) in [0,1], under a title and notes."""
    count = min(len(signal), LINES)
    head = 0.5 + 0.22 * len(notes)
    high = count * TALL + head + 0.45
    figure = Figure(figsize=(WIDE, high), dpi=100)
    figure.text(LEFT, 1 - 0.1 / high, title, va="top", fontsize=TITLE, fontweight="bold", **STYLE)
    for number, note in enumerate(notes):
        figure.text(LEFT, 1 - (0.4 + 0.22 * number) / high, note, va="top", fontsize=TEXT, **STYLE)
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(left=LEFT, right=0.985, top=1 - head / high, bottom=0.35 / high, hspace=0.12)
    steps = np.arange(signal.shape[1])
    for place, (ax, line, dark) in enumerate(zip(axes, signal.float().numpy(), evidence.float().numpy(), strict=False)):
        ax.plot(steps, line, color=PALE, linewidth=1)
        points = np.stack([steps, line], 1)
        parts = list(np.stack([points[:-1], points[1:]], 1))
        between = LineCollection(parts, color=DARK, linewidth=2, capstyle="round")
        between.set_alpha(np.clip((dark[:-1] + dark[1:]) / 2, 0, 1).tolist())
        ax.add_collection(between)
        ax.set_xlim(0, max(1, len(steps) - 1))
        ax.set_ylabel(f"channel {place + 1}", fontsize=TEXT, fontfamily=FONT)
        ax.tick_params(labelsize=0.8 * TEXT, labelfontfamily=FONT)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    if len(signal) > count:
        axes[-1].set_xlabel(f"the first {count} of {len(signal)} channels", fontsize=TEXT, fontfamily=FONT)
    return figure
