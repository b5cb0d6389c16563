"""Reads text and CSV files in the encodings and with the separators used by editors and spreadsheets."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path


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


def csv_rows(text: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Header and numbered rows of a CSV file with commas, semicolons or tabs; empty rows are left out."""
    separator = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    header = [name.strip() for name in next(rows, [])]
    return header, ((number, row) for number, row in enumerate(rows, 2) if row)
