"""``python train.py evaluate``: how faithful are stored explanations?

Takes a folder of ``fit`` or ``compare``, optionally with your own maps, and judges all of them by the same network on
the same items, namely those that every method has::

    <output>/evaluation.csv, .md       each method's means with 95 % bootstrap intervals over images, and their
                                       differences from the reference method's, image by image, with p values
    <output>/evaluation_items.csv      each single item
    <output>/curves.pdf, .png          the mean deletion and insertion curves
    <output>/curves.safetensors        the curves of each item, (N,2,S): deletion and insertion
    <output>/judgements.jsonl          all of these numbers, so that the same command continues where it was stopped
    <output>/extremes.pdf, .png        the items of the reference method with the best and the worst deletion AUC
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from textwrap import fill

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.errors import InputError, one_of
from fgvis_lightning.experiments.arguments import add_device, build, new_parser
from fgvis_lightning.experiments.evaluation_tables import item_table, summary
from fgvis_lightning.experiments.judgements import Judgement, Judgements
from fgvis_lightning.experiments.judging import judge
from fgvis_lightning.experiments.measured import AGAIN, FLOOR, STANDARD, chosen_metrics, list_metrics
from fgvis_lightning.experiments.output import save_figure, save_table, write_config
from fgvis_lightning.experiments.own_maps import common_items, find_methods, read, saliency_of, stored
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.experiments.randomization import another_photo
from fgvis_lightning.metrics import PROFILES, find_profile
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.load import from_options
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.figures import as_rgb, brightened, explanation_image, grid, heat, made_visible
from fgvis_lightning.results.load import load_item
from fgvis_lightning.results.tensor_files import save_tensors, write_whole

OURS = "FGVis"
NAMED = 8  # methods with their own color in each panel of the curves: the best ones, and FGVis; the rest are gray


def make_parser() -> Parser:
    """The options of ``evaluate``."""
    parser = new_parser("evaluate", (__doc__ or "").partition("::")[0], "results/evaluation")
    parser.add_argument("--results", type=list[str] | str, required=True, help="Folder of fit or compare, or several.")
    parser.add_argument(
        "--maps",
        type=dict[str, str],
        default={},
        help="Name → folder of your own maps (H,W), high = evidence: <item id>.npy or .safetensors.",
    )
    parser.add_argument("--reference", type=str, default=OURS, help="Method with which the others are compared.")
    parser.add_argument("--profile", type=str, default="rise", help=f"Profile of the curves: {', '.join(PROFILES)}.")
    parser.add_argument(
        "--ties",
        type=str,
        default="random",
        help="Order of pixels of equal value: random, or first, from the top left.",
    )
    parser.add_argument(
        "--metrics",
        type=list[str] | str,
        default=STANDARD,
        help="Metrics by name, standard or all. In parentheses, network passes per image and method, where S "
        f"is the number of the profile: {list_metrics()}. Deletion and insertion are always measured.",
    )
    parser.add_argument(
        "--floors", type=bool, default=False, help="Also judge each method with its maps of other photos."
    )
    parser.add_argument("--extremes", type=int, default=10, help="Best and worst items in a figure; 0 for none.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images in one network pass.")
    add_device(parser)
    return parser


def main(args: Sequence[str]) -> None:
    """Parse the command line, judge, and write tables and figures."""
    parser = make_parser()
    config = parser.parse_args(list(args))
    profile = replace(find_profile(config.profile), ties=config.ties)
    if not config.results:
        raise InputError("Expected folders of fit or compare in --results, but got an empty list.")
    if config.batch_size < 1 or config.extremes < 0:
        raise InputError(
            f"Expected --batch_size of at least 1 and --extremes of at least 0, but got {config.batch_size} and "
            f"{config.extremes}."
        )
    metrics = chosen_metrics(config.metrics)
    methods = find_methods(config.results, config.maps)
    ids = common_items(methods)
    reference = _chosen_reference(config.reference, list(methods))
    told = f"{len(ids):,} items by {', '.join(methods)}"
    if config.floors:
        methods |= floors(methods, ids)
        told += ", and by their maps of other photos"
    objects = build(parser, config)
    classifier = from_options(**vars(objects.model))
    left_out = {name: len(found) - len(ids) for name, found in methods.items() if len(found) > len(ids)}
    print(f"{classifier.described}\n{told}")
    made_for = load_item(stored(methods)[ids[0]]).metadata.get("network", classifier.name)
    if made_for != classifier.name:
        print(f"The maps were made for {made_for}, but are judged by {classifier.name}.")
    if left_out:
        print(f"left out because some methods lack them: {left_out}")
    output = Path(config.output)
    write_config(output, parser.prog, parser.dump(config, skip_none=False))
    says = {
        **profile.describe(),
        "network": classifier.name,
        "weights": classifier.fingerprint(),
        "preprocessing": str(classifier.preprocessing),
        "task": classifier.task.name,
        "torch": torch.__version__,
        "fgvis-lightning": version("fgvis-lightning"),
    }
    depends = {**says, "model": config.model.as_dict(), "metrics": metrics}
    known = Judgements(output / "judgements.jsonl", depends, stored(methods))
    judgements = list(judge(methods, ids, classifier, config, profile, metrics, known))
    place = {name: number for number, name in enumerate(methods)}
    judgements.sort(key=lambda one: (one.id, place[one.method]))
    known.keep((name, id, paths[id]) for name, paths in methods.items() for id in ids)
    about = {**says, "reference": reference}
    write_whole(output / "evaluation.json", (json.dumps(about, indent=2) + "\n").encode())
    write_whole(output / "evaluation_items.csv", item_table(judgements, metrics, config.profile).csv().encode())
    table, markdown = summary(judgements, list(methods), reference, metrics, config.profile)
    save_table(output / "evaluation", table, markdown)
    print(f"\n{markdown}")
    _draw_curves(output / "curves", judgements, [name for name in methods if not name.endswith((AGAIN, FLOOR))])
    _save_curves(output / "curves.safetensors", judgements, config.profile)
    if config.extremes:
        _draw_extremes(output / "extremes", judgements, methods[reference], reference, classifier, config.extremes)
    sheet = f" and {output / 'extremes.png'}" if config.extremes else ""
    print(f"Look at {output / 'curves.png'}{sheet}; single items: {output / 'evaluation_items.csv'}")


def _chosen_reference(name: str, methods: Sequence[str]) -> str:
    """The method with this name; for the default, the first one by FGVis, or else the first one.

    Raises:
        InputError: if there is none with another name.
    """
    if name != OURS:
        one_of(methods, **{"--reference": name})
    if name in methods:
        return name
    return next((method for method in methods if method.startswith(OURS)), methods[0])


def floors(methods: Mapping[str, dict[str, Path]], ids: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Each method's maps, assigned to the next photo: their metrics do not depend on the photo.

    Raises:
        InputError: if there is only one photo.
    """
    source = stored(methods)
    others = another_photo([load_item(source[id]).metadata["image"] for id in ids])
    if not others:
        raise InputError("Expected at least two photos for --floors, but got items of only one.")
    return {
        name + FLOOR: {id: paths[ids[other]] for id, other in zip(ids, others, strict=True)}
        for name, paths in methods.items()
        if not name.endswith(AGAIN)
    }


