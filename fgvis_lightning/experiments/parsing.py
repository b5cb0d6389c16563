"""The parsers of all commands: help that fits a screen, commented configurations, and mistakes told in one line."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from textwrap import shorten, wrap
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from pytorch_lightning.cli import LightningArgumentParser

from fgvis_lightning.data.package_files import shipped
from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.experiments.renamed import with_new_names
from fgvis_lightning.networks.heads import NO_REGRESSION

SHOWN = {
    "data.images": "what to explain: a file, a glob, a folder, or a CSV file with columns path and target",
    "data.targets": "for which classes: predicted, label, top3, an index, a name, or a list of these",
    "data.batch_size": "items at a time, or auto for the most that fit the device",
    "model.network": "one of timm's by name; torchvision's or your own by class_path",
    "model.classifier.checkpoint": "file with its weights: a state_dict, a .ckpt of Lightning's, or .safetensors",
    "model.classifier.classes": "file with its class names, one on each line",
    "model.game": "preservation, deletion, generation or repression",
    "model.lam": "auto for the smallest evidence that does, or a fixed weight of the mask's size",
    "model.level": "what auto is to reach, as a share of the image's score: by default at least 1, or at most 0.1",
    "model.iterations": "passes through the network for each item, at most",
    "output": "results folder; the same command goes on in it",
    "config": "YAML file with any of these options; configs/ has some",
    "trainer.accelerator": "cpu, gpu, mps, …",
    "trainer.devices": "how many of them share the items",
    "trainer.precision": "32-true, bf16-mixed, 16-mixed, …",
}
"""Options that ``--help`` shows beside a command's own."""

HIDDEN = {"help", "help_all", "print_config", "seed_everything", "ckpt_path", "weights_only"}
EMPTY = "an empty text"
KINDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}


class MissingError(InputError):
    """Options that the command needs were not given."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        super().__init__(f"Expected {' and '.join(names)}, but got nothing. --help shows what the command needs.")


class Parser(LightningArgumentParser):
    """A parser whose ``--help`` shows what most runs need and whose ``--help_all`` shows every option.

    ``--print_config`` prints the configuration with what the options mean beside them. Mistakes raise `InputError`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, allow_abbrev=False, formatter_class=_Formatter, **options)
        self.add_argument("--help_all", action=_HelpAll, help="Show every option and exit.")
        self.needed: Sequence[str] = ()  # options without which the command does nothing

    def format_help(self, *_: Any) -> str:
        return short_help(self)

    def format_help_all(self) -> str:
        return super().format_help()

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *others: Any, **options: Any
    ) -> Any:
        given = sys.argv[1:] if args is None else args
        if asks_for_help(given):
            self.find_needed()
        whole: list[str] = []
        for arg in given:
            if whole and whole[-1] in {"--config", "-c"}:
                arg = shipped(arg)
            elif arg.startswith("--config="):
                arg = "--config=" + shipped(arg.removeprefix("--config="))
            whole.append("--print_config=comments" if arg == "--print_config" else arg)
        try:
            parsed = super().parse_args(with_new_names(whole), *others, **options)
        except (RecursionError, UnicodeDecodeError) as error:
            raise InputError("Expected a configuration in YAML, but it is nested too deeply or no text.") from error
        if getattr(getattr(parsed, "fit", parsed), "output", None) == "":
            raise InputError("Expected --output to name a folder, but got an empty name.")
        return parsed

    def find_needed(self, *command: str) -> Sequence[str]:
        """Must come before a help text: while a parser parses, nothing is required."""
        with suppress(InputError):
            try:
                super().parse_args(list(command))
            except MissingError as error:
                self.needed = error.names
        return self.needed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if match := re.match(r"the following arguments are required: (.*)", message):
            positional = {action.dest for action in self._actions if not action.option_strings}
            names = [name.removeprefix("fit.") for name in match[1].split(", ")]
            raise MissingError([name.upper() if name in positional else f"--{name}" for name in names]) from ex
        parser = getattr(ex, "subcommand_parser", None) or self
        raise InputError(explained(message, options_of(parser))) from ex


class _Formatter(DefaultHelpFormatter):
    """jsonargparse's, without the two thousand modules that a network could be an instance of."""

    def _expand_help(self, action: argparse.Action) -> str:
        return re.sub(r", known subclasses: (?:[^,)]*, ){20,}[^)]*", "", super()._expand_help(action))


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, "help_all", nargs=0, default=argparse.SUPPRESS, help=options["help"])

    def __call__(self, parser: Any, *_: Any) -> None:
        print(parser.format_help_all(), end="")
        parser.exit()


