"""A progress line for the whole sweep, across ranks and interruptions."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar

from fgvis_lightning.data.image_data import ImageData
from fgvis_lightning.engine.sweep_module import SweepModule
from fgvis_lightning.errors import InputError
from fgvis_lightning.results.numbers import percent, probability

WIDTH = 118
"""Maximum length of the line in a terminal; a line longer than the terminal's width could not be overwritten."""


class SweepProgress(ProgressBar):
    """Prints the number of finished and failed items, the speed, and the remaining time.

    The results folder shows the progress of other ranks, so ranks do not need to communicate. Rank 0 prints until the
    ranks that it has started have ended. In a terminal, one line is overwritten; otherwise, lines are printed from time
    to time.

    Args:
        seconds: time between two updates, greater than 0; default: 1 in a terminal, otherwise 30.

    Raises:
        InputError: if the time is not positive and finite.

    Attributes:
        label: beginning of the line.
    """

    label = ""

    def __init__(self, seconds: float | None = None) -> None:
        super().__init__()
        if seconds is not None and not 0 < seconds < threading.TIMEOUT_MAX:
            raise InputError(f"Expected a finite number of seconds above 0 between two updates, but got {seconds}.")
        self.seconds = seconds
        self._enabled = True
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        if not self._enabled or not isinstance(data, ImageData) or not isinstance(pl_module, SweepModule):
            return
        self._meter = Meter(data, pl_module, trainer.world_size)
        self._begin()

    def _begin(self) -> None:
        self._out: TextIO = sys.stdout
        self._terminal = self._out.isatty()
        seconds = self.seconds if self.seconds is not None else 1 if self._terminal else 30
        self._shown = ""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(seconds,), name="progress", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Print the last line and stop; may be called twice."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self._show()
            if self._terminal:
                print(file=self._out, flush=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.close()

    def _run(self, seconds: float) -> None:
        while True:
            begin = time.monotonic()
            self._show()
            took = time.monotonic() - begin
            # Listing a folder of a million files takes a second, so update less often there.
            if self._stop.wait(max(seconds, 20 * took)):
                return

    def _show(self) -> None:
        line = self.label + self._meter.line()
        if self._terminal:
            line = line[:WIDTH]
            print(f"\r{line}{' ' * (len(self._shown) - len(line))}", end="", file=self._out, flush=True)
        elif line != self._shown:
            print(line, file=self._out, flush=True)
        self._shown = line


class Meter:
    """Text of the progress line; each of the ``ranks`` is assumed to have as many current items as this one."""

    def __init__(self, data: ImageData, model: SweepModule, ranks: int) -> None:
        self.data = data
        self.model = model
        self.ranks = ranks
        self._start = time.monotonic()
        self._before = data.progress()[0]
        self._rate = 0.0

    def line(self) -> str:
        data, batch = self.data, self.model.batch
        done, failed = data.progress()
        left = data.total - done - failed
        parts = [f"{done:,} of {data.total:,} items done" + (f", {failed:,} failed" if failed else "")]
        begun, writing = 0.0, False  # completed share of the current items, in items
        if left and batch is not None and (places := batch.used):
            iteration = batch.iterations % self.model.iterations
            begun = min(left, self.ranks * len(places) * iteration / self.model.iterations)
            writing = batch.iterations > 0 and iteration == 0
            at = f"{len(places)} at iteration {iteration} of {self.model.iterations}"
            if writing:
                at = f"writing {len(places)}"
            elif self.model.latest is not None:
                score, sparsity = map(float, self.model.latest)
                at += f" (score {probability(score)}, evidence {percent(1 - sparsity)})"
            parts.append(at)
        if (worked := done - self._before + begun) > 0:
            rate = worked / (time.monotonic() - self._start)
            rate = self._rate = max(rate, self._rate) if writing else rate  # its items are neither begun nor all done
            parts.append(f"{60 * rate:.3g} items/min")
            if left:
                parts.append(f"{clock((left - begun) / rate)} left")
        return " | ".join(parts)


def clock(seconds: float) -> str:
    """``0:07``, ``12:05``, ``3:20:00`` or ``2 d 3 h``."""
    whole = max(0, round(seconds))
    if whole >= 48 * 3600:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
