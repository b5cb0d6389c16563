"""Wheel and sdist work outside the checkout."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fgvis_lightning
from fgvis_lightning.data.photos import shipped

ROOT = Path(__file__).parent.parent


def test_configurations_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(shipped("configs/quickstart.yaml")).read_text() == (ROOT / "configs/quickstart.yaml").read_text()
    assert shipped("configs/nothing.yaml") == "configs/nothing.yaml"
    own = tmp_path / "configs" / "quickstart.yaml"
    own.parent.mkdir()
    own.write_text("")
    assert shipped("configs/quickstart.yaml") == "configs/quickstart.yaml"


@pytest.mark.slow
def test_the_wheel_runs_elsewhere(tmp_path: Path) -> None:
    """Built from the sdist, installed into a folder of its own beside this environment's other packages."""

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Warning" not in done.stderr
        return done.stdout

    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    changed = subprocess.run(["git", "ls-files", "-mo", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in changed.stdout.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "-q", "--no-isolation", "-o", str(tmp_path), str(source)], check=True
    )
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    inside = zipfile.ZipFile(wheel).namelist()
    configs = {path.name for path in (ROOT / "configs").iterdir()}
    assert configs <= {Path(name).name for name in inside if name.startswith("fgvis_lightning/configs/")}
    assert any("report/templates/page" in name for name in inside)
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/configs/quickstart.yaml") for name in archive.getnames())
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel))
    start = f"import sys; sys.path.insert(0, {str(site)!r}); import runpy; sys.argv[0] = 'fgvis'; "
    start += "runpy.run_module('fgvis_lightning', run_name='__main__')"
    program = (sys.executable, "-c", start)
    assert run(*program, "--version") == f"fgvis-lightning {fgvis_lightning.__version__}\n"
    quick = ("--model.iterations", "2", "--trainer.accelerator", "cpu")
    assert "1 of 1 items explained" in run(*program, "fit", "--config", "configs/quickstart.yaml", *quick)
    assert "Look at" in run(*program, "report", "results/quickstart")
    assert (tmp_path / "results/quickstart/report.html").stat().st_size > 50_000