def asks_for_help(args: Sequence[str] | None) -> bool:
    """Whether the arguments ask for help; ``None`` stands for the command line's own arguments."""
    return not {"-h", "--help"}.isdisjoint(sys.argv[1:] if args is None else args)


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """Its options as they are written, without short forms and those that append."""
    names = [name for action in parser._actions for name in action.option_strings]
    return [name for name in names if name.startswith("--") and not name.endswith("+")]


def explained(message: str, known: Sequence[str]) -> str:
    """A parser's complaint as one line; an unknown option with the nearest ones."""
    text = " ".join(message.split())
    if match := re.match(r"unrecognized arguments: (\S+)", text, re.IGNORECASE):
        option = match[1].split("=")[0]
        if not option.startswith("--"):
            return f"Expected options that begin with --, but got {match[1]!r}."
        return f"Expected an option of this command, but got {option}.{nearest(option, known)} --help_all shows all."
    if re.search(r"multilabel.*'?regression'?$", text):
        return f"--model.task: Expected multiclass, multilabel or binary, but got regression. {NO_REGRESSION}"
    text = re.sub(r"^Parser key \"([\w.]+)\":", r"--\1:", text)
    text = re.sub(r"a typing\.Literal\[([^]]*)\]", lambda found: f"one of {found[1]}".replace("'", ""), text)
    text = re.sub(r"an? <class '(\w+)'>", lambda found: KINDS.get(found[1], found[1]), text)
    if foreign := re.match(r"(--[\w.]+: ).*- Expected a path but (\S+) either not accessible or invalid", text):
        return f"{foreign[1]}Expected the class_path of something that the option takes, but got {foreign[2]}"
    if several := re.search(
        r"Does not validate against any of the Union .* Errors: (.*) Given value type: .*: ?(.*)$", text
    ):
        kinds = [kind.strip() for kind in several[1].split("- Expected") if kind.strip() not in ("", "NoneType")]
        kinds = [re.sub(r"^one of (\w+)$", r"\1", kind) for kind in kinds]
        return f"{text[: several.start()]}Expected {' or '.join(kinds)}, but got {several[2] or EMPTY}"
    return re.sub(r"\. Got value:(.*)", lambda found: f", but got {found[1].strip() or EMPTY}", text)


def short_help(parser: argparse.ArgumentParser, width: int | None = None) -> str:
    """Help with the options that most runs need, at most ``width`` columns wide, the terminal's unless given."""
    width = min(width or shutil.get_terminal_size().columns, 110)
    known = {f"--{action.dest}": action for action in parser._actions if action.option_strings}
    known |= {action.dest.upper(): action for action in parser._actions if not action.option_strings}
    # What all commands share that work on images; others have options of the same names with another meaning.
    shared = {f"--{dest}": text for dest, text in SHOWN.items() if f"--{dest}" in known and "--config" in known}
    own = [name for name, action in known.items() if "." not in name and name not in shared and _is_own(action)]
    trainer = [name for name in shared if name.startswith("--trainer.")]
    needed = getattr(parser, "needed", ())
    order = list(dict.fromkeys([*needed, *(name for name in shared if name not in trainer), *own, *trainer]))
    prog = parser.prog.replace(" [options]", "")
    usage = " ".join(["usage:", prog, *(f"{name} …" if "--" in name else name for name in needed), "[options]"])
    lines = [*wrap(usage, width, subsequent_indent="         "), "", *wrap(parser.description or "", width), ""]
    column = max(map(len, order)) + 4
    for name in order:
        text = shared.get(name) or _clause(known[name].help or "")
        if (default := known[name].default) not in (None, "", argparse.SUPPRESS):
            text += f" ({shorten(str(default), 40, placeholder='…')})"
        begin, *rest = wrap(text, width - column) or [""]
        lines += [f"{'  ' + name:{column}}{begin}", *(" " * column + line for line in rest)]
    more = len([name for name, action in known.items() if name not in order and action.dest not in HIDDEN])
    if "--config" in known:
        lines += ["", f"{prog} --help_all shows {more} more options;"]
        lines += [f"{prog} --print_config prints all as commented YAML."]
    return "\n".join(lines) + "\n"


def _is_own(action: argparse.Action) -> bool:
    """Whether an option is the command's own, and neither one that every command has nor a group's file."""
    hidden = action.dest in HIDDEN or action.help == argparse.SUPPRESS
    return not hidden and type(action).__name__ != "_ActionConfigLoad"


def _clause(text: str) -> str:
    """The beginning of a help text, up to the end of its first clause."""
    text = " ".join(text.replace("``", "").replace("`", "").split())
    return re.split(r"(?<!e\.g)[.;:](?: |$)", text, maxsplit=1)[0]
