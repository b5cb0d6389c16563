"""``python train.py evaluate``: how faithful are stored explanations?

Takes a folder of ``fit`` or ``compare``, and maps of your own beside it, and judges all of them by the same network on
the same items, those that every method has::

    <output>/evaluation.csv, .md       each method's means with 95 % bootstrap intervals over images, and their
                                       differences from the reference method's, image by image
    <output>/evaluation_items.csv      each item by itself
    <output>/curves.pdf, .png          the mean deletion and insertion curves
    <output>/curves.safetensors        those of each item, (N,2,S): deletion and insertion
    <output>/extremes.pdf, .png        the items of the reference method with the best and the worst deletion AUC
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgvis_lightning.answers import checked
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.arguments import add_device, build, chosen_device, new_parser
from fgvis_lightning.experiments.evaluation_figures import draw_curves, draw_extremes
from fgvis_lightning.experiments.own_maps import read
from fgvis_lightning.experiments.statistics import bootstrap
from fgvis_lightning.folder import files
from fgvis_lightning.images import load_image
from fgvis_lightning.method.games import blend, probability
from fgvis_lightning.metrics import (
    PROFILES,
    auc,
    average_drop,
    average_increase,
    class_kept,
    connectedness,
    curves,
    find_profile,
    highlight,
    score_preserved,
    sparsity,
)
from fgvis_lightning.network import Classifier, load_classifier
from fgvis_lightning.parsing import Parser
from fgvis_lightning.store import SUFFIX, Attribution, Explanation, load_item, save_tensors, write_whole
from fgvis_lightning.tables import Table

METRICS = {
    "deletion": False,
    "insertion": True,
    "average drop": False,
    "increase": True,
    "score kept": True,
    "class kept": True,
    "sparsity": True,
    "connectedness": True,
}
"""Name → whether higher is better."""

ROWS = 8
"""Items whose images are in memory at once."""


@dataclass(frozen=True)
class Judgement:
    """What was measured of one item by one method.

    Attributes:
        id: of the item.
        image: path of the image.
        target: index of the class.
        method: its name.
        values: by metric; those that a map without a mask does not have are missing.
        deletion: the curve (S,).
        insertion: likewise.
    """

    id: str
    image: str
    target: int
    method: str
    values: dict[str, float]
    deletion: Tensor
    insertion: Tensor


def make_parser() -> Parser:
    """The options of ``evaluate``."""
    parser = new_parser("evaluate", (__doc__ or "").partition("::")[0], "results/evaluation")
    parser.add_argument("--results", type=list[str], required=True, help="Folders of fit or compare.")
    parser.add_argument(
        "--maps",
        type=dict[str, str],
        default={},
        help="Name → folder of your own maps (H,W), high = evidence: <item id>.npy or .safetensors.",
    )
    parser.add_argument("--reference", type=str, default="FGVis", help="Method that the others are compared with.")
    parser.add_argument("--profile", type=str, default="rise", help=f"Of the curves: {', '.join(PROFILES)}.")
    parser.add_argument("--extremes", type=int, default=10, help="Best and worst items in a figure; 0 for none.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images in one network pass.")
    add_device(parser)
    return parser


def main(args: Sequence[str]) -> None:
    """Parse the command line, judge, and write tables and figures.

    Raises:
        InputError: nothing to judge, files that cannot be read, or maps that do not fit.
    """
    parser = make_parser()
    config = parser.parse_args(list(args))
    profile = find_profile(config.profile)
    methods = find_methods(config.results, config.maps)
    ids = sorted(set.intersection(*(set(found) for found in methods.values())))
    if not ids:
        counts = ", ".join(f"{name} {len(found)}" for name, found in methods.items())
        raise InputError(f"Expected items that all methods have, but there are none among theirs: {counts}.")
    reference = config.reference if config.reference in methods else next(iter(methods))
    objects = build(parser, config, ["--results", "[]"])
    classifier = load_classifier(**vars(objects.model))
    left_out = {name: len(found) - len(ids) for name, found in methods.items() if len(found) > len(ids)}
    print(f"network: {classifier.name}; {classifier.preprocessing}\n{len(ids):,} items by {', '.join(methods)}")
    if left_out:
        print(f"left out, since not all methods have them: {left_out}")
    judgements = list(judge(methods, ids, classifier, config))
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "config.yaml", parser.dump(config, skip_none=False).encode())
    says = {
        **profile.describe(),
        "network": classifier.name,
        "weights": classifier.fingerprint(),
        "preprocessing": str(classifier.preprocessing),
        "torch": torch.__version__,
    }
    write_whole(output / "evaluation.json", (json.dumps(says, indent=2) + "\n").encode())
    write_whole(output / "evaluation_items.csv", item_table(judgements, config.profile).csv().encode())
    table, markdown = summary(judgements, list(methods), reference, config.profile)
    write_whole(output / "evaluation.csv", table.csv().encode())
    write_whole(output / "evaluation.md", markdown.encode())
    print(f"\n{markdown}")
    draw_curves(output / "curves", judgements, list(methods))
    save_curves(output / "curves.safetensors", judgements, config.profile)
    if config.extremes:
        draw_extremes(output / "extremes", judgements, methods[reference], reference, classifier, config.extremes)
    sheet = f" and {output / 'extremes.png'}" if config.extremes else ""
    print(f"Look at {output / 'curves.png'}{sheet}; each item by itself: {output / 'evaluation_items.csv'}")


def find_methods(results: Sequence[str], maps: dict[str, str]) -> dict[str, dict[str, Path]]:
    """Name of a method → item id → its file.

    Raises:
        InputError: a folder has none, or two methods have one name.
    """
    found: dict[str, dict[str, Path]] = {}

    def add(name: str, paths: dict[str, Path]) -> None:
        if name in found:
            raise InputError(f"Expected methods with names of their own, but {name} is there twice.")
        found[name] = paths

    for source in results:
        folder, before = Path(source), len(found)
        for each in [folder] if any(files(folder)) else sorted(sub for sub in folder.glob("*") if sub.is_dir()):
            paths = list(files(each))
            if paths:
                add(_name_of(paths[0], each), {path.name.removesuffix(SUFFIX): path for path in paths})
        if len(found) == before:
            raise InputError(f"Expected a folder of fit or compare, but there are no explanations in {folder}.")
    for name, source in maps.items():
        paths = [path for path in Path(source).glob("*") if path.suffix in (".npy", SUFFIX)]
        if not paths:
            raise InputError(f"Expected maps <item id>.npy or <item id>{SUFFIX}, but there are none in {source}.")
        add(name, {path.name.removesuffix(path.suffix): path for path in paths})
    return found


def _name_of(path: Path, folder: Path) -> str:
    item = load_item(path)
    return item.method if isinstance(item, Attribution) else folder.name


def judge(
    methods: dict[str, dict[str, Path]], ids: Sequence[str], classifier: Classifier, config: Any
) -> Iterator[Judgement]:
    """Measure every item by every method, a few images at a time.

    Raises:
        InputError: an image or a map cannot be read, or a map has another size than the network's input.
    """
    device = chosen_device(config.device)
    network = classifier.network.to(device).to(memory_format=torch.channels_last)
    profile = find_profile(config.profile)
    first = next(iter(name for name in methods if any(path.suffix == SUFFIX for path in methods[name].values())))
    for start in range(0, len(ids), ROWS):
        chosen = ids[start : start + ROWS]
        known = [load_item(methods[first][id]) for id in chosen]
        images = [load_image(item.metadata["image"], classifier.preprocessing, upscale=True) / 255 for item in known]
        x = classifier.preprocessing.normalize(torch.stack(images)).to(device)
        x = x.contiguous(memory_format=torch.channels_last)
        targets = torch.cat([item.targets for item in known]).to(device)
        with torch.no_grad():
            clean = checked(network(x), x, classifier).float()
        for name, paths in methods.items():
            items = [read(paths[id]) for id in chosen]
            saliency = torch.cat([item if isinstance(item, Tensor) else item.saliency() for item in items]).to(device)
            if saliency.shape != x[:, 0].shape:
                raise InputError(
                    f"Expected maps of {tuple(x.shape[-2:])}, the network's input, but those of {name} have "
                    f"{tuple(saliency.shape[-2:])}. Give the network and the size that made them (--model.size)."
                )
            deletion, insertion = curves(network, x, saliency, targets, profile, config.batch_size)
            values = {"deletion": auc(deletion, profile), "insertion": auc(insertion, profile)}
            values |= _confidence(network, x, saliency, targets, clean)
            if all(isinstance(item, Explanation) for item in items):
                values |= _of_masks(network, x, items, targets, clean)
            for row, (id, item) in enumerate(zip(chosen, known, strict=True)):
                numbers = {metric: float(value[row]) for metric, value in values.items()}
                yield Judgement(
                    id,
                    item.metadata["image"],
                    int(item.targets),
                    name,
                    numbers,
                    deletion[row].cpu(),
                    insertion[row].cpu(),
                )
        print(f"{min(start + ROWS, len(ids)):,} of {len(ids):,} items judged", flush=True)


@torch.no_grad()
def _confidence(network: Any, x: Tensor, saliency: Tensor, targets: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Average drop and increase: what the map multiplied on the image does to the score."""
    after = probability(network(highlight(x, saliency)).float(), targets)
    before = probability(clean, targets)
    return {"average drop": average_drop(after, before), "increase": average_increase(after, before)}


