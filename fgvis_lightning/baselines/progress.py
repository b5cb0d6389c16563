"""Progress reports of slow methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

Report = Callable[[int, int], None]
"""Is told how many of how many steps are done."""

_report: ContextVar[Report | None] = ContextVar("report", default=None)

PATIENCE = 3
"""Seconds after which a progress bar appears."""


@contextmanager
def steps(total: int, name: str) -> Iterator[Callable[[], None]]:
    """A function to call after each of ``total`` steps.

    A progress bar appears on a terminal if they take longer than `PATIENCE` seconds, unless someone else wants to know
    (see `reporting`).
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
    """Tell ``report`` of the steps of all methods that are called within, instead of showing a bar."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)
