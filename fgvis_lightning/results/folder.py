"""The results folder and its tables.

Many processes, on one machine or several, write to the same folder, and each may be killed at any time::

    explanations/<item id>.safetensors   one file for each finished item; if it exists, the item is done
    failures/<image id>.txt              why an image could not be read; removed when it can be read
    sweep.json                           the configuration, and values that later runs must reuse
    summary.csv, coverage.csv            tables, rebuilt from the files
    .locks/rank<number>                  locks of running processes, see `fgvis_lightning.results.claim`
    .checked/                            notes about unchanged files, see `fgvis_lightning.results.unchanged`
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from fgvis_lightning.defense.coverage import Coverage
from fgvis_lightning.errors import InputError
from fgvis_lightning.method.options import usual
from fgvis_lightning.names import printable
from fgvis_lightning.networks.preprocessing import Preprocessing
from fgvis_lightning.results.load import load_item
from fgvis_lightning.results.tables import Table
from fgvis_lightning.results.tensor_files import EXPLANATIONS, SUFFIX, item_file, load_metadata, write_whole
from fgvis_lightning.results.unchanged import QuickCheck

FAILURES = "failures"
SWEEP = "sweep.json"
IMAGE = "image_sha256"  # name of the metadata entry with the content hash of the explained image


def prepare_folder(output: Path) -> None:
    """Create a results folder; raises `InputError` if it is not writable."""
    # If this process is killed, the next sweep removes the file. It is not in the folder of explanations, whose time of
    # change must stay.
    probe = output / f".writable{os.getpid()}.rank0.tmp"
    try:
        (output / EXPLANATIONS).mkdir(parents=True, exist_ok=True)
        if not os.access(output / EXPLANATIONS, os.W_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
        probe.touch()
        probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"Expected a writable folder, but got {printable(str(output))}: {reason}. Choose another --output."
        ) from error


def finished(output: Path) -> set[str]:
    """The ids of the items that have a file, without opening the files."""
    return {name.removesuffix(SUFFIX) for name in _names(output / EXPLANATIONS, SUFFIX)}


def count_finished(output: Path) -> int:
    """Count the items that have a file; there may be millions, so their names are not kept."""
    return sum(1 for _ in _names(output / EXPLANATIONS, SUFFIX))


def why_unusable(output: Path, id: str, fingerprint: str, sha256: str | None = None) -> str | None:
    """Read an item's file completely; the reason why it cannot be kept, or None if it belongs to this configuration.

    ``sha256`` is the hash of the current image; None if there is no image to compare with.
    """
    path = item_file(output, id)
    try:
        metadata = load_item(path).metadata
    except InputError as error:
        return str(error).partition(". To compute it")[0]
    if metadata.get("fingerprint") != fingerprint:
        return f"{path} belongs to another configuration"
    return f"{path} explains another image" if sha256 not in (None, metadata.get(IMAGE)) else None


def files(output: Path) -> Iterator[Path]:
    """The explanation files of a results folder, sorted."""
    for name in sorted(_names(output / EXPLANATIONS, SUFFIX)):
        yield output / EXPLANATIONS / name


def _names(folder: Path, suffix: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(suffix) and not entry.name.startswith("."):
                    yield entry.name
    except FileNotFoundError:
        return


# --- images that could not be read ---


def note_failure(output: Path, image_id: str, reason: str, owner: str) -> None:
    """Record why an image could not be read."""
    (output / FAILURES).mkdir(exist_ok=True)
    write_whole(output / FAILURES / f"{image_id}.txt", f"{printable(reason)}\n".encode(), owner)


def forget_failure(output: Path, image_id: str) -> None:
    """Delete the record of an image before reading it again."""
    (output / FAILURES / f"{image_id}.txt").unlink(missing_ok=True)


def unreadable(output: Path) -> set[str]:
    """The ids of the images that could not be read."""
    return {name.removesuffix(".txt") for name in _names(output / FAILURES, ".txt")}


def failures(output: Path) -> dict[str, str]:
    """Image id → reason why the image could not be read."""
    notes = {}
    for image_id in sorted(unreadable(output)):
        with suppress(FileNotFoundError):  # another process is reading the image again
            notes[image_id] = (output / FAILURES / f"{image_id}.txt").read_text(encoding="utf-8").strip()
    return notes


# --- values that later runs in the folder must reuse ---


def recall(output: Path) -> dict[str, Any]:
    """Read ``sweep.json``; empty if it does not exist."""
    try:
        known = json.loads((output / SWEEP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def recall_number(output: Path, name: str, most: int) -> int | None:
    """An integer from 1 to ``most`` in ``sweep.json``; None if there is no such number."""
    value = recall(output).get(name)
    return value if type(value) is int and 1 <= value <= most else None


def remember(output: Path, **values: object) -> None:
    """Add values to ``sweep.json``; only for rank 0."""
    known = recall(output)
    if known != (known | values):
        write_whole(output / SWEEP, (json.dumps(known | values, indent=2) + "\n").encode(), "rank0")


def check_configuration(output: Path, settings: Mapping[str, object], fingerprint: str) -> None:
    """Refuse to mix explanations of two configurations in one folder.

    Raises:
        InputError: if the folder belongs to another configuration; the message lists the differences, apart from those
            that follow from others.
    """
    known = recall(output)
    if "fingerprint" not in known:  # without sweep.json, the first readable file decides
        known = {}
        for path in files(output):
            with suppress(InputError, ValueError):
                metadata = load_metadata(path)
                if "fingerprint" in metadata:
                    known = {"fingerprint": metadata["fingerprint"], "settings": json.loads(metadata["settings"])}
                    break
    if known.get("fingerprint", fingerprint) == fingerprint or not any(True for _ in files(output)):
        return  # a run that ended before its first explanation, perhaps by a mistake, does not own the folder
    theirs, settings = known.get("settings") or {}, json.loads(json.dumps(settings, default=list))
    differences = [
        f"{name} {theirs.get(name)} there and {settings.get(name)} now" for name in _changed(theirs, settings)
    ]
    raise InputError(
        f"Expected {output} to be empty or to hold explanations of this configuration, but it holds those of another "
        f"({'; '.join(differences) or 'the weights of the network differ'}). Choose another --output, or delete this "
        f"folder."
    )


def _changed(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ, without those that follow from others that differ."""
    changed = {name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name)}
    if "network" in changed:
        changed -= {field.name for field in fields(Preprocessing)}
    known = [(settings, usual(settings)) for settings in (theirs, ours)]
    return sorted(name for name in changed if any(one.get(name, own.get(name)) != own.get(name) for one, own in known))


