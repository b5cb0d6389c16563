"""What ``python train.py evaluate`` can measure, and what it measures unless told otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fgvis_lightning.errors import InputError, nearest

ALL, STANDARD = "all", "standard"
ALWAYS = "deletion", "insertion"
"""Their curves are drawn."""

AGAIN = " (another seed)"
"""After the name of a method that is run once more: how much two runs of one method differ."""

FLOOR = " (another photo's)"
"""After the name of a method whose maps are given to other photos than theirs."""


@dataclass(frozen=True)
class Measured:
    """A column of the tables.

    Attributes:
        higher: whether higher is better.
        passes: network passes of each image and method; S are those of the profile, 29 of RISE's at 224 by 224.
        standard: whether it is measured without being asked for.
    """

    higher: bool
    passes: str
    standard: bool = True


METRICS = {
    "deletion": Measured(False, "S"),
    "insertion": Measured(True, "S"),
    "insertion from gray": Measured(True, "S, none where the profile inserts into gray"),
    "ROAD": Measured(True, "18", standard=False),
    "sensitivity-n": Measured(True, "300", standard=False),
    "infidelity": Measured(False, "51", standard=False),
    "average drop": Measured(False, "1"),
    "average drop min-max": Measured(False, "1"),
    "increase": Measured(True, "that of average drop"),
    "p(e)": Measured(True, "1"),
    "score kept": Measured(True, "that of p(e)"),
    "average drop as is": Measured(False, "that of p(e)", standard=False),
    "class kept": Measured(True, "that of p(e)"),
    "CP entropy": Measured(True, "that of p(e)"),
    "CP l1": Measured(True, "that of p(e)"),
    "hallucination": Measured(False, "0"),
    "size": Measured(False, "0"),
    "sparsity": Measured(True, "0", standard=False),
    "connectedness": Measured(True, "0"),
}
"""Name → what to know of it, in the order of the columns."""


def chosen_metrics(names: str | Sequence[str]) -> list[str]:
    """Names of metrics in the order of the columns.

    Args:
        names: some of `METRICS`, ``standard`` for those that are, ``all`` for all.

    Raises:
        InputError: an unknown name.
    """
    names = [names] if isinstance(names, str) else names
    known = [ALL, STANDARD, *METRICS]
    for name in names:
        if name not in known:
            raise InputError(
                f"Expected --metrics to name some of {', '.join(known)}, but got {name!r}.{nearest(name, known)}"
            )
    return [
        name
        for name, metric in METRICS.items()
        if name in (*ALWAYS, *names) or ALL in names or (STANDARD in names and metric.standard)
    ]


def list_metrics() -> str:
    """The metrics with their costs, for a help text."""
    told = [
        f"{name} ({metric.passes}{'' if metric.standard else ', not standard'})" for name, metric in METRICS.items()
    ]
    return ", ".join(told)
