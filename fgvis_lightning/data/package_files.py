"""Finds the files of ``configs/``, which come with the package."""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).parents[1]


def shipped(path: str) -> str:
    """Return ``path`` if the file exists, else the package's file of this name if it begins with ``configs/``."""
    if path.startswith("configs/") and not Path(path).exists():
        for folder in (HOME, HOME.parent):  # as installed; in a clone
            if (folder / path).is_file():
                return str(folder / path)
    return path
