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

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.comparison_figures import sum_up
from fgvis_lightning.experiments.measured import AGAIN
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.experiments.randomization import reseeded
from fgvis_lightning.experiments.sweeps import Methods, raise_problems, sweep, sweep_parser


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
    """Parse the command line, run all methods, and draw.

    Raises:
        InputError: a user's mistake, images that could not be read, or methods that cannot explain the network.
        RankFailedError: a process ended before its shard was done.
    """
    parser = make_parser()
    config = parser.parse_args(list(args))
    if not config.methods:
        raise InputError("Expected methods to compare, but got none. Give each one a name and a class_path.")

    def methods(objects: Namespace) -> Methods:
        chosen: dict[str, tuple[Method, dict[str, Any]]] = {}
        for name, method in objects.methods.items():
            parameters = config.methods[name].as_dict()
            chosen[shown(name, method)] = method, parameters
            if config.seeds and (other := reseeded(method)) is not None:
                own = {**(parameters.get("init_args") or {}), "seed": getattr(other, "seed")}  # noqa: B009
                chosen[shown(name, method) + AGAIN] = other, {**parameters, "init_args": own}
        return chosen

    runs, sums_up, problems = sweep(parser, config, methods, ["--data.images", "", "--methods", "{}"])
    if sums_up:
        once = [name for name in runs if not name.endswith(AGAIN)]
        sum_up(Path(config.output), runs, once, config.rows, config.crop)
        raise_problems(problems, runs)


def shown(name: str, method: Method) -> str:
    """Name of a method in tables, figures and files; it says cheap if the effort is below the authors'."""
    return f"{name} (cheap)" if method.cheap and "cheap" not in name.lower() else name
