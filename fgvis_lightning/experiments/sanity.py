"""``python train.py sanity``: do maps depend on what the network has learned?

Parameter randomization (MPRT; Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, section 4.1): the
network's layers are redrawn from the top down, one more each time, and the maps are compared with the trained network's
maps by Spearman's rank correlation. A map that hardly changes does not explain the network. ``--random_labels`` does
the same with a network trained on randomly permuted labels (section 4.2). In addition, the maps for the target class
and for the least probable class are compared, since an explanation should depend on its class.

Beside every correlation stand a ceiling and a floor. The ceiling is the correlation with the trained network's map by
another seed: no comparison can be higher, except by chance. A method without a seed is deterministic and has ceiling 1.
The floor is the correlation with the map of another photo, caused by common features of all maps, such as evidence in
the middle. Except for the original map, all maps use the other seed, since equal random numbers make maps alike
whatever the network has learned. Intervals over two or three images are too narrow to rely on.

``--tests`` offers three more tests. Two are from Hedström et al., A Fresh Look at Sanity Checks for Saliency Maps, xAI
2024. ``smprt`` averages maps over noisy images before the comparison, which multiplies the time by their number.
``emprt`` compares no maps: it measures the rise in the complexity of a map, the entropy of its histogram, until all
layers are random, and its correlation with the entropy of the network's outputs. As in that paper, both tests reset
layers to their initial distribution, from the bottom up (``--weights initial``, ``--order bottom_up``). The third,
``max_sensitivity``, needs no random network: it is the largest relative change of a map when the image changes by up to
0.02 in normalized space (Yeh et al., NeurIPS 2019)::

    <output>/sanity.csv, .md           mprt: mean correlations with 95 % bootstrap intervals over images
    <output>/sanity.pdf, .png          the same as curves
    <output>/maps.pdf, .png            the first image's maps, from the trained network to the random one
    <output>/smooth.*, smooth_maps.*   smprt: the same
    <output>/complexity.csv, .md       emprt: complexity, its rise, and its correlation with the outputs' entropy
    <output>/sensitivity.csv, .md      max_sensitivity: its mean over images
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Literal

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.data.items import list_items
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.arguments import add_device, build, chosen_device, new_parser
from fgvis_lightning.experiments.output import save_figure, save_table, write_config
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.experiments.randomization import Order, Smoothed, Weights, layers, randomized
from fgvis_lightning.experiments.sanity_measures import (
    CEILING,
    FLOOR,
    State,
    Trained,
    correlations,
    rises,
    sensitivities,
)
from fgvis_lightning.experiments.statistics import with_intervals
from fgvis_lightning.networks.load import from_options
from fgvis_lightning.networks.logits import checked, resolve
from fgvis_lightning.results.figures import as_rgb, grid, heat
from fgvis_lightning.results.tables import Table

RANDOM_LABELS = "random labels"
FILES = {"mprt": "sanity", "smprt": "smooth", "emprt": "complexity", "max_sensitivity": "sensitivity"}
"""Test → name of its table and its curves."""
SHEETS = {"mprt": "maps", "smprt": "smooth_maps"}


def make_parser() -> Parser:
    """The options of ``sanity``."""
    parser = new_parser("sanity", (__doc__ or "").partition("\n\nBeside")[0], "results/sanity")
    parser.add_argument("--images", type=str | list[str], required=True, help="As --data.images of fit; a few suffice.")
    parser.add_argument("--targets", type=str | int | list[str | int], default="predicted", help="As in fit.")
    parser.add_argument("--methods", type=dict[str, Method], required=True, help="Name → class_path and init_args.")
    parser.add_argument(
        "--tests",
        type=list[Literal["mprt", "smprt", "emprt", "max_sensitivity"]],
        default=["mprt"],
        help="Some of mprt, smprt, emprt and max_sensitivity.",
    )
    parser.add_argument("--steps", type=int, default=8, help="Steps from the trained network to the random one.")
    parser.add_argument(
        "--order", type=Order | None, help="top_down (default of mprt) or bottom_up (default of the others)."
    )
    parser.add_argument(
        "--weights",
        type=Weights | None,
        help="spread (the layer's own mean and deviation; default of mprt) or initial (default of the others).",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random weights and of the noise of smprt.")
    parser.add_argument("--samples", type=int, default=50, help="Maps that smprt averages.")
    parser.add_argument(
        "--noise", type=float, default=0.1, help="Standard deviation of smprt's noise, of an image's range."
    )
    parser.add_argument("--changes", type=int, default=10, help="Changed images of max_sensitivity.")
    parser.add_argument("--bins", type=int, default=100, help="Bins of emprt's histogram.")
    parser.add_argument(
        "--random_labels", type=str | None, help="File with the weights of the same network, trained on random labels."
    )
    add_device(parser)
    return parser


def main(args: Sequence[str]) -> None:
    """Parse the command line, randomize, compare, and draw."""
    parser = make_parser()
    config = parser.parse_args(list(args))
    if not config.methods or config.steps < 1:
        raise InputError(
            f"Expected --methods, and --steps of at least 1, but got {len(config.methods)} and {config.steps}."
        )
    counts = config.samples, config.changes
    if not config.tests or min(counts) < 1 or not 0 <= config.noise < math.inf or config.bins < 2:
        raise InputError(
            f"Expected some of the tests {', '.join(FILES)}, samples and changes of at least 1, noise of at least 0, "
            f"and bins of at least 2, but got {config.tests}, {counts}, {config.noise} and {config.bins}."
        )
    objects = build(parser, config)
    classifier = from_options(**vars(objects.model))
    items = list_items(config.images, config.targets, classifier)
    control: nn.Module | None = None
    device = chosen_device(config.device)
    if config.random_labels:
        control = from_options(
            objects.model.network, replace(objects.model.classifier, checkpoint=config.random_labels)
        ).network.to(device)
    network = classifier.network.to(device)
    images = as_float(torch.stack([load_image(item.path, classifier.preprocessing, upscale=True) for item in items]))
    x = classifier.preprocessing.normalize(images).to(device)
    with torch.no_grad():
        logits = checked(network(x), x, classifier)
    targets = resolve(torch.tensor([item.target for item in items], device=device), logits, classifier)
    trained = Trained(network, x, targets, logits.argmin(1), [item.image_id for item in items])
    print(f"network: {classifier.name}; {len(items)} items", flush=True)
    output = Path(config.output)
    write_config(output, parser.prog, parser.dump(config, skip_none=False))
    for test in dict.fromkeys(config.tests):
        order: Order = config.order or ("top_down" if test == "mprt" else "bottom_up")
        weights: Weights = config.weights or ("spread" if test == "mprt" else "initial")
        random = partial(randomized, network, config.steps, config.seed, order, weights)
        random_layers = (
            "" if test == "max_sensitivity" else f", {order}, {weights} weights, {len(layers(network))} layers"
        )
        print(f"\n{test}{random_layers}", flush=True)
        states = partial(_states, trained, random, None if test == "emprt" else control)
        path, methods = output / FILES[test], objects.methods
        if test == "max_sensitivity":
            table = sensitivities(methods, trained, config.changes)
        elif test == "emprt":
            table = rises(methods, trained, states, config.bins)
        else:
            if test == "smprt":
                smooth = config.samples, config.noise, config.seed
                methods = {name: Smoothed(method, *smooth) for name, method in methods.items()}
            table, drawn = correlations(methods, trained, states)
            _draw_curves(path, table)
            _draw_maps(output / SHEETS[test], as_rgb(images[0], classifier.preprocessing.bands), drawn)
        markdown = with_intervals(table, ("share of the layers", "images"), "rank correlation")
        save_table(path, table, markdown)
        print(f"\n{markdown}")
        if test in SHEETS:
            print(f"Look at {path}.png and {output / SHEETS[test]}.png")


def _states(
    trained: Trained, random: Callable[[], Iterator[tuple[int, nn.Module]]], control: nn.Module | None
) -> Iterator[State]:
    """Networks with more and more random layers, one at a time, and the network trained on random labels."""
    total = len(layers(trained.network))
    for count, network in random():
        yield State(count, count / total, f"{count} of {total}", network, trained.targets)
    if control is not None:
        yield State(RANDOM_LABELS, "", RANDOM_LABELS, control, trained.targets)


def _draw_curves(path: Path, table: Table) -> None:
    """Correlation over the share of random layers; on the right, the correlation with the controls' maps."""
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


def _draw_maps(path: Path, image: Tensor, maps: Mapping[str, Mapping[str, Tensor]]) -> None:
    """An image (3,H,W) in [0,1] and maps of it: name of the method → title of a map → the map (H,W)."""
    columns = list(dict.fromkeys(title for several in maps.values() for title in several))
    columns.sort(key=lambda title: {"trained": 0, CEILING: 1}.get(title, 2))
    rows = [
        [(image, ""), *((heat(several[title]) if title in several else None, "") for title in columns)]
        for several in maps.values()
    ]
    heads = ["image", *(fill(title, 10) for title in columns)]
    save_figure(path, grid(rows, heads, [fill(name, 14) for name in maps], 1.15))
