"""The files of ``configs/``, which come with the package, wherever the command is run."""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).parents[1]


def shipped(path: str) -> str:
    """``path`` itself where there is such a file, else that of the package if it begins with ``configs/``."""
    if path.startswith("configs/") and not Path(path).exists():
        for folder in (HOME, HOME.parent):  # as installed; in a clone
            if (folder / path).is_file():
                return str(folder / path)
    return path
