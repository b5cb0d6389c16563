"""Sections of the report: tables and figures of commands other than ``fit``."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fgvis_lightning.names import printable

BIAS = "_ranking"  # ending of a file that exists for every pair of a bias analysis


@dataclass(frozen=True)
class Rows:
    """A table."""

    caption: str  # of the table
    columns: tuple[str, ...]  # their names
    rows: Sequence[tuple[str, ...]]  # a text for each column


@dataclass(frozen=True)
class Section:
    """Results of one command."""

    anchor: str  # its place on the page
    title: str  # of the section
    text: str  # how to read it
    plates: Sequence[tuple[Path, str]] = ()  # files of figures, with captions
    tables: Sequence[Rows] = ()


@dataclass(frozen=True)
class _Kind:
    """The files of a command, without suffixes → captions."""

    anchor: str
    title: str
    text: str
    plates: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, str] = field(default_factory=dict)


_KINDS = (
    _Kind(
        "comparison",
        "Comparison of methods",
        "The same items by several methods. Maps range from black (lowest value) to bright (99.8 % quantile).",
        {
            "comparison": "Items by methods",
            "crop": "The same at pixel resolution, where FGVis has most evidence",
            "discrimination": "Images with several classes: whose evidence is it?",
        },
        {"costs": "Cost of one image", "discrimination": "Remaining scores after deletion of a map's pixels"},
    ),
    _Kind(
        "faithfulness",
        "Faithfulness",
        "Pixels are deleted or inserted in the order of each map, and the score of the class is measured. A faithful "
        "map has a low area under the deletion curve and a high area under the insertion curve.",
        {
            "curves": "Mean deletion and insertion curves",
            "extremes": "The items with the best and the worst deletion AUC",
        },
        {"evaluation": "Means with 95 % intervals; arrows show the better direction"},
    ),
    _Kind(
        "pointing",
        "Is the evidence in the object?",
        "A hit is a map whose maximum is at the marked object; energy is the share of the map inside the object. A "
        "uniform map, a random point and the center of the picture are controls without any map.",
        {"pointing": "Some items with their objects"},
        {"pointing": "Hits with 95 % Wilson intervals, shares with 95 % bootstrap intervals"},
    ),
    _Kind(
        "adversarial",
        "Does the defense hold?",
        "Masks are optimized for classes that are not in the image, with and without the defense. If the false class "
        "becomes the most probable one, the evidence is adversarial.",
        tables={"adversarial": "How often the false class became the most probable one"},
    ),
    _Kind(
        "sanity",
        "Do maps depend on the network?",
        "The network's layers are redrawn. A map that hardly changes does not explain the network. The ceiling is the "
        "correlation with the map by another seed, the floor the correlation with the map of another photo.",
        {
            "sanity": "Rank correlation with the trained network's maps",
            "maps": "The first image's maps",
            "smooth": "The same for maps averaged over noisy images",
            "smooth_maps": "The first image's averaged maps",
        },
        {
            "sanity": "Mean rank correlations with 95 % intervals",
            "smooth": "The same for maps averaged over noisy images",
            "complexity": "Complexity of the maps, and its rise when all layers are random",
            "sensitivity": "Largest relative change of a map under small changes of the image",
        },
    ),
)

_BIAS = _Kind(
    "bias",
    "Bias: ",
    "By explanations: dependence of the evidence minus that of the images themselves. By interventions: the share of "
    "images that are no longer right after this feature is changed.",
    {
        "_evidence": "Statistics of the evidence and of the images themselves",
        "_agreement": "Do explanations predict the effect of interventions?",
        "_sheet": "The classes with the highest and the lowest dependence",
    },
    {
        "_ranking": "The classes, highest dependence first",
        "_interventions": "Share of the images that stay right after an intervention",
        "_evidence": "Statistics of the evidence and of the images themselves",
    },
)
"""The same for each pair of a bias analysis, with the pair before the names of the files and after the title."""


def find_sections(places: Sequence[Path]) -> Iterator[Section]:
    """A section for each command with results in the results folder, or in folders in it."""
    for number, place in enumerate(places):
        where, suffix = (f" ({printable(place.name)})", f"-{number}") if number else ("", "")
        for kind in _KINDS:
            section = _read(place, kind, suffix, where)
            if section.plates or section.tables:
                yield section
        for count, path in enumerate(sorted(place.glob(f"[!.]*{BIAS}.md"))):
            pair = path.name.removesuffix(f"{BIAS}.md")
            yield _read(place, _BIAS, f"{suffix}-{count}", printable(pair) + where, pair)


def coverage_section(place: Path, anchor: str, name: str) -> Section | None:
    """The share of closed gates layer by layer, if a run stored it."""
    try:
        with (place / "coverage.csv").open(newline="", encoding="utf-8") as file:
            columns, *rows = csv.reader(file)
    except (OSError, ValueError):
        return None
    if not rows:
        return None
    layers = Rows("Layers from the image to the logits", tuple(columns), tuple(tuple(row) for row in rows))
    text = "The share of each layer's closed gates at the explanations. If it is high, the defense limits the evidence."
    return Section(anchor, f"Gates{name}", text, tables=(layers,))


def _read(place: Path, kind: _Kind, suffix: str, name: str, begin: str = "") -> Section:
    """The existing figures and tables of a folder, whose file names begin in this way."""
    plates = [(place / f"{begin}{file}.png", caption) for file, caption in kind.plates.items()]
    tables: list[Rows] = []
    for file, caption in kind.tables.items():
        path = place / f"{begin}{file}.md"
        if path.is_file():
            tables += read_markdown(path.read_text(encoding="utf-8", errors="replace"), caption)
    found = [(path, caption) for path, caption in plates if path.is_file()]
    return Section(kind.anchor + suffix, kind.title + name, kind.text, found, tables)


def read_markdown(text: str, caption: str) -> Iterator[Rows]:
    """The tables of a file of `fgvis_lightning.results.tables.Table.markdown`; text above a table is its caption."""
    lines: list[tuple[str, ...]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
            lines.append(tuple(cell.strip().replace("\\|", "|") for cell in cells))
        elif lines:
            if any(any(row[1:]) for row in lines[2:]):  # else there was nothing to compare
                yield Rows(caption, lines[0], tuple(lines[2:]))
            lines = []
        if line and not line.startswith("|"):
            caption = line.strip().removesuffix(":")
