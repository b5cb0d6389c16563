"""Reads text files in the encodings used by editors and by Excel on Windows."""

from __future__ import annotations

import codecs
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
