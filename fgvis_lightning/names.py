"""Names in file names, in messages, of classes, and of the command line."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_OTHERS = re.compile(r"[^\w.]+")


def program() -> str:
    """The command line's own name, for the next command to type."""
    return "fgvis" if Path(sys.argv[0]).stem == "fgvis" else "python train.py"


def slug(text: str) -> str:
    """Turn ``text`` into a part of a file name: letters, digits, ``.`` and ``_``, at most 60 bytes of UTF-8."""
    short = _OTHERS.sub("_", text).strip("_.").encode()[:60].decode(errors="ignore")
    return short.strip("_.") or "_"


def class_at(path: str, base: type[T]) -> type[T] | None:
    """The class at a class_path, ``package.module.Class``; None if there is none, or if it lacks this base."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None
    return found if isinstance(found, type) and issubclass(found, base) else None


def missing(path: str) -> str:
    """A sentence about the reason why there is nothing at a class_path; empty if there is something."""
    if colon := re.fullmatch(r"([\w./]+?)(?:\.py)?:(\w+)", path):
        return f" Did you mean {colon[1].replace('/', '.')}.{colon[2]}?"
    module, _, name = path.rpartition(".")
    if not module:
        return ""
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the user's module may raise anything
        return f" {module} could not be imported from {Path.cwd()} or from installed packages: {error!r}."
    return "" if hasattr(found, name) else f" {module} has no {name}."


def printable(text: str) -> str:
    """``text`` as valid UTF-8; other bytes of a file name are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
