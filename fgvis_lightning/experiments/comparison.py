"""``python train.py compare``: images × methods, side by side.

Each method sweeps over the items like FGVis in ``fit``, into its own results folder, so a comparison can be stopped and
continued, and can run on many devices::

    <output>/<method>/explanations/<item id>.safetensors   maps, explanations as images (FGVis: masks); as in fit
    <output>/comparison.pdf, .png                          items × methods
    <output>/crop.pdf, .png                                the same at pixel resolution, where FGVis has most evidence
    <output>/methods.json                                  names of the methods in the folders
    <output>/costs.csv, .md                                seconds and network passes of each method
    <output>/discrimination.csv, .md, .pdf, .png           for images with several classes: whose evidence is it?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import Namespace
from matplotlib.figure import Figure
from torch import Tensor

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.data.items import Item
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.measured import AGAIN
from fgvis_lightning.experiments.output import save_figure, save_table
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.experiments.randomization import reseeded
from fgvis_lightning.experiments.run import SweepRun
from fgvis_lightning.experiments.sweeps import Methods, sweep, sweep_parser
from fgvis_lightning.metrics.discrimination import delete_evidence, remaining_scores, summarize
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.results.attribution import Attribution
from fgvis_lightning.results.cost import Cost
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.figures import as_rgb, brightened, explanation_image, grid, heat, made_visible
from fgvis_lightning.results.load import load_item
from fgvis_lightning.results.tables import Table
from fgvis_lightning.results.tensor_files import item_file, write_whole

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of an image's pixels that are deleted to find out whose evidence they are."""

SHOWN = 0.05  # the share in the figure
OWN = "its mask"
INCHES = 1.15
NOTHING = None, ""

Views = dict[str, tuple[Tensor | None, str]]
"""Name of a column → picture (C,H,W) in [0,1] and note."""


@dataclass(frozen=True)
class Result:
    """An item with the results of all methods."""

    item: Item  # image and target class
    target: int  # index of the target class
    image: Tensor  # (C,H,W) in [0,1]
    found: dict[str, Explanation | Attribution]  # by method, each with B = 1; methods without a result are missing


def make_parser() -> Parser:
    """The options of ``compare``."""
    parser = sweep_parser("compare", (__doc__ or "").partition("::")[0], "results/comparison")
    parser.add_argument(
        "--methods", type=dict[str, Method], required=True, help="Name → class_path and init_args, in order of columns."
    )
    parser.add_argument("--rows", type=int, default=12, help="Maximum number of items in a figure.")
    parser.add_argument(
        "--seeds", type=bool, default=False, help="Also run methods that draw random numbers with another seed."
    )
    parser.add_argument("--crop", type=int, default=56, help="Side of the crop at pixel resolution; 0 for none.")
    return parser


def main(args: Sequence[str]) -> None:
    """Parse the command line, run all methods, and draw."""
    parser = make_parser()
    config = parser.parse_args(list(args))
    if not config.methods:
        raise InputError("Expected methods to compare, but got none. Give each one a name and a class_path.")

    def methods(objects: Namespace) -> Methods:
        chosen: dict[str, tuple[Method, dict[str, Any]]] = {}
        for name, method in objects.methods.items():
            parameters, label = config.methods[name].as_dict(), shown(name, method)
            if label in chosen:
                raise InputError(f"Expected methods with different names, but got {label} twice. Rename one of them.")
            chosen[label] = method, parameters
            other = reseeded(method) if config.seeds else None
            if other is not None and (seed := getattr(other, "seed", None)) is not None:
                own = {**(parameters.get("init_args") or {}), "seed": seed}
                chosen[label + AGAIN] = other, {**parameters, "init_args": own}
        return chosen

    sweep(parser, config, methods, lambda runs: _sum_up(Path(config.output), runs, config.rows, config.crop))


def shown(name: str, method: Method) -> str:
    """Name of a method in tables, figures and files; it says cheap if the effort is below the authors'."""
    return f"{name} (cheap)" if method.cheap and "cheap" not in name.lower() else name


