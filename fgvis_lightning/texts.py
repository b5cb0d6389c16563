"""Reads text and CSV files in the encodings and with the separators used by editors and spreadsheets."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Collection, Iterator
from pathlib import Path

from fgvis_lightning.errors import InputError


def read_text(path: Path) -> str:
    """Read a text file: UTF-16 or UTF-8 with a byte order mark, else UTF-8, else Windows-1252.

    Raises:
        OSError: if the file cannot be read.
        UnicodeDecodeError: if the file has none of these encodings.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")


def csv_rows(path: Path, columns: Collection[str]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Header and numbered rows of a CSV file with commas, semicolons or tabs; empty rows are left out.

    Args:
        path: of the file, see `read_text`.
        columns: names that may occur once in the header, in any case.

    Raises:
        InputError: for a column that occurs twice; while the rows are read, for cells without a column.
        OSError, UnicodeDecodeError, csv.Error: if the file cannot be read.
    """
    text = read_text(path)
    separator = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    header = [name.strip() for name in next(rows, [])]
    lowered = [name.lower() for name in header]
    if twice := [name for name in columns if lowered.count(name) > 1]:
        raise InputError(f"Expected one column {twice[0]!r} in {path}, but there are several. Rename or delete them.")
    return header, _numbered(path, len(header), rows)


def _numbered(path: Path, width: int, rows: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    for number, row in enumerate(rows, 2):
        if any(cell.strip() for cell in row[width:]):
            raise InputError(
                f"Expected {width} cells in each row of {path}, as in its header, but row {number} has {len(row)}. "
                f"Put a name with a separator in quotes; several classes of an image take a row each."
            )
        if row:
            yield number, row
