"""The documentation as a site: built with warnings as errors, opened from its folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from browsing import Reader

from fgvis_lightning.cli import COMMANDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="comes with the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_command_has_a_page(site: Path) -> None:
    assert {page.stem for page in (site / "commands").glob("*.html")} == {"index", *COMMANDS}


FOUND = [("residual streams", "defense"), ("--model.lam", "commands/fit"), ("exit code", "how-to/sweeps")]


@pytest.mark.parametrize(("query", "page"), FOUND)
def test_the_search_finds_a_page_from_a_folder(query: str, page: str, site: Path, reader: Reader) -> None:
    reader.open(site / "how-to" / "sweeps.html")
    field = reader.one(".md-search__input")
    field.click()
    field.send_keys(query)
    reader.until(lambda: reader.all(f".md-search-result__link[href*='{page}.html']"))


@pytest.mark.parametrize("page", ["index", "results", "method", "commands/fit", "reference/explain"])
def test_a_page_asks_nothing_from_elsewhere(page: str, site: Path, reader: Reader) -> None:
    reader.open(site / f"{page}.html")
    assert reader.all("h1")
