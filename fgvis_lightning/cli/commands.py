"""The command line: Lightning's own for ``fit``, and the commands beside it.

Exit codes: 0, all items are explained; 1, something of ours or of the system's went wrong; 2, a user's mistake, or
images that cannot be read; 75 (EX_TEMPFAIL), stopped by SIGTERM, so run the same command again; 130, by Ctrl-C; 141, as
by SIGPIPE, standard output was closed.

What can be answered without torch is answered without it, which takes seconds to import.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import version

from fgvis_lightning.cli.completion import script
from fgvis_lightning.cli.ending import Output, stop
from fgvis_lightning.cli.outlines import outline, remembered
from fgvis_lightning.errors import GO_ON, InputError, nearest
from fgvis_lightning.experiments.outline import check_names, short_help

EXPERIMENTS = "fgvis_lightning.experiments."
COMMANDS = {
    "fit": ("fgvis_lightning.cli.fit", "explain images: masks, panels, tables, TensorBoard"),
    "report": ("fgvis_lightning.report.command", "a results folder as one page to look at, sort and filter"),
    "compare": (EXPERIMENTS + "comparison", "FGVis beside eight other methods, in pictures and costs"),
    "evaluate": (EXPERIMENTS + "evaluation", "how faithful explanations are: curves, metrics, best and worst"),
    "benchmark": ("fgvis_lightning.report.benchmark", "many methods and networks: maps, metrics, one page"),
    "pointing": (EXPERIMENTS + "pointing", "whether evidence is in the objects that you mark, by boxes or masks"),
    "bias": (EXPERIMENTS + "bias", "whether a network goes by color, or by position"),
    "adversarial": (EXPERIMENTS + "adversarial", "whether evidence can be made for classes that are not there"),
    "sanity": (EXPERIMENTS + "sanity", "whether maps depend on what the network has learned"),
}
"""Each command's module, which has ``make_parser`` and ``main``, and what it tells or makes."""

STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}


def overview() -> str:
    """The commands."""
    lines = [f"  {name:13}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fgvis COMMAND [options]",
            "",
            "See, pixel by pixel and color by color, what evidence a CNN's decision rests on.",
            "",
            *lines,
            "  completion   fgvis completion bash: a script that completes commands and options",
            "",
            "fgvis COMMAND --help tells what it needs. To begin: fgvis fit --data.images photo.jpg",
        ]
    )


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: with the status that the module's text tells, and one line on standard error, if not all went well.
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
    if (error := output.error) is not None:  # argparse passes over errors of writing its help
        with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # else the interpreter fails to write once more at its end
        if error.errno == errno.EPIPE:
            stop(141, f"Standard output was closed. {GO_ON}")
        stop(1, f"Expected to write to standard output, but: {error.strerror}. {GO_ON}")


def _main(args: Sequence[str] | None, output: Output) -> None:
    command, *rest = list(sys.argv[1:] if args is None else args) or ["--help"]
    try:
        if (text := _answer(command, rest)) is not None:
            print(text)
            return
        from fgvis_lightning.cli.running import run  # torch, Lightning, and all the rest

        run(COMMANDS[command][0], rest, args)
    except InputError as error:
        stop(2, str(error))
    except KeyboardInterrupt:
        stop(130, f"Stopped by Ctrl-C. {GO_ON}")
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):  # Lightning makes an exit of it
            stop(130, f"Stopped by Ctrl-C. {GO_ON}")
        raise
    except OSError as error:
        if error is output.error or error.errno not in STORAGE_ERRORS:
            raise
        where = f" {error.filename}" if error.filename else " the results"
        stop(1, f"Expected to write{where}, but: {error.strerror}. Fix this and run the command again. {GO_ON}")


def _answer(command: str, rest: Sequence[str]) -> str | None:
    """What can be said without running a command; ``None`` if it is to run."""
    if command in {"-h", "--help"}:
        return overview()
    if command == "--version":
        return f"fgvis-lightning {version('fgvis-lightning')}"
    if command == "completion":
        return script(rest[0] if rest else "", {name: module for name, (module, _) in COMMANDS.items()}, outline)
    if command not in COMMANDS:
        raise InputError(f"Expected a command, {', '.join(COMMANDS)}, but got {command!r}.{nearest(command, COMMANDS)}")
    module = COMMANDS[command][0]
    if rest in (["-h"], ["--help"]):
        print(short_help(outline(module)), end="")
        sys.exit(0)
    if known := remembered(module):
        check_names(rest, known)
    return None
