"""Turns signals that end a run into exceptions, so that every exit takes the same path.

Ctrl-C raises ``KeyboardInterrupt``, and SIGTERM (a scheduler's preemption) raises Lightning's ``SIGTERMException``. In
a SLURM job, SIGUSR1 (``#SBATCH --signal=USR1@60``) asks SLURM to requeue the job, as Lightning does, and then raises
``SIGTERMException``, too; there is no checkpoint, since a sweep continues from its files.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pytorch_lightning.utilities.exceptions import SIGTERMException

STOPS = (KeyboardInterrupt, SIGTERMException)

_told = threading.Event()  # Lightning restores our handlers when it ends, so they must remember it themselves


@contextmanager
def as_exceptions(last: bool = False) -> Iterator[None]:
    """Raise an exception at the first such signal, and ignore further ones; if ``last``, also after this context."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGTERM: _stop, signal.SIGINT: _stop}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = _stop
    if hasattr(signal, "SIGUSR1") and "SLURM_JOB_ID" in os.environ:
        handlers[signal.SIGUSR1] = _requeue
    _told.clear()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    hook = sys.unraisablehook
    sys.unraisablehook = lambda lost: _again(lost) if isinstance(lost.exc_value, STOPS) else hook(lost)
    try:
        yield
    except RuntimeError as error:
        # A signal inside torch's dispatcher makes the end of a context fail there, with an error instead of its own.
        cause: BaseException | None = error
        while type(cause) is RuntimeError:
            cause = cause.__context__
        if isinstance(cause, STOPS):
            raise cause from None
        raise
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if last and _told.is_set() else handler)


def _stop(number: int, frame: FrameType | None) -> None:
    if _told.is_set():
        return
    _told.set()
    raise KeyboardInterrupt if number == signal.SIGINT else SIGTERMException


def _again(lost: Any) -> None:
    """Send a signal again if its exception was lost in a weak reference's callback or in a ``__del__``."""
    number = signal.SIGINT if isinstance(lost.exc_value, KeyboardInterrupt) else signal.SIGTERM
    signal.signal(number, _stop)
    _told.clear()
    threading.Timer(0.01, os.kill, (os.getpid(), number)).start()


def _requeue(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    if os.environ.get("SLURM_PROCID", "0") == "0":
        array = os.environ.get("SLURM_ARRAY_JOB_ID")
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
        try:
            code = subprocess.run(["scontrol", "requeue", job], check=False).returncode
            print(f"scontrol requeue {job}: {'done' if not code else f'exit code {code}'}", file=sys.stderr)
        except OSError as error:
            print(f"scontrol requeue {job}: {error.strerror}", file=sys.stderr)
    _stop(signal.SIGTERM, frame)
