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

from jsonargparse import Namespace

from fgvis_lightning.baselines.fgvis import FGVisMethod
from fgvis_lightning.bias import Pair
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.bias_figures import draw
from fgvis_lightning.experiments.bias_measures import measure
from fgvis_lightning.experiments.bias_tables import Tables
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.experiments.run import Run
from fgvis_lightning.experiments.sweeps import Methods, raise_problems, sweep, sweep_parser
from fgvis_lightning.names import slug
from fgvis_lightning.networks.preprocessing import COLORS

METHOD = "FGVis"


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
    """Parse the command line, explain, intervene, and compare.

    Raises:
        InputError: a user's mistake, or images that could not be read.
        RankFailedError: a process ended before its shard was done.
    """
    parser = make_parser()
    config = parser.parse_args(list(args))
    if not config.pairs:
        raise InputError("Expected pairs of a statistic with interventions, but got none. Give each one a name.")

    pairs: dict[str, Pair] = {}

    def methods(objects: Namespace) -> Methods:
        pairs.update(objects.pairs)
        return {METHOD: (objects.explainer, {})}

    runs, sums_up, problems = sweep(parser, config, methods, ["--data.images", ""])
    if sums_up:
        _sum_up(Path(config.output), runs[METHOD], pairs, config)
        raise_problems(problems, runs)


def _sum_up(output: Path, run: Run, pairs: dict[str, Pair], config: Namespace) -> None:
    """Save and print the tables and figures."""
    classifier = run.model.classifier
    names = classifier.preprocessing.names
    takes = f"channels in the order {classifier.order}" if names == COLORS else f"{len(names)} channel(s)"
    print(f"The network takes {takes}; misclassified images are left out.")
    for name, found in measure(run, pairs).items():
        tables = Tables(found, config.published)
        stem = output / slug(name)
        tables.save(stem)
        draw(stem, found, tables, run, config.rows)
        print(f"\n{name}: share of the images that stay right\n\n{tables.people.markdown()}")
        print(f"{tables.ranking.markdown()}\n{tables.agreement}")
        print(f"Look at {stem}_evidence.png, {stem}_agreement.png and {stem}_sheet.png")
