"""The parsers of all commands: help that fits a screen, commented configurations, and one-line messages."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from pytorch_lightning.cli import LightningArgumentParser

from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.outline import (
    check_lists,
    options_of,
    outline_of,
    required,
    short_help,
    unknown_option,
)
from fgvis_lightning.experiments.renamed import NAMES, with_new_names
from fgvis_lightning.networks.heads import NO_REGRESSION

EMPTY = "an empty text"
KINDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}


class Parser(LightningArgumentParser):
    """A parser whose ``--help`` shows the options of most runs, and whose ``--help_all`` shows every option.

    ``--print_config`` prints the configuration with comments that explain the options. Mistakes raise `InputError`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, allow_abbrev=False, formatter_class=_Formatter, **options)
        self.add_argument("--help_all", action=_HelpAll, help="Show every option and exit.")
        self.needed: list[str] = []  # required options, noted before parsing
        self.former = list(NAMES)

    def format_help(self, *_: Any) -> str:
        return short_help(outline_of(self))

    def format_help_all(self) -> str:
        return super().format_help()

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *others: Any, **options: Any
    ) -> Any:
        given = sys.argv[1:] if args is None else args
        self.needed = required(self) or self.needed
        check_lists(given, outline_of(self))
        given = ["--print_config=comments" if arg == "--print_config" else arg for arg in given]
        try:
            parsed = super().parse_args(with_new_names(given), *others, **options)
        except (RecursionError, UnicodeDecodeError) as error:
            raise InputError("Expected a configuration in YAML, but it is nested too deeply or not a text.") from error
        output = getattr(getattr(parsed, "fit", parsed), "output", None)
        if output == "":
            raise InputError("Expected --output to name a folder, but got an empty name.")
        if output == "~" or (output and output.startswith("~/")):
            raise InputError(
                f"Expected --output to name a folder, but got {output}: only shells replace ~, without quotes."
            )
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if match := re.match(r"the following arguments are required: (.*)", message):
            positional = {action.dest for action in self._actions if not action.option_strings}
            keys = [key.removeprefix("fit.") for key in match[1].split(", ")]
            names = " and ".join(key.upper() if key in positional else f"--{key}" for key in keys)
            raise InputError(f"Expected {names}, but got nothing. --help shows the required options.") from ex
        parser = getattr(ex, "subcommand_parser", None) or self
        raise InputError(explained(message, options_of(outline_of(parser)))) from ex


class _Formatter(DefaultHelpFormatter):
    """jsonargparse's formatter, without the list of two thousand classes for a network."""

    def _expand_help(self, action: argparse.Action) -> str:
        return re.sub(r", known subclasses: (?:[^,)]*, ){20,}[^)]*", "", super()._expand_help(action))


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, "help_all", nargs=0, default=argparse.SUPPRESS, help=options["help"])

    def __call__(self, parser: Any, *_: Any) -> None:
        print(parser.format_help_all(), end="")
        parser.exit()


def explained(message: str, known: Sequence[str]) -> str:
    """A parser's error message in one line; an unknown option with the nearest ones."""
    text = " ".join(message.split())
    if match := re.match(r"unrecognized arguments: (\S+)", text, re.IGNORECASE):
        option = match[1].split("=")[0]
        if not option.startswith("--"):
            hint = ' Write a list in quotes: "[a, b]".' if match[1].endswith(",") else ""
            if os.path.exists(option):  # noqa: PTH110
                hint = (
                    " Images follow --data.images: a file, or a folder, glob or list in quotes, such as 'photos/*.jpg'."
                )
            return f"Expected options that begin with --, but got {match[1]!r}.{hint}"
        return unknown_option(option, known)
    foreign = re.match(r"Option '([^']+)' is not accepted", text)  # of a configuration, or of a class
    if foreign and "--config" in known and "init_args" not in foreign[1]:
        return unknown_option(f"--{foreign[1]}", known)
    if re.search(r"multilabel.*'?regression'?$", text):
        return f"--model.task: Expected multiclass, multilabel or binary, but got regression. {NO_REGRESSION}"
    text = re.sub(r"^Parser key \"([\w.]+)\":", r"--\1:", text)
    text = re.sub(r"a typing\.Literal\[([^]]*)\]", lambda found: f"one of {found[1]}".replace("'", ""), text)
    text = re.sub(r"an? <class '(\w+)'>", lambda found: KINDS.get(found[1], found[1]), text)
    text = re.sub(
        r"Problem with given class_path '([^']+)':",
        r"Expected a class_path that can be imported, and arguments of its class, but got \1:",
        text,
    )
    text = re.sub(r"Option '([^']+)' is not accepted", r"Expected arguments that the class has, but got \1", text)
    if path := re.match(r"(--[\w.]+: ).*- Expected a path but (\S+) either not accessible or invalid", text):
        return f"{path[1]}Expected a class_path that the option accepts, but got {path[2]}"
    if several := re.search(
        r"Does not validate against any of the Union .* Errors: (.*) Given value type: .*: ?(.*)$", text
    ):
        kinds = [kind.strip() for kind in several[1].split("- Expected") if kind.strip() not in ("", "NoneType")]
        if own := [kind for kind in kinds if ", but got " in kind]:  # of the given class, not of a kind of value
            return f"{text[: several.start()]}Expected {own[0]}"
        kinds = [re.sub(r"^one of (\w+)$", r"\1", kind) for kind in kinds]
        return f"{text[: several.start()]}Expected {' or '.join(kinds)}, but got {several[2] or EMPTY}"
    return re.sub(r"\. Got value:(.*)", lambda found: f", but got {found[1].strip() or EMPTY}", text)