# --- tables ---

COLUMNS = (
    *("id", "image", "target", "name", "game", "score_image", "score_explanation", "evidence", "sparsity", "feasible"),
    *("reached", "seeds", "agreement", "listed"),
)


def _cell(row: Mapping[str, str], column: str) -> str | float:
    """A cell of ``summary.csv``; empty if unknown, undefined (agreement) or never (reached)."""
    if column == "evidence" and "sparsity" in row:
        return round(1 - float(row["sparsity"]), 6)
    value = row.get(column, "")
    if (column, value) in {("agreement", "nan"), ("reached", "-1")}:
        return ""
    return float(value) if column == "agreement" and value else value


class Levels(NamedTuple):
    """Number of items of a run with a level, ids of the items that missed it, and the items to look at first.

    The last two are the item with the largest mean evidence and the one whose runs agree least, each with this number.
    """

    with_level: int
    missed: list[str]
    largest: tuple[str, float] | None = None
    least: tuple[str, float] | None = None


def write_summary(
    output: Path, owner: str | None = None, listed: Collection[str] | None = None
) -> tuple[list[str], Levels]:
    """Rebuild two tables from the explanation files, unless nothing has changed since the last time.

    ``summary.csv`` has one row for each item, ``coverage.csv`` one row for each gated layer, with its share of closed
    gates at the explanations, averaged over the items.

    Args:
        output: the results folder.
        owner: see `fgvis_lightning.results.tensor_files.write_whole`.
        listed: ids of the items of this run, which the column ``listed`` marks. Other items belong to images that are
            not in this run or have been renamed.

    Returns:
        Reasons why files could not be read, and the levels of the listed items.
    """
    tables = [str(output / name) for name in (EXPLANATIONS, "summary.csv", "coverage.csv")]
    quick = QuickCheck(output, "tables", "\n".join(listed or ()), owner)
    if quick.same(tables):
        return [], Levels(*json.loads(quick.text))
    with_level, missed = 0, []
    sizes: dict[str, float] = {}
    agreements: dict[str, float] = {}
    closed: dict[tuple[int, str, str], tuple[float, int]] = {}
    damaged = []
    summary = Table(COLUMNS)
    for path in files(output):
        try:
            row = {**load_metadata(path), "id": path.name.removesuffix(SUFFIX)}
            coverage = Coverage.from_json(row["coverage"]) if "coverage" in row else Coverage()
        except (InputError, ValueError) as error:
            damaged.append(str(error))
            continue
        if listed is not None:
            row["listed"] = "yes" if row["id"] in listed else "no"
        cells = {column: _cell(row, column) for column in COLUMNS}
        summary.add(cells.values())
        if "feasible" in row and row.get("listed") != "no":
            with_level += 1
            missed += [row["id"]] if row["feasible"] == "false" else []
            for column, known in (("evidence", sizes), ("agreement", agreements)):
                if isinstance(number := cells[column], float):
                    known[row["id"]] = number
        if coverage.closed is not None:
            for number, (layer, share) in enumerate(zip(coverage.layers, coverage.closed[0].tolist(), strict=True)):
                key = (number, layer.module, layer.name)
                total, count = closed.get(key, (0.0, 0))
                closed[key] = total + share, count + 1
    layers = Table(("layer", "module", "nonlinearity", "closed", "items"))
    for key, (total, count) in sorted(closed.items()):
        layers.add([*key, f"{total / count:.6f}", count])
    write_whole(output / "summary.csv", summary.csv().encode(), owner)
    write_whole(output / "coverage.csv", layers.csv().encode(), owner)
    largest = max(sizes.items(), key=lambda one: one[1], default=None)
    least = min(agreements.items(), key=lambda one: one[1], default=None)
    levels = Levels(with_level, missed, largest, least)
    if not damaged:
        quick.note([], tables, json.dumps(levels))
    return damaged, levels
