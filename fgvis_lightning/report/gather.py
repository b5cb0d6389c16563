"""A results folder of any command → its contents, without pictures."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from fgvis_lightning.data.photos import find_photos
from fgvis_lightning.errors import InputError
from fgvis_lightning.names import printable, program, slug
from fgvis_lightning.report.sections import Section, coverage_section, find_sections
from fgvis_lightning.results import folder as results
from fgvis_lightning.results.attribution import Attribution
from fgvis_lightning.results.load import check_links, load_with_texts
from fgvis_lightning.results.numbers import as_number
from fgvis_lightning.results.tensor_files import SUFFIX, UNREADABLE

Curves = tuple[list[float], list[float]]
"""Score of the class from no pixel to all pixels, for deletion and insertion."""

JUDGED = "evaluation_items.csv"
BENCHMARK = "index.html"  # the page of ``benchmark``
REACHED, MISSED, EXPLAINED = "reached", "missed", "explained"  # the level of lam: auto, or no level
FAILED, DAMAGED = "failed", "damaged"


@dataclass(frozen=True)
class Entry:
    """An item by one method; or a missing item, with the reason."""

    method: str  # name of the method, or of its folder
    id: str  # of the item; of the image, if it could not be read
    state: str  # one of `REACHED`, `MISSED`, `EXPLAINED`, `FAILED` and `DAMAGED`
    path: Path  # its explanation file, if there is one
    reason: str = ""  # of the failure or damage
    name: str = ""  # of the target class
    target: int | None = None  # index of the target class
    image: str = ""  # path of the image
    score_image: float | None = None  # of the target class on the image
    score_explanation: float | None = None  # of the target class on the explanation; None for a map
    evidence: float | None = None  # mean evidence in [0,1], 1 - sparsity; None for a map
    agreement: float | None = None  # mean correlation of its runs' masks; None for one run, NaN if a mask is constant
    values: Mapping[str, float] = field(default_factory=dict)  # measured by ``evaluate``, by metric
    curves: Curves | None = None  # deletion and insertion, measured by ``evaluate``
    metadata: Mapping[str, str] = field(default_factory=dict)  # of the file
    elsewhere: tuple[str, ...] = ()  # files with the image's name in the location of images that the user gave

    @property
    def missing(self) -> bool:
        """Whether there is no explanation to show."""
        return self.state in (FAILED, DAMAGED)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the explanation; empty if the file has none."""
        try:
            return dict(json.loads(self.metadata["settings"]))
        except (KeyError, ValueError, TypeError):
            return {}


@dataclass(frozen=True)
class Results:
    """Contents of a results folder."""

    folder: Path
    title: str  # of the page, by default the folder's name
    entries: tuple[Entry, ...]  # items and failures
    sections: tuple[Section, ...]  # results of commands other than ``fit``
    left_out: tuple[Path, ...] = ()  # folders in it whose items are not shown, since the folder has its own


def gather(folder: Path, images: str | None = None) -> Results:
    """Read a results folder; damaged files are among the entries.

    Args:
        folder: possibly from a stranger.
        images: location of images that have moved, as for `fgvis_lightning.data.image_data.ImageData`.

    Raises:
        InputError: if the folder does not exist, has no results, or has links to other places.
    """
    if not folder.is_dir():
        raise InputError(f"Expected a results folder, but {folder} is not a folder.")
    check_links(folder)
    elsewhere: dict[str, tuple[str, ...]] = {}
    for photo in find_photos(images) if images else ():
        name = Path(photo.path).name
        elsewhere[name] = (*elsewhere.get(name, ()), photo.path)
    places = _places(folder)
    judged = _Judged(places)
    sources, left_out = _sources(places)
    sources = sources or judged.sources
    if judged.outside and not sources:
        named = printable(str(judged.outside[0]))
        print(
            f"{folder} judges items in another folder, and a page does not show these. For a page with both: "
            f"{program()} evaluate --results {named} --output {named}/evaluation, then "
            f"{program()} report {named}",
            file=sys.stderr,
        )
    read = (entry for source in sources for entry in _entries(source, judged, alone=len(sources) == 1))
    entries = tuple(replace(entry, elsewhere=elsewhere.get(Path(entry.image).name, ())) for entry in read)
    sections = list(find_sections(places))
    for number, source in enumerate(sources):
        name = f": {printable(source.name)}" if len(sources) > 1 else ""
        section = coverage_section(source, f"gates-{number}", name)
        sections += [section] if section else []
    if not entries and not sections:
        if (folder / BENCHMARK).is_file():
            raise InputError(
                f"Expected a folder with explanations or tables, but {folder} is of benchmark, whose page is "
                f"{folder / BENCHMARK}. For single items, give the folder of a network's maps: {folder}/NETWORK/maps."
            )
        raise InputError(
            f"Expected a results folder, but {folder} has no explanations, failures or tables. Make some with: "
            f"{program()} fit --config configs/quickstart.yaml --output {folder}"
        )
    return Results(folder, printable(folder.resolve().name), entries, tuple(sections), tuple(left_out))


def _places(folder: Path) -> list[Path]:
    """A folder, and the folders in it."""
    return [folder, *sorted(sub for sub in folder.glob("[!.]*") if sub.is_dir())]


