"""Tensors → pictures; no files.

There are three views of each item, at the network's own resolution, so that every pixel of the mask is visible:

* the image: the network's input before normalization;
* the explanation: the image's evidence on the reference's gray, with everything else removed;
* the mask: the evidence by color channel on black; white is evidence in all three channels, yellow is evidence in red
  and green.

Gray images have gray masks. For more than three channels, three are shown as red, green and blue (see `as_rgb`), and a
separate picture shows the evidence of each channel.

If the evidence is faint, brightened versions of the latter two are added. Volumes are shown as their three middle
slices, and signals as one line for each channel (see `fgvis_lightning.results.shapes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from fgvis_lightning.results.layout import panel
from fgvis_lightning.results.numbers import USUAL, percent, probability, score_after
from fgvis_lightning.results.shapes import in_view, middle_slices, signal_figure

if TYPE_CHECKING:
    from fgvis_lightning.results.explanation import Explanation


FAINT = 0.5
"""Evidence with a brightest part (see `brightest`) below this value is also shown brightened."""

AS_IT_IS = 0.95
"""Evidence with a brightest part above this value looks the same when it is brightened."""

UNSEEN = 0.05
"""Evidence that is nowhere above this value is too faint to see."""

KEY = "In the pictures by color channel, white is evidence in all three channels, green in green only"

Bands = Sequence[int] | None
"""The three of C channels shown as red, green and blue, counted from 1; None for the first, middle and last."""


def explanation_image(image: Tensor, evidence: Tensor, background: Tensor, bands: Bands = None) -> Tensor:
    """Picture of an explanation: the evidence on a plain background.

    Args:
        image: image (C,H,W) in [0,1].
        evidence: evidence (C,H,W) in [0,1], the mask or 1 - mask.
        background: color (C,1,1) in [0,1], e.g. the data set's mean color.
        bands: channels to show.

    Returns:
        Picture (3,H,W) in [0,1].
    """
    return as_rgb(torch.lerp(background.expand_as(image), image, evidence), bands)


def triple(count: int, bands: Bands = None) -> list[int]:
    """Indices of the channels shown as red, green and blue: the chosen ones, or the first, the middle and the last."""
    return [band - 1 for band in bands] if bands else [0, (count - 1) // 2, count - 1]


def as_rgb(picture: Tensor, bands: Bands = None) -> Tensor:
    """Convert a picture with any number of channels (C,H,W) to red, green and blue (3,H,W)."""
    return picture[triple(len(picture), bands)]


def each_channel(evidence: Tensor) -> Tensor:
    """Evidence (C,H,W) as small gray maps of all channels in one picture (3,H,W), row by row."""
    count, height, width = evidence.shape
    columns = math.ceil(math.sqrt(count))
    tall, wide = height // columns, width // columns
    picture = evidence.new_full((height, width), 0.5)
    for number, small in enumerate(F.adaptive_avg_pool2d(evidence, (tall - 1, wide - 1))):
        row, column = divmod(number, columns)
        picture[row * tall : (row + 1) * tall - 1, column * wide : (column + 1) * wide - 1] = small
    return picture.expand(3, -1, -1)


def explanation_panel(explanation: Explanation, index: int, image: Tensor, background: Tensor, name: str) -> Figure:
    """Image and explanation of one item above overlay and mask, under the class and both scores.

    Faint evidence is also shown brightened, in a column of its own, so that no picture looks empty. The line below the
    title tells if the level was missed, and how well several runs agree.

    Args:
        explanation: explanation of B items.
        index: index of the item.
        image: image (C,H,W) in [0,1], before normalization; or a signal (C,T), or a volume (C,D,H,W).
        background: color (C,1,1) in [0,1] of removed parts.
        name: name of the target class.
    """
    game, evidence = explanation.game, explanation.evidence[index].float().cpu()
    count, bands, what = len(evidence), explanation.bands, {2: "signal", 4: "volume"}.get(image.ndim, "image")
    size, scores = f"mean {percent(evidence.mean())}", _scores(explanation, index, what)
    state, values = state_of(evidence).replace("image", what), ""
    if image.ndim == 4:
        image, background, values = in_view(image.float(), background)
        image, evidence = middle_slices(image, background), middle_slices(evidence, torch.zeros_like(background))
        state = state if state or evidence.any() else "none in these slices"
    how = "" if state else brightening(evidence, AS_IT_IS if what == "signal" else FAINT)
    if image.ndim == 2:
        note = f"evidence ({game.name}) is dark on the line, {', '.join(filter(None, (state or size, how)))}"
        return signal_figure(image, brightened(evidence), name, (scores, note))
    channels = ", ".join(str(place + 1) for place in triple(count, bands))
    named = {1: "mask", 3: "evidence by color channel"}.get(count, f"evidence in channels {channels}")
    unseen = "too faint to see; brightened on the right" if how and evidence.max() < UNSEEN else ""
    views = {f"{what}{values}" if count <= 3 else f"{what}, channels {channels}{values}": as_rgb(image, bands)}
    views[_joined(f"evidence ({game.name})", state or unseen)] = explanation_image(image, evidence, background, bands)
    dimmed = _joined(f"on the dimmed {what}", state) if state else f"on the dimmed {what}, {overlay_words(evidence)}"
    by_channel = {dimmed: overlay(image, evidence, bands)}
    by_channel[_joined(named if state else f"{named}, {size}", state or unseen)] = as_rgb(evidence, bands)
    if how:
        more = brightened(evidence)
        views[f"evidence, {how}"] = explanation_image(image, more, background, bands)
        by_channel[f"{named.removeprefix('evidence ')}, {how}"] = as_rgb(more, bands)
    if count > 3 and min(evidence.shape[1:]) >= 2 * math.ceil(math.sqrt(count)):  # room for a pixel and a line each
        by_channel[f"evidence by channel, 1 to {count}, brightened"] = each_channel(brightened(evidence))
    return panel([views, by_channel], name, (scores, KEY) if count == 3 else (scores,))


def _joined(name: str, words: str) -> str:
    return f"{name}: {words}" if words else name


def state_of(evidence: Tensor) -> str:
    """Words for evidence that is the whole image or nothing; empty for all other evidence."""
    if evidence.max() <= 0:
        return "none"
    return "whole image" if evidence.min() >= 1 else ""


def _scores(explanation: Explanation, index: int, what: str) -> str:
    """Both scores, whether the level was missed, and how well several runs agree, unless a mask is constant."""
    before, after = (probability(s[index]) for s in (explanation.score_image, explanation.score_explanation))
    kind = score_after(explanation.game.name).removeprefix("score ")
    missed = explanation.feasible is not None and not explanation.feasible[index]
    scores = f"{before} on the {what}, {after} {kind}{' (level missed)' if missed else ''}"
    if explanation.agreement is None or math.isnan(r := float(explanation.agreement[index])):
        return scores
    runs = f"{explanation.seeds} runs" if explanation.seeds else "the runs"
    return f"{scores}; {runs} agree by r = {r:.2f} ({USUAL})"


def factor(value: float) -> str:
    """A factor with two digits: × 3.2, × 32, × 3,200."""
    digits = f"{value:.1f}" if value < 9.95 else f"{float(f'{value:.2g}'):,.0f}"
    return f"×\N{NO-BREAK SPACE}{digits}"


def brightening(evidence: Tensor, below: float = FAINT) -> str:
    """How `brightened` changes evidence with a brightest part below some value, in words; empty if it need not."""
    top = float(brightest(evidence))
    return f"brightened {factor(1 / top)}" if evidence.any() and top < below else ""


def made_visible(evidence: Tensor) -> tuple[Tensor, str]:
    """Evidence, brightened if it is faint, and how, in words; the words are empty if it is unchanged."""
    how = brightening(evidence)
    return brightened(evidence) if how else evidence, how


def overlay_words(evidence: Tensor) -> str:
    """How `overlay` brightens an evidence (C,H,W), in words."""
    how = brightening(evidence, AS_IT_IS)
    return f"{how} or more" if how else "brightened"


def overlay(image: Tensor, evidence: Tensor, bands: Bands = None) -> Tensor:
    """The image at its evidence, and in dim gray elsewhere (3,H,W).

    The image's share is the square root of the channels' mean evidence, which is brightened as the evidence itself:
    without the root, the picture is nearly black where evidence is spread over large parts.

    Args:
        image: image (C,H,W) in [0,1].
        evidence: evidence (C,H,W) in [0,1].
        bands: channels to show.
    """
    return on_dimmed(as_rgb(image, bands), brightened(evidence).mean(0).sqrt())


def on_dimmed(image: Tensor, share: Tensor) -> Tensor:
    """A share (H,W) in [0,1] of the image (3,H,W), on the image in dim gray (3,H,W)."""
    return torch.lerp(0.35 * image.mean(0).expand(3, -1, -1), image, share.expand(3, -1, -1))


def heat(saliency: Tensor) -> Tensor:
    """A map (H,W) as a picture (3,H,W) in [0,1], black at its lowest values.

    Brightness grows up to the map's 99.8 % quantile (see `brightened`), so that no single pixel dominates the picture.
    Negative values, evidence against the class, are black. A constant map is gray.
    """
    evidence = saliency.float().clamp(min=0)
    if evidence.max() == evidence.min():
        return torch.full((3, *saliency.shape), 0.5)
    colors = colormaps["inferno"](brightened(evidence - evidence.min()).numpy())[..., :3]
    return torch.from_numpy(colors).float().permute(2, 0, 1)


def brightened(values: Tensor) -> Tensor:
    """Values of any shape, clipped at 0 and divided by their 99.8 % quantile, in [0,1]."""
    values = values.float().clamp(min=0)
    return (values / brightest(values)).clamp(max=1)


def brightest(values: Tensor) -> Tensor:
    """The 99.8 % quantile of values ≥ 0 (a scalar), or their maximum if the quantile is 0; never 0."""
    top = values.flatten().sort().values[int(0.998 * (values.numel() - 1))]
    return top if top > 0 else values.max().clamp(min=torch.finfo(values.dtype).tiny)


def grid(
    rows: Sequence[Sequence[tuple[Tensor | None, str]]],
    columns: Sequence[str],
    names: Sequence[str],
    inches: float,
    note: str = "",
) -> Figure:
    """Rows of pictures under the names of their columns, for print.

    Args:
        rows: rows with a picture (C,H,W) in [0,1], or None, and the text below it for each column.
        columns: names of the columns.
        names: names of the rows, to the left of them.
        inches: width of a picture.
        note: note below all pictures.
    """
    shape = next(picture.shape for row in rows for picture, _ in row if picture is not None)
    tall = inches * shape[-2] / shape[-1]
    below = 0.19 * max((text.count("\n") + 1 for row in rows for _, text in row if text), default=0)
    left, top, gap = 1.15, 0.15 + 0.16 * max(name.count("\n") + 1 for name in columns), 0.05
    wide = left + len(columns) * (inches + gap) + gap
    foot = 0.22 * (note.count("\n") + 1) if note else 0.0
    high = top + len(rows) * (tall + below + gap) + foot
    figure = Figure(figsize=(wide, high), dpi=300)
    figure.text(left / wide, 0.06 / high, note, ha="left", va="bottom", fontsize=9)
    for number, row in enumerate(rows):
        bottom = high - top - (number + 1) * (tall + below + gap) + below + gap
        figure.text(
            (left - 0.08) / wide, (bottom + tall / 2) / high, names[number], ha="right", va="center", fontsize=9
        )
        for place, (picture, text) in enumerate(row):
            x = left + place * (inches + gap)
            axes = figure.add_axes((x / wide, bottom / high, inches / wide, tall / high))
            axes.set_axis_off()
            if picture is not None:
                axes.imshow(as_rgb(picture).clamp(0, 1).permute(1, 2, 0).float().numpy(), interpolation="nearest")
            if number == 0:
                axes.set_title(columns[place], fontsize=9, pad=4)
            axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top", fontsize=7.5)
    return figure


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure as an array (H,W,3), for loggers."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
