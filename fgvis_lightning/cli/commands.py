"""The command line: Lightning's own for ``fit``, and the other commands.

Exit codes: 0, all items are explained; 1, an internal or system error; 2, a user's mistake, or unreadable images; 75
(EX_TEMPFAIL), stopped by SIGTERM, so run the same command again; 130, stopped by Ctrl-C; 141, standard output was
closed, as for SIGPIPE.

torch takes seconds to import, so it is only imported if a command needs it.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from importlib.metadata import version
from pathlib import Path

import shtab

from fgvis_lightning.cli.ending import Output, sigterm_stops, stop
from fgvis_lightning.cli.outlines import outline, remembered
from fgvis_lightning.errors import GO_ON, InputError, nearest, one_of
from fgvis_lightning.experiments.outline import check_names, options_of, short_help
from fgvis_lightning.names import program

EXPERIMENTS = "fgvis_lightning.experiments."
COMMANDS = {
    "fit": ("fgvis_lightning.cli.fit", "explain images: masks, panels, tables, TensorBoard"),
    "predict": (EXPERIMENTS + "prediction", "print the most probable classes of images"),
    "report": ("fgvis_lightning.report.command", "show a results folder as a page to sort and filter"),
    "compare": (EXPERIMENTS + "comparison", "compare FGVis with other methods: pictures and costs"),
    "evaluate": (EXPERIMENTS + "evaluation", "measure faithfulness: curves, metrics, best and worst items"),
    "benchmark": ("fgvis_lightning.report.benchmark", "run many methods and networks: maps, metrics, one page"),
    "pointing": (EXPERIMENTS + "pointing", "test whether evidence is inside marked objects (boxes or masks)"),
    "bias": (EXPERIMENTS + "bias", "test whether a network depends on color or position"),
    "adversarial": (EXPERIMENTS + "adversarial", "try to generate evidence for classes that are not there"),
    "sanity": (EXPERIMENTS + "sanity", "test whether maps depend on what the network has learned"),
}
"""Module of each command, with ``make_parser`` and ``main``, and a description."""

CONFIG = "--config", "-c"
STORAGE_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
}


def overview() -> str:
    """The text of ``fgvis --help``."""
    lines = "\n".join(f"  {name:13}{summary}" for name, (_, summary) in COMMANDS.items())
    return (
        f"usage: {program()} COMMAND [options]\n\n"
        f"See the evidence behind a CNN's decision, pixel by pixel and color channel by color channel.\n\n"
        f"{lines}\n"
        f"  completion   print a completion script for a shell: fgvis completion bash\n\n"
        f"Run {program()} COMMAND --help for its options.\n"
        f"To begin: {program()} fit --data.images photo.jpg"
    )


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: after an error, with an exit code of the module's docstring and one line on standard error.
    """
    output = Output(sys.stdout)
    try:
        with redirect_stdout(output):
            try:
                _main(args, output)
            finally:
                output.flush()
    except (OSError, SystemExit) as ended:
        if output.error is None or (ended is not output.error and getattr(ended, "code", True)):
            raise
    if (error := output.error) is not None:  # argparse ignores errors when writing its help
        with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # otherwise the interpreter fails to write again at its end
        if error.errno == errno.EPIPE:
            stop(141, f"Standard output was closed. {GO_ON}")
        stop(1, f"Expected to write to standard output, but got: {error.strerror}. {GO_ON}")


def _main(args: Sequence[str] | None, output: Output) -> None:
    with suppress(OSError):  # the current folder has been deleted
        if (here := str(Path.cwd())) not in sys.path:
            # So that its modules are found, after installed ones. Not as "", since the parser reads each configuration
            # from the configuration's own folder.
            sys.path.append(here)
    command, *rest = list(sys.argv[1:] if args is None else args) or ["--help"]
    rest = configurations_first(rest)
    if args is None:
        sys.argv[1:] = [command, *rest]  # which Lightning reads
    else:
        args = [command, *rest]
    try:
        if (text := _answer(command, rest)) is not None:
            print(text)
            return
        with sigterm_stops():
            from fgvis_lightning.cli.running import run  # imports torch and Lightning

        run(COMMANDS[command][0], rest, args)
    except InputError as error:
        stop(2, str(error))
    except KeyboardInterrupt:
        stop(130, f"Stopped by Ctrl-C. {GO_ON}")
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):  # Lightning turns it into an exit
            stop(130, f"Stopped by Ctrl-C. {GO_ON}")
        raise
    except OSError as error:
        if error is output.error or error.errno not in STORAGE_ERRORS:
            raise
        where = f" {error.filename}" if error.filename else " the results"
        stop(1, f"Expected to write{where}, but got: {error.strerror}. Fix this and run the command again. {GO_ON}")


def configurations_first(args: Sequence[str]) -> list[str]:
    """Arguments with ``--config`` before all others, so that options change a configuration wherever it stands."""
    configurations: list[str] = []
    others: list[str] = []
    left = iter(args)
    for given in left:
        if given in CONFIG and (file := next(left, None)) is not None:
            configurations += [given, file]
        else:
            (configurations if given.startswith("--config=") else others).append(given)
    return configurations + others


def _answer(command: str, rest: Sequence[str]) -> str | None:
    """The answer to a command line that needs no run of a command; None if the command must run."""
    if command in {"-h", "--help"}:
        return overview()
    if command == "--version":
        return f"fgvis-lightning {version('fgvis-lightning')}"
    if command == "completion":
        if rest and rest[0] in {"-h", "--help"}:
            shells = ", ".join(shtab.SUPPORTED_SHELLS)
            return f"usage: {program()} completion SHELL\n\nPrint a completion script for {shells}."
        return completion(rest[0] if rest else "")
    if command not in COMMANDS:
        photo = next((word for word in (command, *rest) if os.path.exists(word)), "")  # noqa: PTH110
        hint = f" To explain a photo: {program()} fit --data.images {photo}" if photo else nearest(command, COMMANDS)
        raise InputError(f"Expected a command, {', '.join(COMMANDS)}, but got {command!r}.{hint}")
    module = COMMANDS[command][0]
    if rest in (["-h"], ["--help"]):
        print(short_help(outline(module)), end="")
        sys.exit(0)
    if known := remembered(module):
        check_names(rest, known)
    return None


def completion(shell: str) -> str:
    """A script with which a shell completes commands, options and choices: ``fgvis completion bash``.

    Args:
        shell: one of shtab's, such as ``bash``, ``zsh`` or ``fish``.

    Raises:
        InputError: if the shell is unknown.
    """
    one_of(shtab.SUPPORTED_SHELLS, shell=shell)
    plain = argparse.ArgumentParser(prog="fgvis")
    commands = plain.add_subparsers()
    for name, (module, _) in COMMANDS.items():
        found = outline(module)
        command = commands.add_parser(name, help=found.description, add_help=False)
        listed = options_of(found)
        for option in found.options:
            if names := [written for written in option.names if written in listed]:
                given = command.add_argument(*names, choices=option.choices, help=names[-1])
                if given.choices is None:
                    given.complete = shtab.FILE  # type: ignore[attr-defined]
    commands.add_parser("completion", help="Print this script.").add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return shtab.complete(plain, shell)
