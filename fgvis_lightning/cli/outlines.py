"""A cache of the outlines of the commands' parsers; making a parser takes torch, Lightning and many seconds.

The cache is a file in the user's cache folder (``$XDG_CACHE_HOME``, or ``~/.cache``), one for each installation. It is
valid until a module of the package changes, or a package is installed, upgraded or removed. If the folder does not
exist or is not writable, outlines are made each time.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fgvis_lightning.experiments.outline import Option, Outline, outline_of

PACKAGE = Path(__file__).parent.parent
LIBRARIES = ("jsonargparse", "pytorch_lightning", "torch")
"""Libraries whose signatures and docstrings determine the parsers."""


def outline(module: str) -> Outline:
    """The outline of the parser of a command's module, from the cache, or made and added to the cache."""
    if (known := remembered(module)) is not None:
        return known
    from fgvis_lightning.results.tensor_files import write_whole  # imports torch, as making a parser does

    made = outline_of(importlib.import_module(module).make_parser())
    with suppress(OSError, RuntimeError):  # no home folder, no space, no permission
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({**_read(), "made of": _made_of(), module: made}).encode())
    return made


def remembered(module: str) -> Outline | None:
    """The outline of a command's parser, if it is in the cache and still valid."""
    if (found := _read().get(module)) is None:
        return None
    outline = Outline(*found)
    return outline._replace(options=[Option(*option) for option in outline.options])


def _file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = Path(cache) if cache else Path.home() / ".cache"
    return folder / "fgvis-lightning" / f"options-{hashlib.sha256(str(PACKAGE).encode()).hexdigest()[:16]}.json"


def _read() -> dict[str, Any]:
    """The content of the file, unless it is damaged or belongs to other versions."""
    with suppress(OSError, RuntimeError, ValueError):
        found = json.loads(_file().read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("made of") == _made_of():
            return found
    return {}


@cache  # changes during the process do not affect the modules that it has imported
def _made_of() -> list[Any]:
    """The package's modules with size and time, and the folders of installed packages with the time of their change."""
    modules = [(path, path.stat()) for path in sorted(PACKAGE.rglob("*.py"))]
    folders = {path for path in map(Path, sys.path) if path.name in {"site-packages", "dist-packages"}}
    libraries = filter(None, map(find_spec, LIBRARIES))  # libraries may be in other folders
    folders |= {Path(library.origin).parent.parent for library in libraries if library.origin}
    return [
        [sys.version, sys.flags.optimize],  # optimization removes docstrings
        [[str(path), state.st_size, state.st_mtime_ns] for path, state in modules],
        [[str(path), path.stat().st_mtime_ns] for path in sorted(folders) if path.is_dir()],
    ]