def _sources(places: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The folders with items; and those left out, since the first place has items of its own, as for ``fit``."""
    found = [place for place in places if results.count_finished(place) or results.unreadable(place)]
    if found[:1] == [places[0]]:
        return found[:1], found[1:]
    # A comparison's own order, else the order of names.
    methods = _config(places[0]).get("methods")
    order = [slug(str(name)) for name in methods] if isinstance(methods, dict) else []
    return sorted(found, key=lambda place: order.index(place.name) if place.name in order else len(order)), []


def _config(place: Path) -> dict[str, Any]:
    """The options of the command that filled a folder; empty if unknown."""
    try:
        config = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _entries(source: Path, judged: _Judged, alone: bool) -> Iterator[Entry]:
    """The items of one method, image by image, and its failures."""
    method = printable(source.resolve().name)
    read: list[Entry] = []
    for path in results.files(source):
        id = path.name.removesuffix(SUFFIX)
        try:
            item, says = load_with_texts(path)
            shape = tuple(item.map.shape if isinstance(item, Attribution) else item.mask.shape)[1:]
            if len(shape) != (2 if isinstance(item, Attribution) else 3) or 0 in shape:
                raise InputError(f"Expected a mask (C,H,W) or a map (H,W), but {path} has shape {shape}.")
        except InputError as error:
            read.append(Entry(method, printable(id), DAMAGED, path, printable(str(error))))
            continue
        if isinstance(item, Attribution):
            method = printable(item.method)
            score = evidence = agreement = None
        else:
            score, evidence = float(item.score_explanation), 1 - float(item.sparsity)
            agreement = None if item.agreement is None else float(item.agreement)
        values, curves = judged.of(method, id, alone)
        read.append(
            Entry(
                method=method,
                id=printable(id),
                state={"true": REACHED, "false": MISSED}.get(says.get("feasible", ""), EXPLAINED),
                path=path,
                name=printable(says.get("name", f"class {says['target']}")),
                target=int(item.targets),
                image=printable(says.get("image", "")),
                score_image=float(item.score_image),
                score_explanation=score,
                evidence=evidence,
                agreement=agreement,
                values=values,
                curves=curves,
                metadata={printable(name): printable(text) for name, text in says.items()},
            )
        )
    yield from (replace(entry, method=method) for entry in _in_order(read, source))
    for id, reason in results.failures(source).items():
        yield Entry(method, printable(id), FAILED, source / results.FAILURES / f"{id}.txt", printable(reason))


def _in_order(entries: Iterable[Entry], source: Path) -> list[Entry]:
    """Entries by image; those of one image in the order of the run's list of targets, then of their ranks."""
    data = _config(source).get("data")
    targets = data.get("targets") if isinstance(data, dict) else None
    words = [str(word).lower() for word in targets] if isinstance(targets, list) else []

    def place(entry: Entry) -> tuple[str, int, int]:
        image, _, target = entry.id.rpartition("@")
        rank = re.match(r"top(\d+)-", target)
        names = (entry.name.lower(), str(entry.target))
        ranks = ("predicted", "auto", "top", "absent") if rank else ()
        own = (at for at, word in enumerate(words) if word in names or word.startswith(ranks))
        return image, next(own, len(words)), int(rank[1]) if rank else 0

    return sorted(entries, key=place)


class _Judged:
    """Numbers and curves of ``evaluate`` in some folders, by method and item."""

    def __init__(self, places: Sequence[Path]) -> None:
        self.values: dict[str, dict[str, dict[str, float]]] = {}
        self.curves: dict[tuple[str, str], Curves] = {}
        self.sources: list[Path] = []
        self.outside: list[Path] = []
        self.folder = places[0].resolve()
        for place in places:
            if (place / JUDGED).is_file():
                self._read(place)

    def _read(self, place: Path) -> None:
        table = place / JUDGED
        with suppress(OSError, ValueError, csv.Error, KeyError), table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                id, method = row["id"], row["method"]
                numbers = {name: as_number(text) for name, text in row.items() if name != "target"}
                known = {name: value for name, value in numbers.items() if not math.isnan(value)}
                self.values.setdefault(method, {})[id] = known
        # The folders of judged items, for an evaluation without its own items. A stranger's file could name any folder.
        judged = _config(place).get("results")
        judged = [judged] if isinstance(judged, str) else judged
        for source in map(Path, map(str, judged if isinstance(judged, list) else [])):
            if source.resolve().is_relative_to(self.folder):
                self.sources += _sources(_places(source))[0]
            else:
                self.outside.append(source)
        with suppress(*UNREADABLE), safe_open(place / "curves.safetensors", framework="pt") as file:
            rows = json.loads((file.metadata() or {})["items"])
            for (id, method), (deletion, insertion) in zip(rows, file.get_tensor("curves").tolist(), strict=True):
                self.curves[method, id] = deletion, insertion

    def of(self, method: str, id: str, alone: bool) -> tuple[Mapping[str, float], Curves | None]:
        """Numbers and curves of an item; a method that is alone gets those of the only judged method."""
        if alone and method not in self.values and len(self.values) == 1:
            method = next(iter(self.values))
        return self.values.get(method, {}).get(id, {}), self.curves.get((method, id))