def _sum_up(output: Path, runs: dict[str, SweepRun], rows: int, crop: int) -> None:
    """Write all tables and figures into the comparison's folder; second runs are only in the table of costs."""
    costs = _costs(runs)
    save_table(output / "costs", costs)
    print(f"\n{costs.markdown()}")
    runs = {name: run for name, run in runs.items() if not name.endswith(AGAIN)}
    classifier = next(iter(runs.values())).model.classifier
    shown = list(islice(_results(runs), rows))
    if not shown:
        return
    views = [_views(result, list(runs), classifier) for result in shown]
    save_figure(output / "comparison", _grid(shown, views, classifier, INCHES))
    if crop:
        save_figure(output / "crop", _crops(shown, list(runs), classifier, crop))
    if _discriminate(output, runs, rows):
        print(f"Whose evidence is it? See {output / 'discrimination.md'} and {output / 'discrimination.png'}")
    print(f"Look at {output / 'comparison.png'}; for print use {output / 'comparison.pdf'}")


def _results(runs: dict[str, SweepRun]) -> Iterator[Result]:
    """The items with a result of at least one method, in the order of their listing."""
    files: dict[Item, dict[str, Path]] = {}
    for name, run in runs.items():
        for item, id in run.split()[1]:
            files.setdefault(item, {})[name] = item_file(run.output, id)
    run = next(iter(runs.values()))
    for item in sorted(files, key=lambda item: item.number):
        found = {name: load_item(path) for name, path in files[item].items()}
        image = as_float(load_image(item.path, run.model.classifier.preprocessing, upscale=run.data.upscale))
        yield Result(item, int(next(iter(found.values())).targets), image, found)


def _costs(runs: dict[str, SweepRun]) -> Table:
    table = Table(("method", "images", "seconds per image", "forward passes per image", "backward passes per image"))
    for name, run in runs.items():
        cost = Cost.read(run.output)
        if cost.images:
            per_image = (value / cost.images for value in (cost.seconds, cost.forward, cost.backward))
            table.add((name, cost.images, *per_image))
    return table


# --- figures ---


def _views(result: Result, methods: Sequence[str], classifier: Classifier) -> Views:
    """The image and all maps; two pictures for FGVis and for methods whose explanation is an image."""
    background, bands = classifier.preprocessing.background().to(result.image), classifier.preprocessing.bands
    views: Views = {"image": (as_rgb(result.image, bands), "")}
    for name in methods:
        found = result.found.get(name)
        if isinstance(found, Explanation):
            views[_column(name, "mask")] = as_rgb(brightened(found.evidence[0]), bands), ""
            evidence, how = made_visible(found.evidence[0])
            views[_column(name, "explanation")] = explanation_image(result.image, evidence, background, bands), how
        else:
            views[_column(name)] = None if found is None else heat(found.saliency()[0]), ""
            if found is not None and found.explanation is not None:
                views[_column(name, "explanation")] = as_rgb(found.explanation[0].clamp(0, 1), bands), ""
    return views


def _column(method: str, view: str = "") -> str:
    """Heading of a column."""
    return fill(f"{method}: {view}" if view else method, 13, break_long_words=False)


def _name(result: Result, classifier: Classifier) -> str:
    score = next(iter(result.found.values())).score_image.item()
    return f"{fill(classifier.class_name(result.target), 14)}\n{score:.2f}"


def _grid(
    results: Sequence[Result], views: Sequence[Views], classifier: Classifier, inches: float, note: str = ""
) -> Figure:
    columns = max(map(list, views), key=len)
    rows = [[row.get(name, NOTHING) for name in columns] for row in views]
    return grid(rows, columns, [_name(result, classifier) for result in results], inches, note)


