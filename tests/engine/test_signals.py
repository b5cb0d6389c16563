from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pytorch_lightning.utilities.exceptions import SIGTERMException

from fgvis_lightning.engine.signals import as_exceptions

STOPS = pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SIGTERMException)]
)


class Dying:
    """Gets a signal where Python cannot pass an exception on."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@STOPS
def test_a_signal_is_an_exception_and_handlers_come_back(number: int, expected: type[BaseException]) -> None:
    before = signal.getsignal(number)
    with pytest.raises(expected), as_exceptions():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


@STOPS
def test_a_signal_counts_if_a_context_fails_at_its_end(number: int, expected: type[BaseException]) -> None:
    """As torch's do, if the signal comes while a function's mode is off its stack."""

    @contextmanager
    def mode() -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("trying to pop from empty mode stack")

    with pytest.raises(expected), as_exceptions(), mode(), mode():
        signal.raise_signal(number)
    with pytest.raises(RuntimeError), as_exceptions(), mode():
        pass


@STOPS
def test_a_signal_in_a_destructor_is_not_lost(number: int, expected: type[BaseException]) -> None:
    def work() -> None:
        dying = Dying(number)
        del dying
        time.sleep(5)

    with pytest.raises(expected), as_exceptions():
        work()
