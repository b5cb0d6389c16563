"""The page of a benchmark: for each network a table of all methods, the losses of the reference, and pictures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fgvis_lightning.experiments.evaluation_tables import LEVEL
from fgvis_lightning.experiments.measured import AGAIN, FLOOR, METRICS
from fgvis_lightning.names import slug
from fgvis_lightning.report.page import fill, template
from fgvis_lightning.results.numbers import as_number
from fgvis_lightning.results.tensor_files import write_whole

FIGURES = {
    "evaluation/curves.png": "Mean score of the class during deletion and insertion of pixels.",
    "maps/comparison.png": "The photos with the maps of all methods.",
    "evaluation/extremes.png": "The reference method's best and worst items by deletion.",
}
"""Possible figures of a network, with captions."""

KINDS = ("method", "another seed", "floor")  # in the order of the table
COSTS = ("forward passes", "backward passes", "seconds")


def write_benchmark(output: Path, networks: Sequence[str]) -> None:
    """Write ``index.html`` into a benchmark's folder; networks without results are listed as missing."""
    done = [name for name in networks if (output / slug(name) / "evaluation" / "evaluation.csv").exists()]
    page = fill(
        "benchmark.html.j2",
        results=[read(output, name) for name in done],
        missing=[name for name in networks if name not in done],
        config=(output / "config.yaml").read_text(encoding="utf-8"),
        style=template("style.css"),
    )
    write_whole(output / "index.html", page.encode())


def read(output: Path, name: str) -> dict[str, Any]:
    """Read the results of one network, for its part of the page.

    Returns:
        ``name`` of the network; ``folder`` with its results, relative to the page; ``says``, the settings of the
        evaluation; number of ``items`` behind the means; names of ``metrics``, with an arrow; ``lines`` of the table,
        methods first, then other seeds, then floors, with ``cells`` by metric and ``cost``, passes and seconds per
        image; ``losses``, sentences on metrics in which the reference is not the best; ``figures``, address and
        caption.
    """
    folder = output / slug(name)
    says = json.loads((folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    reference = says["reference"]
    rows = _rows(folder / "evaluation" / "evaluation.csv")
    costs = {row["method"]: row for row in _rows(folder / "maps" / "costs.csv")}
    metrics = [metric for metric in METRICS if any(row["metric"] == metric for row in rows)]
    table = {(row["method"], row["metric"]): row for row in rows}
    kinds = {row["method"]: _kind(row["method"]) for row in rows}
    compared = [method for method, kind in kinds.items() if kind == "method"]
    best = {metric: _best(table, metric, compared) for metric in metrics}
    lines = [
        {
            "method": method,
            "kind": kind,
            "cells": [
                _cell(table.get((method, metric)), metric, method == best[metric], method == reference)
                for metric in metrics
            ],
            "cost": [_spent(_float(costs.get(method), f"{what} per image")) for what in COSTS],
        }
        for method, kind in sorted(kinds.items(), key=lambda pair: KINDS.index(pair[1]))
    ]
    return {
        "name": name,
        "folder": slug(name),
        "says": {key: str(value) for key, value in says.items()},
        "items": max(int(row["items"]) for row in rows),
        "metrics": [f"{metric} {'↑' if METRICS[metric].higher else '↓'}" for metric in metrics],
        "lines": lines,
        "losses": list(_losses(table, best, compared, reference)),
        "figures": [(quote(f"{slug(name)}/{at}"), text) for at, text in FIGURES.items() if (folder / at).exists()],
    }


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _kind(method: str) -> str:
    return "another seed" if method.endswith(AGAIN) else "floor" if method.endswith(FLOOR) else "method"


def _cell(row: Mapping[str, str] | None, metric: str, best: bool, reference: bool) -> dict[str, Any] | None:
    """A mean, its 95 % interval (empty for a single photo), whether it is the best, and `_than` the reference's.

    None without a value.
    """
    mean = _float(row, "mean")
    if row is None or math.isnan(mean):
        return None
    low, high = _float(row, "from"), _float(row, "to")
    interval = "" if math.isnan(low) else f"{low:.3f} to {high:.3f}"
    than = "" if reference else _than(row, metric)
    return {"mean": f"{mean:.3f}", "interval": interval, "best": best, "than_reference": than}


def _best(table: Mapping[tuple[str, str], Mapping[str, str]], metric: str, rivals: Sequence[str]) -> str:
    """The method with the best mean of a metric; empty if all means are equal."""
    means = {name: _float(table.get((name, metric)), "mean") for name in rivals}
    known = {name: mean if METRICS[metric].higher else -mean for name, mean in means.items() if not math.isnan(mean)}
    return max(known, key=lambda name: known[name]) if len(set(known.values())) > 1 else ""


def _than(row: Mapping[str, str], metric: str) -> str:
    """Comparison of a method with the reference, by the test corrected for the number of methods."""
    p, difference = _float(row, "p corrected"), _float(row, "difference")
    if math.isnan(p) or p >= LEVEL:
        return "no different"
    return "better" if (difference > 0) == METRICS[metric].higher else "worse"


def _losses(
    table: Mapping[tuple[str, str], Mapping[str, str]], bests: Mapping[str, str], rivals: Sequence[str], reference: str
) -> Iterator[str]:
    """Metrics in which the reference is not the best, with the best method and the difference."""
    for metric, best in bests.items():
        row = table.get((best, metric))
        if row is None or best == reference or (reference, metric) not in table:
            continue
        low, high, difference = (_float(row, f"difference{end}") for end in (" from", " to", ""))
        beaten = [name for name in rivals if _than(table.get((name, metric), {}), metric) == "better"]
        sure = f"; significantly better: {', '.join(beaten)}" if beaten else "; no method is significantly better"
        yield f"{metric}: {best} is the best, by {abs(difference):.3f} ({low:+.3f} to {high:+.3f}){sure}."


def _float(row: Mapping[str, str] | None, column: str) -> float:
    """The number in a column; NaN if there is none."""
    return as_number((row or {}).get(column))


def _spent(number: float) -> str:
    """Passes or seconds to three digits."""
    return "" if math.isnan(number) else f"{number:.3g}" if number < 1000 else f"{number:,.0f}"
