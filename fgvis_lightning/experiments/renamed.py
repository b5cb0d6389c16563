"""Other names of options: short names, and former names in ``model``, which work until version 0.2."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from fgvis_lightning.defense.options import DefenseOptions
from fgvis_lightning.networks.load import ClassifierOptions

GROUPS: dict[str, Any] = {"classifier": ClassifierOptions, "defense": DefenseOptions}
GROUP_OF = {field.name: group for group, kind in GROUPS.items() for field in fields(kind)}
OPTION = re.compile(rf"--model\.({'|'.join(GROUP_OF)})(?![\w])")
SHORT = {"model": ("reduce", "inputs"), "data": ("channels",)}
"""Options of ``model.classifier`` that can also be given elsewhere."""
SHORT_OPTION = re.compile("|".join(rf"--{place}\.({'|'.join(names)})(?!\w)" for place, names in SHORT.items()))


def former_names() -> list[str]:
    """All options that `with_new_names` replaces."""
    return [f"--model.{name}" for name in GROUP_OF] + [
        f"--{at}.{name}" for at, names in SHORT.items() for name in names
    ]


def with_new_names(args: Sequence[str]) -> list[str]:
    """The arguments, including files of ``--config``, with each former name replaced and reported."""
    found: list[str] = []
    for arg in args:
        if match := SHORT_OPTION.match(arg):
            arg = f"--model.classifier.{match[match.lastindex or 0]}" + arg[match.end() :]
        elif match := OPTION.match(arg):
            new = f"--model.{GROUP_OF[match[1]]}.{match[1]}"
            _say(match[0], new)
            arg = new + arg[match.end() :]
        elif found and found[-1] in {"--config", "-c"}:
            arg = _config(arg)
        elif arg.startswith("--config="):
            arg = "--config=" + _config(arg.removeprefix("--config="))
        found.append(arg)
    return found


def _config(path: str) -> str:
    """The path, or the content with new names if the file has former names."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return path  # the parser reports the problem
    parts = {name: content.get(name) for name in SHORT} if isinstance(content, dict) else {}
    moved = [(place, name) for place, names in SHORT.items() for name in names if name in (parts.get(place) or ())]
    model = content.setdefault("model", {}) if moved else parts.get("model")
    if not isinstance(model, dict):
        return path
    for place, name in moved:
        model["classifier"] = {**(model.get("classifier") or {}), name: content[place].pop(name)}
    old = [name for name in model if name in GROUP_OF]
    for name in old:
        group = GROUP_OF[name]
        _say(f"model.{name} in {path}", f"model.{group}.{name}")
        model[group] = {**(model.get(group) or {}), name: model.pop(name)}
    return yaml.safe_dump(content, allow_unicode=True) if old or moved else path


def _say(old: str, new: str) -> None:
    print(f"fgvis: {old} is now {new}. The former name works until version 0.2.", file=sys.stderr, flush=True)
