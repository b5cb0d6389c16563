"""The figures of a bias analysis."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from fgvis_lightning.data.explained import load_explanation
from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.experiments.bias_measures import Findings, Measured
from fgvis_lightning.experiments.bias_tables import Ranked, Tables
from fgvis_lightning.experiments.output import save_figure
from fgvis_lightning.experiments.run import Run
from fgvis_lightning.results.figures import as_rgb, brightened, each_channel, explanation_image, grid
from fgvis_lightning.results.tensor_files import item_file

MOST = 12
"""Classes in the bars, half of them from each end of the ranking."""


def draw(stem: Path, found: Findings, tables: Tables, run: Run, rows: int) -> None:
    """Draw and save the three figures.

    Args:
        stem: beginning of the file names.
        found: the measurements.
        tables: made from the measurements.
        run: the sweep that made the explanations.
        rows: images of each class in the sheet.
    """
    ranked = [row for row in tables.ranked if row.images]
    if not ranked:
        return
    save_figure(stem.with_name(f"{stem.name}_evidence"), _bars(found, ranked))
    save_figure(stem.with_name(f"{stem.name}_agreement"), _scatter(found, ranked, tables.agreement))
    if rows > 0:
        save_figure(stem.with_name(f"{stem.name}_sheet"), _sheet(found, ranked, run, rows))


def _bars(found: Findings, ranked: list[Ranked]) -> Figure:
    """Bars of each class's evidence, above the bars of its images."""
    shown = ranked if len(ranked) <= MOST else [*ranked[: MOST // 2], *ranked[-MOST // 2 :]]
    figure = Figure(figsize=(7, 1.4 + 0.55 * len(shown)), dpi=200, layout="constrained")
    axes = figure.subplots()
    names, parts = found.pair.statistic.names, found.pair.statistic.parts
    for place, row in enumerate(shown):
        for means, offset, alpha in zip(
            found.statistics(found.right(row.target)), (-0.2, 0.2), (1.0, 0.45), strict=False
        ):
            left = 0.0
            for name, color in parts.items():
                share, low, high = (100 * means[names.index(name)]).tolist()
                axes.barh(place + offset, share, 0.36, left, color=color, alpha=alpha, linewidth=0)
                middle = left + share / 2
                axes.plot(
                    [middle - (high - low) / 2, middle + (high - low) / 2], [place + offset] * 2, color="black", lw=1
                )
                left += share
    labels = [f"{fill(found.classes[row.target], 22)}\n({row.images})" for row in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(
        "share in %; dark: of the evidence, light: of the images themselves\nblack: width of the 95 % interval"
    )
    patches = [Patch(color=color, label=name) for name, color in parts.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    return figure


def _scatter(found: Findings, ranked: list[Ranked], agreement: str) -> Figure:
    """The two measures against each other, with a point and intervals for each class."""
    figure = Figure(figsize=(6.4, 5), dpi=200, layout="constrained")
    axes = figure.subplots()
    ends = {0, len(ranked) - 1} if len(ranked) > MOST else set(range(len(ranked)))
    for place, row in enumerate(ranked):
        color = colormaps["viridis"](1 - place / max(1, len(ranked) - 1) * 0.9)
        (x, *across), (y, *along) = row.by_explanations, row.by_interventions
        axes.plot(across, [y, y], color=color, linewidth=0.8, alpha=0.6)
        axes.plot([x, x], along, color=color, linewidth=0.8, alpha=0.6)
        axes.plot(x, y, "o", color=color, markersize=5)
        if place in ends:
            axes.annotate(found.classes[row.target], (x, y), (5, 5), textcoords="offset points", fontsize=8)
    axes.axvline(0, color="gray", linewidth=0.5)
    axes.set_xlabel("dependence by explanations: evidence minus images")
    axes.set_ylabel("dependence by interventions:\nshare of images that do not stay right")
    axes.set_ylim(-0.03, 1.03)
    axes.set_title(fill(agreement, 70), fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _sheet(found: Findings, ranked: list[Ranked], run: Run, rows: int) -> Figure:
    """Images, explanations, masks and changed images of the classes that depend most and least."""
    preprocessing = run.model.classifier.preprocessing
    changes = found.pair.interventions(run.model.classifier)[:2]

    def shown(picture: Tensor) -> Tensor:
        return as_rgb(picture, preprocessing.bands)

    def pictures(item: Measured) -> list[tuple[Tensor | None, str]]:
        image = as_float(load_image(item.image, preprocessing, upscale=run.data.upscale))
        evidence = load_explanation(item_file(run.output, item.id)).evidence[0].float()
        return [
            (shown(image), f"p = {item.scores['']:.2f}"),
            (shown(explanation_image(image, brightened(evidence), preprocessing.background())), ""),
            (each_channel(brightened(evidence)) if len(evidence) > 3 else shown(brightened(evidence)), ""),
            *((shown(change(image[None])[0]), f"p = {item.scores[change.name]:.2f}") for change in changes),
        ]

    sheet: list[list[tuple[Tensor | None, str]]] = []
    names: list[str] = []
    for row in (ranked[0], ranked[-1]) if len(ranked) > 1 else (ranked[0],):
        for item in found.right(row.target)[:rows]:
            sheet.append(pictures(item))
            names.append(fill(found.classes[row.target], 14))
    return grid(sheet, ["image", "evidence", "mask", *(change.name for change in changes)], names, 1.3)
