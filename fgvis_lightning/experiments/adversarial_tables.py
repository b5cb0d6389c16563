"""Tables of `adversarial`: how often the false class came out on top, and for which pairs of image and class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgvis_lightning.data.explained import load_explanation
from fgvis_lightning.data.images import load_image
from fgvis_lightning.data.items import Item
from fgvis_lightning.experiments.attack import OWN, Start, named
from fgvis_lightning.experiments.run import SweepRun
from fgvis_lightning.experiments.statistics import wilson
from fgvis_lightning.method.games import blend
from fgvis_lightning.results.tables import Table
from fgvis_lightning.results.tensor_files import item_file

ATTACK = ("game", "optimizer", "start", "defense")
ROWS = (
    *("network", *ATTACK, "pairs", "false class on top", "from", "to", "mean score", "highest"),
    *("on top on the way", "way from", "way to", "highest on the way"),
)
PAIRS = (
    *("id", "class", *ATTACK),
    *("score on the image", "score on an empty image", "counted"),
    *("score", "on top", "on top on the way", "highest on the way"),
)


class Row(NamedTuple):
    """One row of the table."""

    game: str  # of the masks
    games: str  # the games that the row represents, in words
    optimizer: str  # its name among the options
    start: Start  # of the masks
    defended: bool  # whether the gradient is gated
    runs: tuple[str, ...]  # names of the sweeps, one for each restart

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The row's values in the columns of `ATTACK`."""
        start = named(self.start) + (f" (best of {len(self.runs)})" if len(self.runs) > 1 else "")
        return self.games, self.optimizer, start, "on" if self.defended else "off"


class Outcome(NamedTuple):
    """Result of an attack on a pair, judged by the plain network; the greater outcome is the better attack."""

    topped: bool  # whether the network decided for the false class, on the way or at the end
    highest: float  # its highest score, on the way or at the end
    on_top: bool  # whether it did so at the end
    score: float  # of the false class at the end
    watched: bool  # whether masks on the way were judged


class About(NamedTuple):
    """A pair of image and class."""

    name: str  # of the class
    before: float  # its score on the image
    empty: float  # its score on an empty image, the reference
    counted: bool  # whether it is not on top on an empty image


def count(runs: dict[str, SweepRun], rows: Sequence[Row]) -> tuple[Table, Table]:
    """Count how often the false class is the most probable one on its evidence, judged by the plain network.

    Returns:
        The table by network, game, optimizer, start and defense, with 95 % Wilson intervals over images; of several
        restarts, the best one counts. And the table of all pairs, each with its best start. Values on the way are NaN
        if the masks on the way were not judged. A pair is not counted if the class is on top on an empty image already,
        since then it takes no adversarial evidence.
    """
    table, pairs = Table(ROWS), Table(PAIRS)
    best: dict[tuple[Any, ...], tuple[Outcome, Row, About]] = {}
    model = next(iter(runs.values())).model
    preprocessing = model.classifier.preprocessing
    with torch.no_grad():  # the logits of an empty image, the reference
        empty = model.plain(torch.zeros(1, preprocessing.count, *preprocessing.size, device=model.device)).float()
    for row in rows:
        found: dict[str, Outcome] = {}
        images: set[str] = set()
        for run in (runs[name] for name in row.runs):
            for item, id in run.split()[1]:
                outcome, about = _outcome(run, item, id, empty)
                if about.counted:
                    found[id] = Outcome._make(map(max, outcome, found.get(id, outcome)))
                    images.add(item.image_id)
                key = row.game, row.optimizer, row.defended, id
                if key not in best or outcome > best[key][0]:
                    best[key] = outcome, row, about
        if found:
            topped, highest, on_top, scores, watched = zip(*found.values(), strict=True)
            way = (*_rate(topped, len(images)), max(highest)) if all(watched) else [math.nan] * 4
            name = runs[row.runs[0]].model.classifier.name
            end = (*_rate(on_top, len(images)), sum(scores) / len(found), max(scores))
            table.add((name, *row.cells, len(found), *end, *way))
    for (*_, id), (one, row, about) in best.items():
        on_the_way = (one.topped, one.highest) if one.watched else [math.nan] * 2
        pairs.add((id, about.name, *row.cells, *about[1:], one.score, one.on_top, *on_the_way))
    return table, pairs


@torch.no_grad()
def _outcome(run: SweepRun, item: Item, id: str, empty: Tensor) -> tuple[Outcome, About]:
    """Outcome of a pair, and what is known without an attack; ``empty``: the logits (1,K) of an empty image."""
    model = run.model
    found = load_explanation(item_file(run.output, id))
    image = load_image(item.path, model.classifier.preprocessing, upscale=run.data.upscale)
    evidence = blend(model.normalize(image[None]), found.evidence.to(model.device), None)
    targets, task = found.targets.to(model.device), model.classifier.task
    (score, on_top), (score_empty, shown) = (
        (float(task.probability(logits, targets)), bool(task.present(logits, targets)))
        for logits in (model.plain(evidence).float(), empty)
    )
    about = About(model.classifier.class_name(int(found.targets)), float(found.score_image), score_empty, not shown)
    if found.highest is None or found.topped is None:
        return Outcome(on_top, score, on_top, score, watched=False), about
    return Outcome(on_top or bool(found.topped), max(score, float(found.highest)), on_top, score, watched=True), about


def _rate(happened: Sequence[bool], images: int) -> tuple[float, float, float]:
    """Rate of an event, with its interval; pairs of one image count as one, since they are not independent."""
    rate = sum(happened) / len(happened)
    return (rate, *wilson(rate * images, images))


def strongest(table: Table, pairs: Table) -> str:
    """The strongest attack on the defended network, all attacks together, and pairs that are not counted, in words."""
    every = pairs.named()
    fooled = {row["id"]: False for row in every if row["counted"]}
    total = len({row["id"] for row in every})
    left_out = (
        f"Not counted: {total - len(fooled)} of {total} pairs, whose class is on top on an empty image already."
        if len(fooled) < total
        else ""
    )
    rows = [row for row in table.named() if row["defense"] == "on"]
    if not rows:
        return left_out
    for row in rows:
        row["watched"] = row["highest on the way"] == row["highest on the way"]  # NaN is not itself
        row["top"] = row["on top on the way"] if row["watched"] else row["false class on top"]
        row["best"] = row["highest on the way"] if row["watched"] else row["highest"]
    worst = max(rows, key=lambda row: (row["top"], row["best"]))
    last, tops = (round(worst[name] * worst["pairs"]) for name in ("false class on top", "top"))
    for row in (row for row in every if row["counted"]):
        fooled[row["id"]] |= row["defense"] == "on" and True in (row["on top"], row["on top on the way"])
    words = (
        f"Strongest against the defense: {worst['game']} by {worst['optimizer']}"
        f"{'' if worst['start'] == OWN else ' from ' + worst['start']}, {tops} of {worst['pairs']} false classes on "
        f"top{f' on the way and {last} at the end' if worst['watched'] else ''}, highest score {worst['best']:.3g}."
        + (f" All attacks together: {sum(fooled.values())} of {len(fooled)}." if len(rows) > 1 else "")
    )
    return "\n".join(filter(None, (words, left_out)))
