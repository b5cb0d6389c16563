"""``python train.py benchmark``: which method is the most faithful? Many methods, several networks, one page.

For each network, ``compare`` makes the maps, twice for methods that draw random numbers, and ``evaluate`` judges them.
Finished results are kept: if you stop the command and run it again, it continues::

    <output>/index.html                the page: tables, curves, pictures, and their configuration
    <output>/config.yaml
    <output>/<network>/maps/           results of ``compare``
    <output>/<network>/evaluation/     results of ``evaluate``
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.utilities import rank_zero_only

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments import comparison, evaluation
from fgvis_lightning.experiments.output import check_owner, write_config
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.experiments.sweeps import folders_of, sweep_parser
from fgvis_lightning.report.benchmark_page import write_benchmark
from fgvis_lightning.results.tensor_files import write_whole

ONLY = "network"  # name of the network if there is only one
MISTAKE = 2  # exit code of a command that left something out and reported it


def make_parser() -> Parser:
    """The options of ``benchmark``."""
    parser = sweep_parser("benchmark", (__doc__ or "").partition("::")[0], "results/benchmark")
    parser.add_argument(
        "--networks",
        type=dict[str, dict[str, Any]],
        default={},
        help="Name → differing options of --model. By default, only --model itself.",
    )
    parser.add_argument("--methods", type=dict[str, Method], required=True, help="As in compare.")
    parser.add_argument("--seeds", type=bool, default=True, help="As in compare.")
    parser.add_argument("--rows", type=int, default=12, help="As in compare.")
    parser.add_argument("--evaluate", type=dict[str, Any], default={}, help="Options of evaluate.")
    return parser


def main(args: Sequence[str]) -> None:
    """Parse the command line, make and judge the maps of each network, and write the page.

    Raises:
        InputError: a user's mistake; or methods that cannot explain a network, after everything else is done.
        SystemExit: with the status of a failed command, which has reported the reason.
    """
    parser = make_parser()
    config = parser.parse_args(list(args))
    output = Path(config.output)
    check_owner(output, parser.prog)
    settings: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_none=False))
    networks = config.networks or {ONLY: {}}
    folders = folders_of(output, networks, "networks")
    plans = {name: _plan(settings, folders[name], own) for name, own in networks.items()}
    parsers = comparison.make_parser(), evaluation.make_parser()
    for plan in plans.values():  # before the first run begins, so that mistakes are reported now
        for made, options in zip(parsers, plan, strict=True):
            made.parse_object(options)
    first = getattr(rank_zero_only, "rank", 0) == 0
    if first:
        write_config(output, parser.prog, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    left_out = []
    for name, (compare, evaluate) in plans.items():
        if _run("compare", compare):
            left_out.append(name)
        if first:
            _run("evaluate", evaluate)
            write_benchmark(output, list(plans))
            print(f"Look at {output / 'index.html'}", flush=True)
    if left_out:
        raise InputError(
            f"Expected methods that can explain every network, but some cannot explain {', '.join(left_out)} (see "
            f"above). The page has the others. Leave them out, or correct them and run the same command again."
        )


def _plan(settings: dict[str, Any], folder: Path, own: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configurations of ``compare`` and of ``evaluate`` for one network, whose results are in ``folder``."""
    model = _merged(settings["model"], own)
    maps = str(folder / "maps")
    compare = {name: settings[name] for name in ("data", "trainer", "methods", "seeds", "rows")}
    evaluate = {"device": settings["trainer"]["accelerator"], **settings["evaluate"]}
    if evaluate["device"] == "gpu":
        evaluate["device"] = "auto"
    own_results = {"results": [maps], "model": model, "output": str(folder / "evaluation")}
    return {**compare, "model": model, "output": maps}, {**evaluate, **own_results}


def _merged(options: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Options with replacements, one by one within groups; a network is replaced completely."""
    result = deepcopy(options)
    for name, value in own.items():
        group = result.get(name)
        within = isinstance(value, dict) and isinstance(group, dict) and "class_path" not in value
        result[name] = _merged(group, value) if within else value  # type: ignore[arg-type]
    return result


def _run(command: str, config: dict[str, Any]) -> bool:
    """Run a command in its own process, exit if it fails, and return whether it left something out."""
    output = Path(config["output"])
    output.mkdir(parents=True, exist_ok=True)
    path = output.with_name(f"{command}.yaml")
    write_whole(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
    process = subprocess.Popen([sys.executable, "-m", "fgvis_lightning", command, "--config", str(path)])
    try:
        code = process.wait()
    except BaseException:
        process.terminate()  # finished results are kept
        process.wait()
        raise
    if code == MISTAKE and command == "compare" and any(output.glob("*/explanations/*")):
        return True
    if code:
        sys.exit(code)
    return False
