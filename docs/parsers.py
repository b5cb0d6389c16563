"""The commands, and the parsers that they read their arguments with."""

from __future__ import annotations

import argparse
import sys
from typing import Any
from unittest.mock import patch

import jsonargparse

from fgvis_lightning.cli import COMMANDS, main


class _Parsed(BaseException):
    """Carries a parser out of the command that has made it."""

    def __init__(self, parser: Any) -> None:
        super().__init__()
        self.parser = parser


def commands() -> list[str]:
    """The names of all commands."""
    return ["fit", *COMMANDS]


def parser_of(command: str) -> Any:
    """The parser that a command is about to read its arguments with; for ``fit`` they begin with that word."""

    def stop(self: Any, *_: Any, **__: Any) -> None:
        raise _Parsed(self)

    with (
        patch.object(sys, "argv", ["fgvis"]),  # else LightningCLI warns of a caller's own arguments
        patch.object(jsonargparse.ArgumentParser, "parse_args", stop),
        patch.object(argparse.ArgumentParser, "parse_args", stop),
    ):
        try:
            main([command])
        except _Parsed as found:
            return found.parser
    raise AssertionError(f"{command} does not read its arguments with argparse or jsonargparse")


def options_of(command: str) -> Any:
    """The part of that parser that has the command's own options."""
    parser = parser_of(command)
    chosen = getattr(parser, "_subcommands_action", None)
    return parser if chosen is None else chosen._name_parser_map[command]


def parse(words: list[str]) -> Any:
    """Read a command line, a command and its arguments, as the program does.

    Raises:
        SystemExit: it has a mistake.
    """
    command, *rest = words
    return parser_of(command).parse_args(words if command == "fit" else rest)
