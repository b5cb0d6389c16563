"""The command line: Lightning's own for ``fit``, and the commands beside it.

Exit codes: 0, all items are explained; 1, something of ours or of the system's went wrong; 2, a user's mistake, or
images that cannot be read; 75 (EX_TEMPFAIL), stopped by SIGTERM, so run the same command again; 130, by Ctrl-C; 141, as
by SIGPIPE, standard output was closed.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from typing import Any, NoReturn, TextIO

from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from fgvis_lightning.cli.fit import FIT, FGVisCLI, run_cli
from fgvis_lightning.engine.signals import as_exceptions
from fgvis_lightning.engine.strategy import RankFailedError
from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.experiments.run import GO_ON

# Lightning's advice for training that does not hold here.
QUIET = (
    r"Found .* module\(s\) in eval mode",  # the frozen network is to be in eval mode
    r"The 'train_dataloader' does not have many workers",  # one batch lasts for hundreds of steps
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # within Lightning
    r"Image size .* exceeds limit",  # such images are refused by name
)


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

STOPPED = (75, 130)
"""Exit codes of runs that were told to stop."""

SECONDS = 5
"""How long they wait for images that are being decoded."""

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
    output = _Output(sys.stdout)
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
            _stop(141, f"Standard output was closed. {GO_ON}")
        _stop(1, f"Expected to write to standard output, but: {error.strerror}. {GO_ON}")


class _Output:
    """Standard output that remembers why it could not be written to.

    Args:
        stream: standard output.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write, as a stream does."""
        with self._remembering():
            return self._stream.write(text)

    def flush(self) -> None:
        """Flush, as a stream does."""
        with self._remembering():
            self._stream.flush()

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _main(args: Sequence[str] | None, output: _Output) -> None:
    command, *rest = list(sys.argv[1:] if args is None else args) or ["--help"]
    # Lightning's advertisement, and its word for a sweep that has come to its end.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.msg and "max_epochs" not in record.msg
    )
    try:
        with as_exceptions(last=True), warnings.catch_warnings():
            for message in QUIET:
                warnings.filterwarnings("ignore", message)
            _run(command, rest, args)
    except InputError as error:
        _stop(2, str(error))
    except RankFailedError as error:
        _stop(1, str(error))
    except SIGTERMException:
        _stop(75, f"Stopped by SIGTERM. {GO_ON}")
    except KeyboardInterrupt:
        _stop(130, f"Stopped by Ctrl-C. {GO_ON}")
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):  # Lightning makes an exit of it
            _stop(130, f"Stopped by Ctrl-C. {GO_ON}")
        raise
    except OSError as error:
        if error is output.error or error.errno not in STORAGE_ERRORS:
            raise
        where = f" {error.filename}" if error.filename else " the results"
        _stop(1, f"Expected to write{where}, but: {error.strerror}. Fix this and run the command again. {GO_ON}")


def _run(command: str, rest: Sequence[str], args: Sequence[str] | None) -> None:
    if command in {"-h", "--help"}:
        print(overview())
    elif command == "--version":
        print(f"fgvis-lightning {version('fgvis-lightning')}")
    elif command == "completion":
        _print_completion(rest)
    elif command == "fit":
        options = {} if args is None else {"args": list(args)}
        run_cli(FGVisCLI, parser_kwargs={"fit": {"description": FIT}, "prog": "fgvis"}, **options)
    elif command in COMMANDS:
        importlib.import_module(COMMANDS[command][0]).main(rest)
    else:
        raise InputError(f"Expected a command, {', '.join(COMMANDS)}, but got {command!r}.{nearest(command, COMMANDS)}")


def _print_completion(rest: Sequence[str]) -> None:
    from fgvis_lightning.cli.completion import script

    parsers = {name: importlib.import_module(module).make_parser() for name, (module, _) in COMMANDS.items()}
    print(script(rest[0] if rest else "", parsers))


def _stop(code: int, message: str) -> NoReturn:
    rank = getattr(rank_zero_only, "rank", 0)  # as the strategy has set it
    print(f"fgvis: {f'rank {rank}: ' if rank else ''}{message}", file=sys.stderr, flush=True)
    if code in STOPPED:  # a decoder may be at work, which nothing can stop, and the interpreter would wait for it
        sys.stdout.flush()
        end = threading.Timer(SECONDS, os._exit, (code,))
        end.daemon = True
        end.start()
    sys.exit(code)
