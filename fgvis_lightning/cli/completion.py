"""``fgvis completion bash``: what a shell needs to complete commands, options and choices."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Literal, get_args, get_origin

import shtab

from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.experiments.parsing import options_of


def script(shell: str, parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """Write the completion script of a shell.

    Args:
        shell: ``bash``, ``zsh`` or ``tcsh``.
        parsers: the parser of each command, by name.

    Raises:
        InputError: if the shell is unknown.
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        known = shtab.SUPPORTED_SHELLS
        raise InputError(f"Expected a shell, {', '.join(known)}, but got {shell!r}.{nearest(shell, known)}")
    plain = argparse.ArgumentParser(prog="fgvis")
    commands = plain.add_subparsers()
    for name, parser in parsers.items():
        command = commands.add_parser(name, help=parser.description, add_help=False)
        for action in parser._actions:
            names = [option for option in action.option_strings if option in options_of(parser)]
            if names:
                given = command.add_argument(*names, choices=_choices(action), help=names[-1])
                if given.choices is None:
                    given.complete = shtab.FILE  # type: ignore[attr-defined]
    commands.add_parser("completion", help="This script.").add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return shtab.complete(plain, shell)


def _choices(action: argparse.Action) -> Sequence[str] | None:
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    kind = getattr(action, "_typehint", None)
    if kind is bool:
        return ["true", "false"]
    return [str(value) for value in get_args(kind)] if get_origin(kind) is Literal else None
