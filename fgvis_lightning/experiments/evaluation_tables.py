"""Tables of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fgvis_lightning.experiments.judgements import Judgement
from fgvis_lightning.experiments.measured import AGAIN, FLOOR, METRICS
from fgvis_lightning.experiments.statistics import bootstrap, holm, sign_flip, with_interval
from fgvis_lightning.results.tables import Table

LEVEL = 0.05  # corrected p values below this level are marked


def item_table(judgements: Sequence[Judgement], metrics: Sequence[str], profile: str) -> Table:
    """A row for each item and method."""
    table = Table(("id", "image", "target", "method", "profile", *metrics))
    for one in judgements:
        table.add((one.id, one.image, one.target, one.method, profile, *(one.values.get(m, "") for m in metrics)))
    return table


def summary(
    judgements: Sequence[Judgement], methods: Sequence[str], reference: str, metrics: Sequence[str], profile: str
) -> tuple[Table, str]:
    """Means and paired differences with their intervals: a long table, and a table for people.

    Differences are tested by `sign_flip`. For each metric there is one test per method other than the reference, so
    `holm` corrects their p values; second seeds and floors are not methods and are not tested. Each interval is for a
    single difference.
    """
    table = Table(
        (
            *("method", "metric", "items", "mean", "from", "to", "difference", "difference from", "difference to"),
            *("p", "p corrected", "profile"),
        )
    )
    by_method = {name: {one.id: one for one in judgements if one.method == name} for name in methods}
    rivals = [name for name in methods if name != reference and not name.endswith((AGAIN, FLOOR))]
    tests: dict[tuple[str, str], list[float]] = {}
    for metric in metrics:
        found = [sign_flip(*_differences(by_method[name], by_method[reference], metric)) for name in rivals]
        for name, *both in zip(rivals, found, holm(found), strict=True):
            tests[name, metric] = both
    cells: dict[tuple[str, str], tuple[str, str]] = {}
    for name in methods:
        for metric in metrics:
            rows = [one for one in by_method[name].values() if metric in one.values]
            if not rows:
                continue
            mean = bootstrap(torch.tensor([one.values[metric] for one in rows]), [one.image for one in rows])
            differences, images = _differences(by_method[name], by_method[reference], metric)
            if name == reference or not images:
                table.add((name, metric, len(rows), *mean, *("",) * 5, profile))
                cells[name, metric] = with_interval(*mean), ""
                continue
            difference, (p, corrected) = bootstrap(differences, images), tests.get((name, metric), [math.nan] * 2)
            table.add((name, metric, len(rows), *mean, *difference, p, corrected, profile))
            cells[name, metric] = (
                with_interval(*mean),
                with_interval(*difference, "+.3f") + ("*" if corrected < LEVEL else ""),
            )
    shown = [metric for metric in metrics if any((name, metric) in cells for name in methods)]
    heads = [f"{metric} {'↑' if METRICS[metric].higher else '↓'}" for metric in shown]
    people = []
    for number in range(min(len(methods), 2)):  # with a single method there are no differences
        people.append(Table(("method", *heads)))
        for name in methods:
            people[-1].add((name, *(cells.get((name, metric), ("", ""))[number] for metric in shown)))
    told = (
        f"\nDifferences from {reference}, image by image, each with its own 95 % interval. Differences marked * are "
        f"significant at 5 %\nby a sign-flip test over images, with Holm's correction for the methods compared "
        f"with {reference}, separately for each metric:\n\n"
    )
    return table, told.join(one.markdown() for one in people)


def _differences(
    own: dict[str, Judgement], others: dict[str, Judgement], metric: str
) -> tuple[torch.Tensor, list[str]]:
    """Differences in one metric, for items where both methods have it; and their images."""
    pairs = [(one, others[id]) for id, one in own.items() if metric in one.values and metric in others[id].values]
    values = torch.tensor([one.values[metric] - other.values[metric] for one, other in pairs])
    return values, [one.image for one, _ in pairs]