def _save_curves(path: Path, judgements: Sequence[Judgement], profile: str) -> None:
    """Each item's deletion and insertion curve as one tensor ``curves`` (N,2,S); ``items`` names the N rows."""
    both = torch.tensor([(one.deletion, one.insertion) for one in judgements])
    items = json.dumps([(one.id, one.method) for one in judgements])
    save_tensors(path, {"curves": both}, {"items": items, "profile": profile})


def _draw_curves(path: Path, judgements: Sequence[Judgement], methods: Sequence[str]) -> None:
    """Mean score over the share of deleted or inserted pixels, for each method."""
    figure = Figure(figsize=(10, 4), dpi=200, layout="constrained")
    colors = dict(zip(methods, colormaps["tab20"].colors * len(methods), strict=False))  # type: ignore[attr-defined]
    for place, kind in zip(figure.subplots(1, 2, sharey=True), ("deletion", "insertion"), strict=True):
        own = {name: [one for one in judgements if one.method == name] for name in methods}
        auc = {name: sum(one.values[kind] for one in ones) / len(ones) for name, ones in own.items()}
        ranked = sorted(methods, key=lambda name: auc[name], reverse=kind == "insertion")
        named = [name for number, name in enumerate(ranked) if number < NAMED or name.startswith("FGVis")]
        for name in [name for name in ranked if name not in named] + named[::-1]:
            curve = torch.tensor([getattr(one, kind) for one in own[name]]).mean(0)
            share = torch.linspace(0, 100, len(curve))
            color, width = (colors[name], 1.2) if name in named else ("0.8", 0.8)
            label = f"{name}: {auc[name]:.3f}" if name in named else "_"
            place.plot(share, curve, label=label, color=color, linewidth=2.4 if name.startswith("FGVis") else width)
        handles, labels = place.get_legend_handles_labels()
        rest = f", and {len(ranked) - len(named)} more in gray" if len(ranked) > len(named) else ""
        title = f"area under the curve, best first{rest}"
        place.legend(handles[::-1], labels[::-1], fontsize=7, title=title, title_fontsize=7, frameon=False)
        place.set_xlabel(f"pixels {'deleted' if kind == 'deletion' else 'inserted'}, %")
        place.set_ylabel("score of the class" if kind == "deletion" else "")
        place.spines[["top", "right"]].set_visible(False)
    save_figure(path, figure)


def _draw_extremes(
    path: Path,
    judgements: Sequence[Judgement],
    files: Mapping[str, Path],
    method: str,
    classifier: Classifier,
    count: int,
) -> None:
    """The items of one method with the lowest and the highest deletion AUC, side by side."""
    ranked = sorted((one for one in judgements if one.method == method), key=lambda one: one.values["deletion"])
    count = min(count, (len(ranked) + 1) // 2)
    best, worst, bands = ranked[:count], ranked[::-1][:count], classifier.preprocessing.bands
    rows = []
    for pair in zip(best, worst, strict=True):
        row = []
        for one in pair:
            image = as_float(load_image(one.image, classifier.preprocessing, upscale=True))
            found = read(files[one.id])
            texts = [
                f"{fill(classifier.class_name(one.target), 18)}",
                f"deletion {one.values['deletion']:.3f}",
                f"insertion {one.values['insertion']:.3f}",
            ]
            if isinstance(found, Explanation):
                background = classifier.preprocessing.background().to(image)
                evidence, how = made_visible(found.evidence[0])
                texts[-1] += f"\n{how}" if how else ""
                shown = explanation_image(image, evidence, background, bands)
                views = [as_rgb(brightened(found.evidence[0]), bands), shown]
            else:
                saliency = saliency_of(found)[0]
                views = [heat(saliency), as_rgb(image * brightened(saliency), bands)]
            row += list(zip([as_rgb(image, bands), *views], texts, strict=True))
        rows.append(row)
    columns = ["best", method, "evidence", "worst", method, "evidence"]
    save_figure(path, grid(rows, columns, [str(number + 1) for number in range(count)], 1.3))