def _crops(results: Sequence[Result], methods: Sequence[str], classifier: Classifier, side: int) -> Figure:
    """A square of each picture, where `_framed` has most evidence; the image with a frame around it."""
    rows: list[Views] = []
    for result in results:
        views = _views(result, methods, classifier)
        saliency = _framed(result).saliency().clamp(min=0)
        size = min(side, *saliency.shape[-2:])
        inside = F.avg_pool2d(saliency[None], size, stride=1)[0, 0]
        top, left = divmod(int(inside.argmax()), inside.shape[1])
        framed = as_rgb(result.image, classifier.preprocessing.bands).clone()
        for y in (top, top + size - 1):
            framed[:, y, left : left + size] = torch.tensor([1.0, 1.0, 0.0])[:, None]
        for x in (left, left + size - 1):
            framed[:, top : top + size, x] = torch.tensor([1.0, 1.0, 0.0])[:, None]
        inside_square = (slice(None), slice(top, top + size), slice(left, left + size))
        cut = {name: (None if view is None else view[inside_square], note) for name, (view, note) in views.items()}
        rows.append({"photo": (framed, ""), **cut})
    return _grid(results, rows, classifier, 1.5 * INCHES)


def _framed(result: Result) -> Explanation | Attribution:
    """The last result by FGVis; without one, the last of all."""
    found = list(result.found.values())
    return ([one for one in found if isinstance(one, Explanation)] or found)[-1]


# --- whose evidence? ---


def _discriminate(output: Path, runs: dict[str, SweepRun], rows: int) -> bool:
    """Save tables and a figure for images with several classes; return whether there are any."""
    run = next(iter(runs.values()))
    model = run.model.to(run.trainer.strategy.root_device)
    pairs = Table(("image", "evidence of", "score of", "method", "deleted", "left of the score"))
    remaining: dict[tuple[str, str], list[Tensor]] = {}
    drawn: list[tuple[Result, dict[str, str]]] = []
    for image_id, group in groupby(_results(runs), key=lambda result: result.item.image_id):
        results = list(group)
        targets = torch.tensor([result.target for result in results])
        if len(set(targets.tolist())) < 2:
            continue
        x = model.normalize(results[0].image)
        names = [model.classifier.class_name(result.target) for result in results]
        captions: list[dict[str, str]] = [{} for _ in results]
        for method in runs:
            found = [result.found[method] for result in results if method in result.found]
            if len(found) < len(results):
                continue
            ways = {f"{share:.0%}": [delete_evidence(x, one.saliency()[0], share) for one in found] for share in SHARES}
            masks = [one for one in found if isinstance(one, Explanation)]
            if len(masks) == len(found):
                ways[OWN] = [x * (1 - one.evidence[0].to(x.device)) for one in masks]
            for deleted, without in ways.items():
                left = remaining_scores(model.plain, x, without, targets)
                remaining.setdefault((method, deleted), []).append(left)
                for a, row in enumerate(left.tolist()):
                    for b, value in enumerate(row):
                        pairs.add((image_id, names[a], names[b], method, deleted, value))
                    text = "\n".join(f"{name}: {value:.2f}" for name, value in zip(names, row, strict=True))
                    if deleted == f"{SHOWN:.0%}":
                        captions[a] |= {_column(method): text, _column(method, "mask"): text}
                    elif deleted == OWN:
                        captions[a][_column(method, "explanation")] = text
        drawn += zip(results, captions, strict=True)
    if not drawn:
        return False
    table = Table(("method", "deleted", "left of the own score", "left of the others' scores", "own falls more"))
    for key, all_left in remaining.items():
        table.add((*key, *summarize(all_left)))
    save_table(output / "discrimination", table)
    write_whole(output / "discrimination_pairs.csv", pairs.csv().encode())
    save_figure(output / "discrimination", _moves(drawn[:rows], list(runs), model.classifier))
    return True


def _moves(drawn: Sequence[tuple[Result, dict[str, str]]], methods: Sequence[str], classifier: Classifier) -> Figure:
    """The maps of several classes of one image, and the shares of the scores that remain without the evidence."""
    views = []
    for result, captions in drawn:
        own = _views(result, methods, classifier)
        joined = {name: "\n".join(filter(None, (more, captions.get(name)))) for name, (_, more) in own.items()}
        views.append({name: (view, joined[name]) for name, (view, _) in own.items()})
    note = (
        f"Below a map: the remaining share of each class's score if the {SHOWN:.0%} of the pixels with highest rank "
        f"are gray. Below an explanation: the remaining share if its own evidence is removed."
    )
    return _grid([result for result, _ in drawn], views, classifier, INCHES, note)
