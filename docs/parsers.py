"""The argument parsers of the commands."""

from __future__ import annotations

import importlib
from typing import Any

from fgvis_lightning.cli import COMMANDS


def options_of(command: str) -> Any:
    """The parser of one command."""
    return importlib.import_module(COMMANDS[command][0]).make_parser()


def parse(words: list[str]) -> Any:
    """Parse a command line (a command and its arguments) as the program does.

    Raises:
        InputError: if the command line has a mistake.
    """
    command, *rest = words
    return options_of(command).parse_args(rest)
