"""Finds the files of ``configs/``, which are included in the package."""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).parents[1]


def shipped(path: str) -> str:
    """Return ``path`` if the file exists; otherwise, for paths in ``configs/``, the package's file."""
    if path.startswith("configs/") and not Path(path).exists():
        for folder in (HOME, HOME.parent):  # as installed; in a clone
            if (folder / path).is_file():
                return str(folder / path)
    return path
