"""Progress reports of slow methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

Report = Callable[[int, int], None]
"""Function of the number of completed steps and the total number of steps."""

_report: ContextVar[Report | None] = ContextVar("report", default=None)

PATIENCE = 3  # seconds after which a progress bar appears


@contextmanager
def steps(total: int, name: str) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each of ``total`` steps.

    A progress bar appears in a terminal if the steps take longer than `PATIENCE` seconds, unless there is another
    report (see `reporting`).
    """
    report, done = _report.get(), 0
    bar = tqdm(total=total, desc=name, delay=PATIENCE, leave=False, disable=True if report else None)

    def advance() -> None:
        nonlocal done
        done += 1
        bar.update()
        if report is not None:
            report(done, total)

    with bar:
        yield advance


@contextmanager
def reporting(report: Report) -> Iterator[None]:
    """Report the steps of all methods called inside this context to ``report`` instead of a progress bar."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)
