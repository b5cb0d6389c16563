from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

if TYPE_CHECKING:
    from browsing import Reader

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


@pytest.fixture(scope="session")
def browser() -> Iterator[Reader]:
    from browsing import start

    yield from start()


@pytest.fixture
def reader(browser: Reader) -> Iterator[Reader]:
    """At the end nothing may have gone wrong in the page, and nothing may have been asked from elsewhere."""
    browser.emulate("setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    browser.emulate("setEmulatedMedia", features=[])
    browser.messages()
    browser.requests()
    yield browser
    assert browser.messages() == []
    assert {url.partition(":")[0] for url in browser.requests()} <= {"file", "data", "blob", "about"}


@pytest.fixture(scope="session")
def report_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight items with its evaluation, and a failure."""
    from made_results import evaluation, run

    folder = run(tmp_path_factory.mktemp("report") / "run", 8)
    evaluation(folder / "evaluation", "run", {f"{n:04}@{('cat', 'dog')[n % 2]}": (n * 3 % 8) / 10 for n in range(7)})
    return folder


@pytest.fixture(scope="session")
def report_file(report_run: Path) -> Path:
    """Its report in one file."""
    from fgvis_lightning.cli import main

    main(["report", str(report_run), "--output", str(report_run / "one.html")])
    return report_run / "one.html"


@pytest.fixture(scope="session", params=["file", "folder"])
def report_page(request: pytest.FixtureRequest, report_run: Path) -> Path:
    """Its report, as one file or as a folder."""
    from fgvis_lightning.cli import main

    output = report_run / f"{request.param}.html"
    main(["report", str(report_run), "--output", str(output), "--limit", "50" if request.param == "file" else "0"])
    return output if request.param == "file" else output.with_suffix("") / "index.html"
