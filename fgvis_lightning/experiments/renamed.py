"""Other names of options: short names, and former names in ``model``, which work until version 0.2."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from fgvis_lightning.data.photos import shipped
from fgvis_lightning.defense.options import DefenseOptions
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.load import ClassifierOptions

GROUPS: dict[str, Any] = {"classifier": ClassifierOptions, "defense": DefenseOptions}
SHORT = {
    "--model.reduce": "--model.classifier.reduce",
    "--model.inputs": "--model.classifier.inputs",
    "--data.channels": "--model.classifier.channels",
}
"""Options of ``model.classifier`` that can also be given elsewhere."""
FORMER = {
    f"--model.{field.name}": f"--model.{group}.{field.name}" for group, kind in GROUPS.items() for field in fields(kind)
}
PLACES = ("data", "model", "trainer", "writer", "tensorboard", "progress")
"""Groups of options; of some, the parser ignores a value that is no group."""
NAMES = FORMER | SHORT  # all options that `with_new_names` replaces, with their names


def with_new_names(args: Sequence[str]) -> list[str]:
    """The arguments, including files of ``--config``, with each former name replaced and reported."""
    found: list[str] = []
    for arg in args:
        option = re.match(r"--\w+\.\w+", arg)
        if option and option[0] in NAMES:
            arg = _name(option[0], option[0]) + arg[option.end() :]
        elif found and found[-1] in {"--config", "-c"}:
            arg = _config(arg)
        elif arg.startswith("--config="):
            arg = "--config=" + _config(arg.removeprefix("--config="))
        found.append(arg)
    return found


def _config(path: str) -> str:
    """The path of a configuration, perhaps the package's own; or its content with new names if it has former names.

    Raises:
        InputError: if one of `PLACES` is neither a group of options nor the name of a file with them.
    """
    path = shipped(path)
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return path  # the parser reports the problem
    parts = {place: content.get(place) or {} for place in PLACES} if isinstance(content, dict) else {}
    for place, part in parts.items():
        if not isinstance(part, dict | str):
            raise InputError(f"Expected options below {place} in {path}, such as those in configs/, but got {part}.")
    groups = {place: part for place, part in parts.items() if isinstance(part, dict)}
    old = [(place, name) for place, group in groups.items() for name in group if f"--{place}.{name}" in NAMES]
    if not old or "model" not in groups:
        return path
    model = groups["model"]
    for place, name in old:
        _, group, _ = _name(f"--{place}.{name}", f"{place}.{name} in {path}").split(".")
        model[group] = {**(model.get(group) or {}), name: groups[place].pop(name)}
    return yaml.safe_dump(content | {"model": model}, allow_unicode=True)


def _name(option: str, where: str) -> str:
    """The name of an option, after reporting a former one."""
    new = NAMES[option]
    if option not in SHORT:
        told = new if where == option else new.removeprefix("--")
        print(f"fgvis: {where} is now {told}. The former name works until version 0.2.", file=sys.stderr, flush=True)
    return new