@torch.no_grad()
def _of_masks(network: Any, x: Tensor, items: Sequence[Any], targets: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """What only masks have: the evidence is an image by itself."""
    evidence = torch.cat([item.evidence for item in items]).to(x)
    logits = network(blend(x, evidence, None)).float()
    return {
        "score kept": score_preserved(probability(logits, targets), probability(clean, targets)),
        "class kept": class_kept(logits, clean.argmax(1)),
        "sparsity": sparsity(evidence),
        "connectedness": connectedness(evidence),
    }


def save_curves(path: Path, judgements: Sequence[Judgement], profile: str) -> None:
    """Each item's deletion and insertion curve as one tensor ``curves`` (N,2,S); ``items`` names the N rows."""
    both = torch.stack([torch.stack([one.deletion, one.insertion]) for one in judgements])
    items = json.dumps([(one.id, one.method) for one in judgements])
    save_tensors(path, {"curves": both.float()}, {"items": items, "profile": profile})


def item_table(judgements: Sequence[Judgement], profile: str) -> Table:
    """A row for each item and method."""
    table = Table(("id", "image", "target", "method", "profile", *METRICS))
    for one in judgements:
        table.add((one.id, one.image, one.target, one.method, profile, *(one.values.get(m, "") for m in METRICS)))
    return table


def _cell(numbers: tuple[float, float, float], form: str) -> str:
    """Mean and interval; the mean alone where one image leaves no interval."""
    mean, low, high = (format(number, form) for number in numbers)
    return mean if math.isnan(numbers[1]) else f"{mean} [{low}, {high}]"


def summary(judgements: Sequence[Judgement], methods: Sequence[str], reference: str, profile: str) -> tuple[Table, str]:
    """Means and paired differences with their intervals: a long table, and one for people."""
    table = Table(
        ("method", "metric", "items", "mean", "from", "to", "difference", "difference from", "difference to", "profile")
    )
    cells: dict[tuple[str, str], tuple[str, str]] = {}
    by_method = {name: {one.id: one for one in judgements if one.method == name} for name in methods}
    for name in methods:
        for metric in METRICS:
            rows = [one for one in by_method[name].values() if metric in one.values]
            if not rows:
                continue
            mean = bootstrap(torch.tensor([one.values[metric] for one in rows]), [one.image for one in rows])
            pairs = [(one, by_method[reference][one.id]) for one in rows]
            pairs = [(one, other) for one, other in pairs if metric in other.values and name != reference]
            differences = torch.tensor([one.values[metric] - other.values[metric] for one, other in pairs])
            difference = bootstrap(differences, [one.image for one, _ in pairs])
            table.add((name, metric, len(rows), *mean, *(difference if pairs else ("",) * 3), profile))
            cells[name, metric] = (
                _cell(mean, ".3f"),
                _cell(difference, "+.3f") if pairs else "",
            )
    shown = [metric for metric in METRICS if any((name, metric) in cells for name in methods)]
    heads = [f"{metric} {'↑' if METRICS[metric] else '↓'}" for metric in shown]
    text = ""
    titles = ["", f"\nDifferences from {reference}, image by image:\n\n"]
    for number, title in enumerate(titles[: len(methods)]):  # one method differs from none
        people = Table(("method", *heads))
        for name in methods:
            people.add((name, *(cells.get((name, metric), ("", ""))[number] for metric in shown)))
        text += title + people.markdown()
    return table, text
