from __future__ import annotations

import signal
import time

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
def test_a_signal_in_a_destructor_is_not_lost(number: int, expected: type[BaseException]) -> None:
    def work() -> None:
        dying = Dying(number)
        del dying
        time.sleep(5)

    with pytest.raises(expected), as_exceptions():
        work()
