"""``python train.py sanity``: do maps depend on what the network has learned?

Parameter randomization (Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, section 4.1): the network's
layers are drawn anew from the top down, one more each time, and the maps compared with those of the trained network by
Spearman's rank correlation. A map that hardly changes does not explain the network. ``--random_labels`` does the same
with a network that was trained on randomly permuted labels (section 4.2). And since the class is what is to be
explained, the maps for the class and for the least probable one are compared as well::

    <output>/sanity.csv, .md           mean correlations with 95 % bootstrap intervals over images
    <output>/sanity.pdf, .png          the same as curves
    <output>/maps.pdf, .png            the first image's maps, from the trained network to the random one
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill

import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.data.items import list_items
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.arguments import add_device, build, chosen_device, new_parser
from fgvis_lightning.experiments.output import save_figure, save_table
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.experiments.statistics import bootstrap
from fgvis_lightning.metrics import rank_correlation
from fgvis_lightning.networks.load import from_options
from fgvis_lightning.networks.logits import checked, resolve
from fgvis_lightning.results.figures import grid, heat
from fgvis_lightning.results.tables import Table
from fgvis_lightning.results.tensor_files import write_whole

OTHER, RANDOM_LABELS = "another class", "random labels"


def make_parser() -> Parser:
    """The options of ``sanity``."""
    parser = new_parser("sanity", (__doc__ or "").partition("::")[0], "results/sanity")
    parser.add_argument("--images", type=str | list[str], required=True, help="As --data.images of fit; a few will do.")
    parser.add_argument("--targets", type=str | int | list[str | int], default="predicted", help="As in fit.")
    parser.add_argument("--methods", type=dict[str, Method], required=True, help="Name → class_path and init_args.")
    parser.add_argument("--steps", type=int, default=8, help="From the trained network to the random one.")
    parser.add_argument("--seed", type=int, default=0, help="Of the random weights.")
    parser.add_argument(
        "--random_labels", type=str | None, help="File with the weights of the same network, trained on random labels."
    )
    add_device(parser)
    return parser


def main(args: Sequence[str]) -> None:
    """Parse the command line, randomize, compare, and draw.

    Raises:
        InputError: a user's mistake, or an image that cannot be read.
    """
    parser = make_parser()
    config = parser.parse_args(list(args))
    if not config.methods or config.steps < 1:
        raise InputError(f"Expected methods, and steps of at least 1, but got {config.methods} and {config.steps}.")
    objects = build(parser, config, ["--images", "", "--methods", "{}"])
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
    print(f"network: {classifier.name}; {len(items)} items", flush=True)

    table = Table(("method", "layers drawn anew", "share of the layers", "rank correlation", "from", "to", "images"))
    drawn: dict[str, list[Tensor]] = {}
    names = [item.image_id for item in items]
    total = len(layers(network))
    for name, method in objects.methods.items():
        original = method(network, x, targets).cpu()
        drawn[name] = [original[0]]
        for count, random in randomized(network, config.steps, config.seed):
            maps = method(random, x, targets).cpu()
            drawn[name].append(maps[0])
            table.add((name, count, count / total, *_correlation(original, maps, names)))
            print(f"{name}: {count} of {total} layers drawn anew, {table.rows[-1][3]:.3f}", flush=True)
        if control is not None:
            maps = method(control, x, targets).cpu()
            drawn[name].append(maps[0])
            table.add((name, RANDOM_LABELS, "", *_correlation(original, maps, names)))
        maps = method(network, x, logits.argmin(1)).cpu()
        table.add((name, OTHER, "", *_correlation(original, maps, names)))
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "config.yaml", parser.dump(config, skip_none=False).encode())
    save_table(output / "sanity", table)
    save_figure(output / "sanity", _curves(table))
    steps = dict.fromkeys(f"{row[1]} of {total}" if row[2] else str(row[1]) for row in table.rows if row[1] != OTHER)
    columns = ["image", "trained", *(fill(step, 10) for step in steps)]
    pictures = [[(images[0], ""), *((heat(one), "") for one in maps)] for maps in drawn.values()]
    save_figure(output / "maps", grid(pictures, columns, [fill(name, 14) for name in drawn], 1.15))
    print(f"\n{table.markdown()}\nLook at {output / 'sanity.png'} and {output / 'maps.png'}")


def layers(network: nn.Module) -> list[nn.Module]:
    """The modules that have weights of their own, in the order in which the network has them."""
    return [module for module in network.modules() if isinstance(getattr(module, "weight", None), Tensor)]


def randomized(network: nn.Module, steps: int, seed: int) -> Iterator[tuple[int, nn.Module]]:
    """Copies of which more and more layers are random, from the top down.

    Weights and biases are drawn from a normal distribution with their own mean and standard deviation, so that
    activations keep their size; statistics of batch normalizations stay.

    Args:
        network: left as it is.
        steps: how many copies; in the last one all layers are random.
        seed: of the draws, the same for a layer in every copy.

    Yields:
        How many layers are random, and the copy.
    """
    total = len(layers(network))
    for step in range(1, min(steps, total) + 1):
        count = round(step * total / min(steps, total))
        random = copy.deepcopy(network)
        generator = torch.Generator().manual_seed(seed)
        for module in layers(random)[::-1][:count]:
            for name in ("weight", "bias"):
                tensor = getattr(module, name, None)
                if isinstance(tensor, Tensor):
                    values = tensor.detach().float()
                    spread = values.std(correction=0).cpu()
                    draw = torch.randn(values.shape, generator=generator) * spread + values.mean().cpu()
                    tensor.data.copy_(draw)
        yield count, random


def _correlation(original: Tensor, maps: Tensor, names: Sequence[str]) -> tuple[float, float, float, int]:
    """Mean and interval over the images of which neither map is constant, and how many these are."""
    values = rank_correlation(original, maps)
    return *bootstrap(values, names), int((~values.isnan()).sum())


def _curves(table: Table) -> Figure:
    """Correlation against the share of the layers that are random; at the right, that with the controls' maps."""
    figure = Figure(figsize=(7, 4.2), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = list(dict.fromkeys(str(row[0]) for row in table.rows))
    controls = list(dict.fromkeys(str(row[1]) for row in table.rows if not row[2]))
    for name, color in zip(names, colormaps["tab10"].colors * 10, strict=False):  # type: ignore[attr-defined]
        rows = [row for row in table.rows if row[0] == name]
        curve = [row for row in rows if row[2]]
        share = [0.0, *(100 * float(str(row[2])) for row in curve)]
        width = 2.4 if name.startswith("FGVis") else 1.2
        axes.plot(share, [1.0, *(float(str(row[3])) for row in curve)], color=color, label=name, linewidth=width)
        for place, control in enumerate(controls):
            axes.plot([118 + 24 * place], [float(str(row[3])) for row in rows if row[1] == control], "o", color=color)
    ticks = {place: str(place) for place in (0, 25, 50, 75, 100)}
    ticks |= {118 + 24 * place: control.replace(" ", "\n") for place, control in enumerate(controls)}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.axhline(0, color="gray", linewidth=0.5)
    axes.set_xlabel("layers drawn anew, from the top, %")
    axes.set_ylabel("rank correlation with the map")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)  # not on the points at the right
    return figure
