"""The data of a command's parser for help, completion and mistakes, without importing any library."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from textwrap import shorten, wrap
from typing import Any, Literal, NamedTuple, get_args, get_origin

from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.names import program

SHOWN = {
    "data.images": "images: a file, a glob, a folder, or a CSV file with columns path and target",
    "data.targets": "target classes: predicted, label, top3, an index, a name, or a list of these",
    "data.batch_size": "inputs that pass together, each run of an item counted; or auto for as many as fit",
    "model.network": "a timm network by name; a torchvision network or your own by class_path",
    "model.classifier.checkpoint": "file with the weights: a state_dict, a Lightning .ckpt, or .safetensors",
    "model.classifier.classes": "class names, or a file with one per line",
    "model.game": "preservation, deletion, generation or repression",
    "model.lam": "auto for the smallest evidence that reaches --model.level, or a fixed weight of the mask's size",
    "model.level": "score that auto must reach, as a share of the image's score: by default at least 1, or at most 0.1",
    "model.iterations": "maximum number of optimizer steps for each item (default: 200, with a fixed lambda 500)",
    "model.seeds": "runs of each image, merged into one mask (default: 6, with a fixed lambda 1; 1 is faster)",
    "output": "results folder; the same command continues in it",
    "config": "YAML file with any of these options, such as those in configs/",
    "trainer.accelerator": "cpu, gpu, mps, …",
    "trainer.devices": "number of devices that share the items",
    "trainer.precision": "32-true, bf16-mixed, 16-mixed, …",
}
"""Options that ``--help`` shows in addition to a command's own."""

HIDDEN = {"help", "help_all", "print_config", "seed_everything", "ckpt_path", "weights_only"}

FOREIGN = "print_shtab"  # jsonargparse's completion option, which parsers get after parsing; ``completion`` is better


class Option(NamedTuple):
    """An option or an argument."""

    names: list[str]  # as written, such as ``--model.game`` and ``--data.images+``; empty for an argument
    dest: str  # its name in the configuration
    help: str  # the first clause of its help text
    default: str  # as text; empty if there is none
    choices: list[str] | None  # its values, if they can be listed
    group: bool  # whether it takes a file with all options of a group
    listed: bool  # whether it takes a list of texts


class Outline(NamedTuple):
    """A command's options."""

    prog: str  # the command as written
    description: str  # its purpose
    needed: list[str]  # required options
    former: list[str]  # former options, which the parser replaces by new ones
    options: list[Option]  # all other options


def required(parser: argparse.ArgumentParser) -> list[str]:
    """Options and arguments, as written, that must be given; while it parses, jsonargparse requires none."""
    actions = [action for action in parser._actions if action.required and not action.default]
    return [f"--{action.dest}" if action.option_strings else action.dest.upper() for action in actions]


def outline_of(parser: argparse.ArgumentParser) -> Outline:
    """The outline of a parser."""
    return Outline(
        parser.prog.replace(" [options]", ""),
        parser.description or "",
        required(parser) or list(getattr(parser, "needed", ())),
        list(getattr(parser, "former", ())),
        [_option(action) for action in parser._actions if action.dest != FOREIGN],
    )


def _option(action: argparse.Action) -> Option:
    default = "" if action.default in (None, "", argparse.SUPPRESS) else str(action.default)
    return Option(
        list(action.option_strings),
        action.dest,
        _clause(action.help or ""),
        default,
        _choices(action),
        type(action).__name__ == "_ActionConfigLoad",
        re.search(r"list\[str\b", str(getattr(action, "_typehint", ""))) is not None,
    )


def _clause(text: str) -> str:
    """The beginning of a help text, up to the end of its first clause."""
    text = " ".join(text.replace("``", "").replace("`", "").split())
    return re.split(r"(?<!e\.g)[.;:](?: |$)", text, maxsplit=1)[0]


def _choices(action: Any) -> list[str] | None:
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    kind = getattr(action, "_typehint", None)
    if kind is bool:
        return ["true", "false"]
    return [str(value) for value in get_args(kind)] if get_origin(kind) is Literal else None


def options_of(outline: Outline) -> list[str]:
    """Options as written, without short forms and forms that append."""
    names = [name for option in outline.options for name in option.names]
    return [name for name in names if name.startswith("--") and not name.endswith("+")]


def short_help(outline: Outline, width: int | None = None) -> str:
    """Help with the options of most runs, at most ``width`` columns wide, by default the terminal's width."""
    width = min(width or shutil.get_terminal_size().columns, 110)
    known = {f"--{option.dest}": option for option in outline.options if option.names}
    known |= {option.dest.upper(): option for option in outline.options if not option.names}
    # Shared by all commands on images; other commands have options of the same names with other meanings.
    shared = {f"--{dest}": text for dest, text in SHOWN.items() if f"--{dest}" in known and "--config" in known}
    own = [name for name, option in known.items() if "." not in name and name not in shared and _is_own(option)]
    trainer = [name for name in shared if name.startswith("--trainer.")]
    order = list(dict.fromkeys([*outline.needed, *(name for name in shared if name not in trainer), *own, *trainer]))
    needed = (f"{name} …" if "--" in name else name for name in outline.needed)
    prog = program() + outline.prog.removeprefix("fgvis")
    usage = " ".join(["usage:", prog, *needed, "[options]"])
    lines = [
        *wrap(usage, width, subsequent_indent="         "),
        "",
        *wrap(" ".join(outline.description.split()), width),
        "",
    ]
    column = max(map(len, order)) + 4
    for name in order:
        text = shared.get(name) or known[name].help
        if default := known[name].default:
            text += f" ({shorten(default, 40, placeholder='…')})"
        begin, *rest = wrap(text, width - column) or [""]
        lines += [f"{'  ' + name:{column}}{begin}", *(" " * column + line for line in rest)]
    more = len([name for name, option in known.items() if name not in order and option.dest not in HIDDEN])
    if "--config" in known:
        lines += ["", f"{prog} --help_all shows {more} more options;"]
        lines += [f"{prog} --print_config prints all options as commented YAML."]
    return "\n".join(lines) + "\n"


def _is_own(option: Option) -> bool:
    """Whether an option belongs to this command only, and does not take a group's file."""
    return option.dest not in HIDDEN and option.help != argparse.SUPPRESS and not option.group


def check_names(args: Sequence[str], outline: Outline) -> None:
    """Raise `InputError`, as the parser would, for an option that the command lacks, or a list given twice."""
    known = {name for option in outline.options for name in option.names} | {*outline.former, f"--{FOREIGN}"}
    # Options of an object's class, such as --model.network.init_args.depth; all options of a group are known.
    takes_more = tuple(f"{name}." for name in known - {name for o in outline.options if o.group for name in o.names})
    check_lists(args, outline)
    for arg in args:
        name = arg.split("=")[0].removesuffix("+")
        if name == "--":
            return
        if name.startswith("--") and " " not in arg and name not in known and not name.startswith(takes_more):
            raise InputError(unknown_option(name, options_of(outline)))


def check_lists(args: Sequence[str], outline: Outline) -> None:
    """Raise `InputError` for a list that is given twice, of which the parser would take the second one in silence."""
    given = [arg.split("=")[0] for arg in args]
    for option in outline.options:
        name = f"--{option.dest}"
        if option.listed and given.count(name) > 1:
            raise InputError(f'Expected {name} once, but got it several times. For a list, write {name} "[a, b]".')


def unknown_option(name: str, known: Sequence[str]) -> str:
    """The message for an option that a command does not have."""
    return f"Expected an option of this command, but got {name}.{nearest(name, known)} --help_all shows all options."
