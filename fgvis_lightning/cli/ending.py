"""The end of a command: one line on standard error, and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from fgvis_lightning.errors import GO_ON

STOPPED = (75, 130)  # exit codes of stopped runs
SECONDS = 5  # seconds that stopped runs wait for images that are being decoded


class Output:
    """Standard output that remembers errors of writing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        return self._remembering(self._stream.write, text)

    def flush(self) -> None:
        self._remembering(self._stream.flush)

    def _remembering(self, function: Callable[..., Any], *args: str) -> Any:
        try:
            return function(*args)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def sigterm_stops() -> Iterator[None]:
    """SIGTERM stops the process as it stops a run, while the libraries that a run needs are imported."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stopped_by_sigterm())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stopped_by_sigterm() -> NoReturn:
    """End the process after SIGTERM."""
    stop(75, f"Stopped by SIGTERM. {GO_ON}")


def stop(code: int, message: str) -> NoReturn:
    """Print one line on standard error, and raise `SystemExit` with this code."""
    lightning = sys.modules.get("pytorch_lightning.utilities")
    rank = getattr(getattr(lightning, "rank_zero_only", None), "rank", 0)  # set by the strategy
    print(f"fgvis: {f'rank {rank}: ' if rank else ''}{message}", file=sys.stderr, flush=True)
    if code in STOPPED:  # a decoder may be running, which cannot be stopped, and the interpreter would wait for it
        sys.stdout.flush()
        end = threading.Timer(SECONDS, os._exit, (code,))
        end.daemon = True
        end.start()
    sys.exit(code)
