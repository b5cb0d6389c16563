"""Runs a command, with all imports that commands need."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Sequence

from pytorch_lightning.utilities.exceptions import SIGTERMException

from fgvis_lightning.cli.ending import stop, stopped_by_sigterm
from fgvis_lightning.cli.fit import FIT, FGVisCLI, run_cli
from fgvis_lightning.cli.outlines import outline
from fgvis_lightning.engine.signals import as_exceptions
from fgvis_lightning.engine.strategy import RankFailedError
from fgvis_lightning.errors import InputError

# Lightning's advice for training that does not apply here.
QUIET = (
    r"Found .* module\(s\) in eval mode",  # the frozen network must be in eval mode
    r"The 'train_dataloader' does not have many workers",  # one batch lasts for hundreds of steps
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # within Lightning
    r"Precision .* is not supported by the model summary",  # the summary's size in MB is not used
    r"Image size .* exceeds limit",  # such images are refused with an error
)


def run(module: str, rest: Sequence[str], args: Sequence[str] | None) -> None:
    """Run the command of a module with the arguments ``rest``.

    ``args`` are the command and its arguments, if they differ from those of the process.

    Raises:
        SystemExit: with the exit code of a failed or stopped run.
        InputError: after a user's mistake.
    """
    # Hide Lightning's advertisement, and its message about max_epochs at the end of a sweep.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.msg and "max_epochs" not in record.msg
    )
    try:
        with as_exceptions(last=True), warnings.catch_warnings():
            for message in QUIET:
                warnings.filterwarnings("ignore", message)
            if module == FGVisCLI.__module__:
                options = {} if args is None else {"args": list(args)}
                run_cli(FGVisCLI, parser_kwargs={"fit": {"description": FIT}, "prog": "fgvis"}, **options)
            else:
                importlib.import_module(module).main(rest)
    except InputError:
        outline(module)  # so that the next misspelled option is reported at once
        raise
    except RankFailedError as error:
        stop(1, str(error))
    except SIGTERMException:
        stopped_by_sigterm()
