"""``batch_size: auto``: the largest batch that fits on the device, found by trying.

Sizes are doubled until one does not fit; then the gap is halved until it is an eighth. An accelerator reports when its
memory is full. On a CPU, the system would kill the process instead, so a size counts as too large if, according to the
memory of smaller sizes, it would take more than half of the free memory.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from pytorch_lightning.utilities.memory import garbage_collection_cuda, is_oom_error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a device is out of memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or is_oom_error(error)


def largest_batch_size(
    attempt: Callable[[int], None], most: int, first: int = 1, room: Callable[[int], int] | None = None
) -> int:
    """The largest size up to ``most`` for which ``attempt`` succeeds, to within an eighth.

    Args:
        attempt: performs the steps that take the most memory, with a batch of the given size.
        most: largest useful size.
        first: first size to try, e.g. one found before.
        room: estimates the largest size that fits, given the size tried last; None without an estimate.

    Raises:
        BaseException: an error of ``attempt`` other than out of memory, or any error with a single image.
    """

    def fits(size: int) -> bool:
        try:
            attempt(size)
        except BaseException as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            error.__traceback__ = None  # its frames hold tensors
            return False
        finally:
            gc.collect()
            garbage_collection_cuda()
        return True

    good = max(1, min(first, most))
    bad = most + 1
    while not fits(good):
        bad, good = good, good // 2
    while True:
        limit = min(bad - 1, room(good)) if room is not None else bad - 1
        bounded = limit < most  # limited by memory, not by the number of images
        if limit <= good or (bounded and limit - good < good // 8):
            return good
        size = good + (bad - good) // 2 if bad <= most else 2 * good
        if fits(size := min(size, limit)):
            good = size
        else:
            bad = size


class FreeMemory:
    """Estimate of the batch that fits into half of a CPU's free memory, based on the peak of the sizes tried so far.

    The ``processes`` share the memory.
    """

    def __init__(self, processes: int = 1) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self._before = _memory("self/status", "VmRSS")
        free = [_memory("meminfo", "MemAvailable"), _cgroup()]
        self._budget = min((value for value in free if value is not None), default=2**32) // (2 * processes)

    def __call__(self, size: int) -> int:
        """The largest size that should fit, given that ``size`` was the largest tried so far."""
        peak, before = _memory("self/status", "VmHWM"), self._before
        if peak is None or before is None:
            return max(size, 32)  # the system does not report memory
        return max(size, size * self._budget // max(1, peak - before))


def _memory(file: str, name: str) -> int | None:
    """A memory size that the system reports, in bytes."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc", file).read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
    return None


def _cgroup() -> int | None:
    """Memory that a container or a job may still use, in bytes."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            folder = Path("/sys/fs/cgroup")
            value = int((folder / limit).read_text())
            if value < sys.maxsize // 2:
                return value - int((folder / used).read_text())
    return None
