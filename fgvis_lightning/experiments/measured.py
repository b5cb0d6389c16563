"""The metrics of ``python train.py evaluate``, and its default choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fgvis_lightning.errors import one_of

ALL, STANDARD = "all", "standard"
ALWAYS = "deletion", "insertion"  # always measured, since their curves are drawn
AGAIN = " (another seed)"  # suffix of a method's second run, which shows how much two runs of one method differ
FLOOR = " (another photo's)"  # suffix of a method whose maps are assigned to other photos


@dataclass(frozen=True)
class Measured:
    """A column of the tables."""

    higher: bool  # whether higher is better
    passes: str = ""  # network passes per image and method; S is the number of the profile, 29 for RISE's at 224 by 224
    standard: bool = True  # whether it is measured by default
    shares: str = ""  # the metric whose passes it shares


METRICS = {
    "deletion": Measured(False, "S"),
    "insertion": Measured(True, "S"),
    "insertion from gray": Measured(True, "S, or none if the profile inserts into gray"),
    "ROAD": Measured(True, "18", standard=False),
    "sensitivity-n": Measured(True, "300", standard=False),
    "infidelity": Measured(False, "51", standard=False),
    "average drop": Measured(False, "2"),
    "average drop min-max": Measured(False, shares="average drop"),
    "increase": Measured(True, shares="average drop"),
    "p(e)": Measured(True, "1"),
    "score kept": Measured(True, shares="p(e)"),
    "average drop as is": Measured(False, standard=False, shares="p(e)"),
    "class kept": Measured(True, shares="p(e)"),
    "CP entropy": Measured(True, shares="p(e)"),
    "CP l1": Measured(True, shares="p(e)"),
    "hallucination": Measured(False, "0"),
    "size": Measured(False, "0"),
    "sparsity": Measured(True, "0", standard=False),
    "connectedness": Measured(True, "0"),
}
"""Name → properties, in the order of the columns."""


def chosen_metrics(names: str | Sequence[str]) -> list[str]:
    """Names of metrics in the order of the columns, from names, ``standard`` or ``all``; others raise `InputError`."""
    names = [names] if isinstance(names, str) else names
    for name in names:
        one_of((ALL, STANDARD, *METRICS), **{"--metrics": name})
    return [
        name
        for name, metric in METRICS.items()
        if name in (*ALWAYS, *names) or ALL in names or (STANDARD in names and metric.standard)
    ]


def list_metrics() -> str:
    """The metrics with their costs, for a help text."""
    told = []
    for name, metric in METRICS.items():
        passes = metric.passes or f"with {metric.shares}"
        told.append(f"{name} ({passes}{'' if metric.standard else ', not standard'})")
    return ", ".join(told)
