"""``fgvis completion bash``: a script with which a shell completes commands, options and choices."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import shtab

from fgvis_lightning.cli.outlines import outline
from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.experiments.outline import options_of


def script(shell: str, modules: Mapping[str, str]) -> str:
    """Make the completion script of a shell.

    Args:
        shell: ``bash``, ``zsh`` or ``tcsh``.
        modules: module of each command.

    Raises:
        InputError: if the shell is unknown.
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        known = shtab.SUPPORTED_SHELLS
        raise InputError(f"Expected a shell, {', '.join(known)}, but got {shell!r}.{nearest(shell, known)}")
    plain = argparse.ArgumentParser(prog="fgvis")
    commands = plain.add_subparsers()
    for name, module in modules.items():
        found = outline(module)
        command = commands.add_parser(name, help=found.description, add_help=False)
        listed = options_of(found)
        for option in found.options:
            names = [written for written in option.names if written in listed]
            if names:
                given = command.add_argument(*names, choices=option.choices, help=names[-1])
                if given.choices is None:
                    given.complete = shtab.FILE  # type: ignore[attr-defined]
    commands.add_parser("completion", help="Print this script.").add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return shtab.complete(plain, shell)
