"""The tables of a bias analysis."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from fgvis_lightning.experiments.bias_measures import Findings
from fgvis_lightning.experiments.output import save_table
from fgvis_lightning.experiments.statistics import wilson, with_interval
from fgvis_lightning.metrics import rank_correlation
from fgvis_lightning.results.tables import Table

NAN = float("nan")
IMAGES = "images"  # key for the number of images behind the published shares


class Ranked(NamedTuple):
    """A class with both measures, each with its interval."""

    target: int
    images: int
    by_explanations: list[float]
    by_interventions: list[float]


class Tables:
    """The findings by class. Values without any image are NaN, shown as "undefined" in tables.

    ``published``: class → intervention → published share that stayed right; and ``images``, their number.
    """

    def __init__(self, found: Findings, published: Mapping[str, Mapping[str, float]]) -> None:
        self.found = found
        self.published = {name.lower(): dict(values) for name, values in published.items()}

    def save(self, stem: Path) -> None:
        """Save the tables as files whose names begin with the name of ``stem``."""
        for kind, table in (("evidence", self.evidence), ("ranking", self.ranking), ("items", self.items)):
            save_table(stem.with_name(f"{stem.name}_{kind}"), table)
        save_table(stem.with_name(f"{stem.name}_interventions"), self.interventions, self.people.markdown())

    @cached_property
    def evidence(self) -> Table:
        """Each class's statistics: of the evidence, of the images themselves, and the difference."""
        table = Table(
            (
                *("class", "images", "statistic", "evidence", "from", "to"),
                *("image", "image from", "image to", "difference", "difference from", "difference to"),
            )
        )
        for index, name in self.found.classes.items():
            items = self.found.right(index)
            for statistic, *values in zip(self.found.pair.statistic.names, *self.found.statistics(items), strict=True):
                table.add((name, len(items), statistic, *torch.cat(values).tolist()))
        return table

    @cached_property
    def interventions(self) -> Table:
        """Each class's share of images that stay right, for each intervention."""
        columns = ["class", "images", "right", "intervention", "stay right", "from", "to", "mean score"]
        table = Table([*columns, "published", "published from", "published to"] if self.published else columns)
        for index, name in self.found.classes.items():
            items, count = self.found.right(index), len(self.found.images(index))
            single = [*self.found.interventions, *self.found.controls]
            for change, parts in {**{one: [one] for one in single}, **self.found.averages}.items():
                scores = [sum(item.scores[part] for part in parts) / len(parts) for item in items]
                score = sum(scores) / len(scores) if scores else NAN
                row = (name, count, len(items), change, *self.found.stays(items, parts), score)
                table.add((*row, *self._elsewhere(name, change)) if self.published else row)
        return table

    @cached_property
    def people(self) -> Table:
        """The shares that stay right, a row for each class, followed by a row of published shares if there are any."""
        changes = list(dict.fromkeys(str(row[3]) for row in self.interventions.rows))
        table = Table(("class", "images", "right", *changes))
        for name in self.found.classes.values():
            rows = [row for row in self.interventions.rows if row[0] == name]
            table.add((*rows[0][:3], *(row[4] for row in rows)))
            if any(row[-3] != "" for row in rows) and self.published:
                known = self.published[name.lower()].get(IMAGES, "")
                cells = (str(row[-3]) if row[-1] == "" else with_interval(*row[-3:]) for row in rows)
                table.add(("…published", "", known, *cells))
        return table

    def _elsewhere(self, name: str, change: str) -> tuple[float | str, float | str, float | str]:
        """The published share of a class and its Wilson interval, as far as known."""
        published = self.published.get(name.lower(), {})
        if change not in published:
            return "", "", ""
        images = round(published.get(IMAGES, 0))
        return published[change], *(wilson(published[change] * images, images) if images else ("", ""))

    @cached_property
    def ranked(self) -> list[Ranked]:
        """The classes in order of dependence, highest first, by the mean of the ranks in both measures."""
        rows = []
        for index in self.found.classes:
            items = self.found.right(index)
            both = self.found.by_explanations(items), self.found.by_interventions(items)
            rows.append(Ranked(index, len(items), *both))
        known = [row for row in rows if row.by_explanations[0] == row.by_explanations[0] and row.images]

        def rank(row: Ranked) -> int:
            mine = row.by_explanations[0], row.by_interventions[0]
            others = [(other.by_explanations[0], other.by_interventions[0]) for other in known]
            return sum((mine[k] > other[k]) - (mine[k] < other[k]) for other in others for k in (0, 1))

        return [*sorted(known, key=rank, reverse=True), *(row for row in rows if row not in known)]

    @cached_property
    def ranking(self) -> Table:
        """The classes in order of dependence."""
        table = Table(
            (
                *("class", "images", "by explanations", "explanations from", "explanations to"),
                *("by interventions", "interventions from", "interventions to"),
            )
        )
        for row in self.ranked:
            table.add((self.found.classes[row.target], row.images, *row.by_explanations, *row.by_interventions))
        return table

    @cached_property
    def agreement(self) -> str:
        """A sentence on how well the two measures agree on the order of the classes."""
        both = torch.tensor([(row.by_explanations[0], row.by_interventions[0]) for row in self.ranked if row.images])
        both = both[~both.isnan().any(1)] if len(both) else torch.empty(0, 2)
        if len(both) < 3:
            return f"{len(both)} classes are too few: the agreement of the two measures is undefined."
        generator = torch.Generator().manual_seed(0)
        x, y = both.T[:, None, None]
        middle = rank_correlation(x, y)
        if bool(middle.isnan()):
            return f"One measure is equal for all {len(both)} classes: the agreement of the two measures is undefined."
        shuffled = torch.stack([torch.randperm(len(both), generator=generator) for _ in range(9999)])
        chance = rank_correlation(x.expand(9999, -1, -1), y[0, 0][shuffled][:, None])
        as_large = (int((chance.abs() >= middle.abs() - 1e-6).sum()) + 1) / 10_000
        shown = f"p = {as_large:.2f}" if as_large >= 0.01 else "p < 0.01"
        return (
            f"Rank correlation of the two measures over {len(both)} classes: {float(middle):.2f} "
            f"({shown}, permutation test)."
        )

    @cached_property
    def items(self) -> Table:
        """A row for each image."""
        names = self.found.pair.statistic.names
        changes = [*self.found.interventions, *self.found.controls]
        table = Table(
            (
                *("id", "image", "class", "right", "score"),
                *(f"{kind}: {name}" for kind in ("evidence", "image") for name in names),
                *(f"{what}: {change}" for what in ("right after", "score after") for change in changes),
            )
        )
        for item in self.found.items:
            table.add(
                (
                    *(item.id, item.image, self.found.classes[item.target], item.right, item.scores[""]),
                    *(*item.evidence.tolist(), *item.contrast.tolist()),
                    *(*(item.stays[change] for change in changes), *(item.scores[change] for change in changes)),
                )
            )
        return table
