"""Converts names to parts of file names."""

from __future__ import annotations

import re

_OTHERS = re.compile(r"[^\w.]+")


def slug(text: str) -> str:
    """``text`` as a part of a file name: letters, digits, ``.`` and ``_``, at most 60 bytes of UTF-8."""
    short = _OTHERS.sub("_", text).strip("_.").encode()[:60].decode(errors="ignore")
    return short.strip("_.") or "_"


def printable(text: str) -> str:
    """``text`` as UTF-8 can have it: bytes of a file name that are no UTF-8 are written out."""
    return text.encode("utf-8", "backslashreplace").decode()
