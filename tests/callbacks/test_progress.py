from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fgvis_lightning.callbacks.progress import Meter, SweepProgress, clock
from fgvis_lightning.data.batches import Batch
from fgvis_lightning.data.items import Item
from fgvis_lightning.errors import InputError


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0:00"), (7, "0:07"), (725, "12:05"), (12000, "3:20:00"), (186000, "2 d 3 h"), (-3, "0:00")],
)
def test_clock(seconds: float, expected: str) -> None:
    assert clock(seconds) == expected


class Data:
    """What a sweep of 50 items looks like from a results folder."""

    total = 50

    def __init__(self, done: int, failed: int = 0) -> None:
        self.now = done, failed

    def progress(self) -> tuple[int, int]:
        return self.now


def batch(count: int, iterations: int) -> Batch:
    made = Batch([Item(str(i), "", 0) for i in range(count)], [torch.zeros(3, 1, 1)] * count, count)
    made.iterations = iterations
    return made


def meter(data: Data, model: Any, ranks: int = 1, seconds: float = 60) -> Meter:
    made = Meter(data, model, ranks)  # type: ignore[arg-type]
    made._start = time.monotonic() - seconds
    return made


def test_counts_all_ranks_and_what_was_there_before() -> None:
    model = SimpleNamespace(iterations=100, batch=batch(2, 50), latest=(torch.tensor(0.9134), torch.tensor(0.25)))
    data = Data(10)
    line = meter(data, model, ranks=2)
    data.now = 18, 2  # eight since then, and two ranks with two halves each in work: ten items in a minute
    assert line.line() == (
        "18 of 50 items done, 2 failed | 2 at iteration 50 of 100 (score 0.913, evidence 75.0 %) | "
        "10 items/min | 2:48 left"
    )


def test_a_batch_that_is_being_written_does_not_look_like_a_new_start() -> None:
    model = SimpleNamespace(iterations=100, batch=batch(8, 99), latest=(torch.tensor(0.9), torch.tensor(0.75)))
    data = Data(0)
    line = meter(data, model)
    assert "| 7.92 items/min | 5:1" in line.line()
    model.batch.iterations = 100
    data.now = 1, 0
    assert line.line().startswith("1 of 50 items done | writing 8 | 7.92 items/min | 6:1")


def test_the_last_line_and_the_first() -> None:
    model = SimpleNamespace(iterations=100, batch=None, latest=None)
    data = Data(20)
    line = meter(data, model)
    assert line.line() == "20 of 50 items done"
    data.now = 49, 1
    assert line.line() == "49 of 50 items done, 1 failed | 29 items/min"


def test_no_control_characters_unless_in_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for terminal in (False, True):
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stdout", out)
        progress = SweepProgress(seconds=0.01)
        data = Data(0)
        progress._meter = meter(data, SimpleNamespace(iterations=100, batch=None, latest=None))
        progress._begin()
        for done in (20, 3, 50):
            data.now = done, 0
            time.sleep(0.1)
        progress.close()
        progress.close()
        text = out.getvalue()
        assert text.endswith("\n")
        if terminal:
            assert text.count("\n") == 1
            seen = [part.rstrip() for part in text.strip("\n").split("\r")[1:]]
            widths = [len(part) for part in text.strip("\n").split("\r")[1:]]
            assert all(b >= len(a) for a, b in zip(seen, widths[1:], strict=False)), "a longer line shines through"
        else:
            assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
            seen = text.splitlines()
            assert len(seen) == len(set(seen)) or len(seen) > 3
        assert seen[0].startswith("0 of 50")
        assert seen[-1].startswith("50 of 50")


def test_disabled_on_other_ranks() -> None:
    progress = SweepProgress()
    progress.setup(SimpleNamespace(is_global_zero=False), None, "fit")  # type: ignore[arg-type]
    progress.on_train_start(SimpleNamespace(datamodule=None), None)  # type: ignore[arg-type]
    assert progress._thread is None
    progress.close()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_refuses_a_time_between_updates_that_it_cannot_wait(seconds: float) -> None:
    with pytest.raises(InputError, match=f"above 0 between two updates, but got {seconds}"):
        SweepProgress(seconds)
