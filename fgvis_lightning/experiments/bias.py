"""``python train.py bias``: does the network recognize a class by its color, or by another suspected feature?

Explains labelled images with FGVis, measures the suspected feature in the evidence, changes this feature in the images,
and compares: explanations should predict the effect of the change (Wagner et al., CVPR 2019: the color of school
buses). Only correctly classified images count; the others do not show how the network recognizes the class::

    <output>/FGVis/explanations/<item id>.safetensors   the masks, in a results folder as of fit
    <output>/<pair>_evidence.csv, .md                   each class: statistics of its evidence and its images
    <output>/<pair>_interventions.csv, .md              each class: the share of its images that stay correct
    <output>/<pair>_ranking.csv, .md                    the classes in order of dependence, by both measures
    <output>/<pair>_evidence.pdf, _agreement.pdf, _sheet.pdf, and .png    the same as figures
    <output>/<pair>_items.csv                           each single image
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from jsonargparse import Namespace
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from fgvis_lightning.baselines.fgvis import FGVisMethod
from fgvis_lightning.bias import Pair
from fgvis_lightning.data.explained import load_explanation
from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.bias_measures import Findings, Measured, measure
from fgvis_lightning.experiments.bias_tables import Ranked, Tables
from fgvis_lightning.experiments.output import save_figure
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.experiments.run import SweepRun
from fgvis_lightning.experiments.sweeps import Methods, sweep, sweep_parser
from fgvis_lightning.names import slug
from fgvis_lightning.networks.preprocessing import COLORS
from fgvis_lightning.results.figures import as_rgb, brightened, each_channel, explanation_image, grid
from fgvis_lightning.results.tensor_files import item_file

METHOD = "FGVis"

MOST = 12  # classes in the bars, half of them from each end of the ranking


def make_parser() -> Parser:
    """The options of ``bias``."""
    parser = sweep_parser("bias", (__doc__ or "").partition("::")[0], "results/bias")
    parser.set_defaults({"data.targets": "label"})
    parser.add_class_arguments(FGVisMethod, "explainer")
    parser.add_argument(
        "--pairs",
        type=dict[str, Pair],
        default={"color": {"class_path": "fgvis_lightning.bias.Color"}},
        help="Name → class_path and init_args of a statistic with interventions.",
    )
    parser.add_argument(
        "--published",
        type=dict[str, dict[str, float]],
        default={},
        help="Class → intervention → published share of images that stayed right, shown with the measured share; and "
        "images → their number, for the interval.",
    )
    parser.add_argument("--rows", type=int, default=4, help="Images of each class in a sheet.")
    return parser


def main(args: Sequence[str]) -> None:
    """Parse the command line, explain, intervene, and compare."""
    parser = make_parser()
    config = parser.parse_args(list(args))
    if not config.pairs:
        raise InputError("Expected pairs of a statistic with interventions, but got none. Give each one a name.")

    pairs: dict[str, Pair] = {}

    def methods(objects: Namespace) -> Methods:
        pairs.update(objects.pairs)
        return {METHOD: (objects.explainer, {})}

    sweep(parser, config, methods, lambda runs: _sum_up(Path(config.output), runs[METHOD], pairs, config))


def _sum_up(output: Path, run: SweepRun, pairs: dict[str, Pair], config: Namespace) -> None:
    """Save and print the tables and figures."""
    classifier = run.model.classifier
    names = classifier.preprocessing.names
    takes = f"channels in the order {classifier.order}" if names == COLORS else f"{len(names)} channel(s)"
    print(f"The network takes {takes}; misclassified images are left out.")
    for name, found in measure(run, pairs).items():
        tables = Tables(found, config.published)
        stem = output / slug(name)
        tables.save(stem)
        _draw(stem, found, tables, run, config.rows)
        print(f"\n{name}: share of the images that stay right\n\n{tables.people.markdown()}")
        print(f"{tables.ranking.markdown()}\n{tables.agreement}")
        print(f"Look at {stem}_evidence.png, {stem}_agreement.png and {stem}_sheet.png")


def _draw(stem: Path, found: Findings, tables: Tables, run: SweepRun, rows: int) -> None:
    """Save the three figures in files whose names begin with ``stem``; the sheet has ``rows`` images of each class."""
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


def _sheet(found: Findings, ranked: list[Ranked], run: SweepRun, rows: int) -> Figure:
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
            (explanation_image(image, brightened(evidence), preprocessing.background(), preprocessing.bands), ""),
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
