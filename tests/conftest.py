from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a hub, which takes half a minute where there is none
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # they, and the processes that they start, share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns of pytest's own arguments."""
    monkeypatch.setattr(sys, "argv", ["fgvis"])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run on one thread, so that every machine trains the same networks, up to the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photo(tmp_path: Path) -> Callable[..., Path]:
    """Makes image files of random blocks: ``photo("a.png", height=40, seed=1)``."""

    def make(name: str, height: int = 32, width: int = 40, seed: int = 0, **save: Any) -> Path:
        blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
        array = blocks.repeat(4, 0).repeat(4, 1)[:height, :width]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path, **save)
        return path

    return make


@pytest.fixture
def folder(photo: Callable[..., Path], tmp_path: Path) -> Path:
    """Three photos."""
    for i in range(3):
        photo(f"in/photo {i}.png", seed=i)
    return tmp_path / "in"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A results folder that is not there yet."""
    return tmp_path / "out"
