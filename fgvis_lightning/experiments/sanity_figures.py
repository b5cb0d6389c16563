"""Curves and maps of a parameter randomization."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from fgvis_lightning.experiments.output import save_figure
from fgvis_lightning.results.figures import grid, heat
from fgvis_lightning.results.tables import Table

CEILING, FLOOR = "another seed", "another photo"


def draw_curves(path: Path, table: Table) -> None:
    """Correlation over the share of random layers; on the right, the correlation with the controls' maps.

    Args:
        path: of the figure, without a suffix.
        table: rows with method, layers, share of the layers (empty for a control), correlation, ceiling and floor.
    """
    figure = Figure(figsize=(8, 4.2), dpi=200, layout="constrained")
    axes = figure.subplots()
    rows = table.named()
    names = list(dict.fromkeys(str(row["method"]) for row in rows))
    controls = list(dict.fromkeys(str(row["layers drawn anew"]) for row in rows if not row["share of the layers"]))
    places = {name: 118 + 22 * place for place, name in enumerate([*controls, FLOOR, CEILING])}
    shift = 2  # so that points of equal height do not overlap
    for number, (name, color) in enumerate(zip(names, colormaps["tab10"].colors * 10, strict=False)):  # type: ignore[attr-defined]
        own = [row for row in rows if row["method"] == name]
        curve = [row for row in own if row["share of the layers"]]
        share = [0.0, *(100 * row["share of the layers"] for row in curve)]
        width = 2.4 if name.startswith("FGVis") else 1.2
        heights = [1.0, *(row["rank correlation"] for row in curve)]
        axes.plot(share, heights, color=color, label=name, linewidth=width)
        points = {str(row["layers drawn anew"]): row["rank correlation"] for row in own if row not in curve}
        points |= {FLOOR: own[0]["floor"], CEILING: own[0]["ceiling"]}
        for control, height in points.items():
            place = places[control] + shift * (number - (len(names) - 1) / 2)
            axes.plot([place], [height], "o", color=color, markersize=4.5)
    ticks = {place: str(place) for place in (0, 25, 50, 75, 100)}
    ticks |= {place: control.replace(" ", "\n") for control, place in places.items()}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.axhline(0, color="gray", linewidth=0.5)
    axes.set_xlabel("layers drawn anew, %, and controls")
    axes.set_ylabel("rank correlation with the map")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)  # not on the points
    save_figure(path, figure)


def draw_maps(path: Path, image: Tensor, maps: Mapping[str, Mapping[str, Tensor]]) -> None:
    """An image and each method's maps of it.

    Args:
        path: of the figure, without a suffix.
        image: (C,H,W) in [0,1].
        maps: name of the method → title of a map → the map (H,W).
    """
    columns = list(dict.fromkeys(title for several in maps.values() for title in several))
    columns.sort(key=lambda title: {"trained": 0, CEILING: 1}.get(title, 2))
    rows = [
        [(image, ""), *((heat(several[title]) if title in several else None, "") for title in columns)]
        for several in maps.values()
    ]
    heads = ["image", *(fill(title, 10) for title in columns)]
    save_figure(path, grid(rows, heads, [fill(name, 14) for name in maps], 1.15))
