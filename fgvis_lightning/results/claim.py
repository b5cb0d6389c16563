"""Locks that allow only one sweep at a time in a results folder, with one process for each rank."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from fgvis_lightning.errors import InputError

LOCKS = ".locks"
SECONDS = 2  # time to wait for another rank that is checking whether this rank is alive


class Claim:
    """One rank's claim to work in a folder; it ends with the process, even after a crash.

    Args:
        output: the results folder.
        rank: rank of this process in the sweep.

    Raises:
        InputError: if another sweep is running in the folder.
    """

    def __init__(self, output: Path, rank: int) -> None:
        self.output = output
        self.rank = rank
        (output / LOCKS).mkdir(exist_ok=True)
        self._own: FileLock | None = FileLock(output / LOCKS / f"rank{rank}")
        self._works = _works(output / LOCKS)
        if not self._works:
            print(
                f"{output} is on a file system without locks: make sure that only one sweep writes to it at a time. "
                f"Temporary files of killed runs are not removed.",
                file=sys.stderr,
            )
            return
        try:
            self._own.acquire(SECONDS)
        except Timeout:
            raise InputError(
                f"Expected no other sweep at work in {output}, but there is one. Wait for it to end, give it more "
                f"devices instead of starting a second sweep, or choose another --output."
            ) from None
        if rank == 0:
            self._sweep_up()

    def alone(self) -> bool:
        """Whether no other rank is running, according to the locks."""
        if not self._works:
            return True
        with ExitStack() as locks:
            return self._lock_others(locks)

    def release(self, at_last: Callable[[], object]) -> None:
        """End the claim. The last rank to end calls ``at_last``, while no other can start; a second call does nothing.

        Every rank finishes writing before it releases its claim, so the last rank sees all files.
        """
        own, self._own = self._own, None
        if own is None:
            return
        if not self._works:
            at_last()
            return
        # One rank at a time, so that one of two that end together is the last.
        with ExitStack() as locks:
            _try(FileLock(self.output / LOCKS / "end"), locks, timeout=-1)
            if self._lock_others(locks):
                at_last()
            own.release()

    def _lock_others(self, locks: ExitStack) -> bool:
        """Lock all other ranks' files; False if one of the ranks is running."""
        others = [path for path in (self.output / LOCKS).glob("rank*") if path.name != f"rank{self.rank}"]
        return all(_try(FileLock(path), locks) for path in others)

    def _sweep_up(self) -> None:
        """Remove temporary files of processes that no longer exist."""
        for folder in (self.output, *(path for path in self.output.iterdir() if path.is_dir())):
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if entry.name.endswith(".tmp")]
            for name in names:
                match = re.fullmatch(r"\..+\.rank(\d+)\.tmp", name)
                if match is None:
                    continue
                with ExitStack() as locks:
                    rank = int(match[1])
                    if rank == self.rank or _try(FileLock(self.output / LOCKS / f"rank{rank}"), locks):
                        (folder / name).unlink(missing_ok=True)


def _works(folder: Path) -> bool:
    """Whether locks work in a folder, tested with a private file."""
    path = folder / f"probe{os.getpid()}.{threading.get_native_id()}"
    try:
        with FileLock(path).acquire(0):
            return True
    except (Timeout, NotImplementedError, OSError):
        return False
    finally:
        path.unlink(missing_ok=True)


def _try(lock: FileLock, locks: ExitStack, timeout: float = 0) -> bool:
    """Lock a file until ``locks`` is closed; False if another process holds the lock."""
    try:
        locks.enter_context(lock.acquire(timeout))
    except Timeout:
        return False
    return True
