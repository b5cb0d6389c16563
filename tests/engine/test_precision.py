from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from command_line import CPU, TINY, fit
from pytorch_lightning.accelerators import CUDAAccelerator

from fgvis_lightning.engine import precision
from fgvis_lightning.engine.precision import say_if_slow, slowdown


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """A CPU that takes six times as long in every other type, and the types that have been measured."""
    kinds: list[torch.dtype] = []

    def slow(kind: torch.dtype) -> float:
        kinds.append(kind)
        return 6.04

    monkeypatch.setattr(precision, "slowdown", slow)
    return kinds


def trainer(name: Any) -> pl.Trainer:
    quiet: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", devices=1, precision=name, **quiet)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bf16-mixed", torch.bfloat16), ("bf16-true", torch.bfloat16), ("16-true", torch.float16)],
)
def test_what_a_cpu_imitates_is_told(
    name: str, kind: torch.dtype, measured: list[torch.dtype], capsys: pytest.CaptureFixture[str]
) -> None:
    say_if_slow(trainer(name))
    assert capsys.readouterr().err == (
        f"fgvis: {name} is slow on this CPU: a small convolution took 6.0 times as long as in float32. "
        "Use --trainer.precision 32-true.\n"
    )
    assert measured == [kind]


@pytest.mark.filterwarnings("ignore:.*fp16 is not supported on CPU")
def test_what_lightning_takes_instead_is_measured(
    measured: list[torch.dtype], capsys: pytest.CaptureFixture[str]
) -> None:
    say_if_slow(trainer("16-mixed"))
    assert capsys.readouterr().err.startswith("fgvis: bf16-mixed is slow")
    assert measured == [torch.bfloat16]


@pytest.mark.parametrize("name", [None, "32-true", 32, "64-true"])
def test_others_are_not_measured(name: Any, measured: list[torch.dtype], capsys: pytest.CaptureFixture[str]) -> None:
    say_if_slow(trainer(name))
    assert capsys.readouterr().err == ""
    assert measured == []


def test_neither_are_gpus_and_other_ranks(measured: list[torch.dtype], capsys: pytest.CaptureFixture[str]) -> None:
    cpu = trainer("bf16-mixed").accelerator
    for accelerator, first in ((CUDAAccelerator(), True), (cpu, False)):
        other: Any = SimpleNamespace(precision="bf16-mixed", accelerator=accelerator, is_global_zero=first)
        say_if_slow(other)
    assert capsys.readouterr().err == ""
    assert measured == []


def test_a_cpu_that_can_is_not_told_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for factor in (0.5, 1.0, 1.5):
        monkeypatch.setattr(precision, "slowdown", lambda kind, factor=factor: factor)
        say_if_slow(trainer("bf16-mixed"))
    assert capsys.readouterr().err == ""


def test_a_measurement_compares_the_types_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    times = {torch.float32: iter([9.0, 2.0, 1.0, 4.0]), torch.bfloat16: iter([1.0, 9.0, 4.0, 3.0])}

    def convolve(kind: torch.dtype) -> float:
        seen.append(kind)
        return next(times[kind])

    monkeypatch.setattr(precision, "_convolve", convolve)
    assert slowdown(torch.bfloat16, repeats=3) == 3  # the first times, of kernels being made, do not count
    assert seen == [torch.float32, torch.bfloat16] * 4


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_it_runs_and_leaves_no_trace(kind: torch.dtype) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert slowdown(kind, repeats=1) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_fit_says_it_once_before_it_begins(
    measured: list[torch.dtype], folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(output, folder, "--trainer.precision", "bf16-mixed")
    assert capsys.readouterr().err.count("is slow on this CPU") == 1
    assert measured == [torch.bfloat16]


@pytest.mark.slow
def test_of_several_ranks_one_says_it(folder: Path, output: Path) -> None:
    script = output.parent / "script.py"
    script.write_text(
        "from fgvis_lightning.cli import main\nfrom fgvis_lightning.engine import precision\n"
        "precision.slowdown = lambda kind: 6.0\nmain()\n"
    )
    more = ["--trainer.devices", "2", "--trainer.precision", "bf16-mixed", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, str(script), "fit", *TINY, *CPU, *more, "--data.images", str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert "3 of 3 items explained" in done.stdout
    assert done.stderr.count("is slow on this CPU") == 1
