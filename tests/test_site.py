"""The documentation as a site: built with warnings as errors, opened from its folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import chromium
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

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


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium() as started:
        started.set_window_size(1280, 900)
        yield started


def requests(browser: webdriver.Chrome) -> set[str]:
    """The kinds of addresses that were asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {url.partition(":")[0] for url in sent}


def test_every_command_has_a_page(site: Path) -> None:
    assert {page.stem for page in (site / "commands").glob("*.html")} == {"index", *COMMANDS}


FOUND = [("residual streams", "defense"), ("--model.lam", "commands/fit"), ("exit code", "how-to/sweeps")]


@pytest.mark.parametrize(("query", "page"), FOUND)
def test_the_search_finds_a_page_from_a_folder(query: str, page: str, site: Path, browser: webdriver.Chrome) -> None:
    requests(browser)
    browser.get((site / "how-to" / "sweeps.html").as_uri())
    field = browser.find_element(By.CSS_SELECTOR, ".md-search__input")
    field.click()
    field.send_keys(query)
    link = f".md-search-result__link[href*='{page}.html']"
    WebDriverWait(browser, 30).until(lambda _: browser.find_elements(By.CSS_SELECTOR, link))
    assert requests(browser) <= {"file", "data", "blob", "about"}
    assert browser.get_log("browser") == []


def test_pages_ask_nothing_from_elsewhere(site: Path, browser: webdriver.Chrome) -> None:
    for name in ("index", "results", "method", "commands/fit", "reference/explain"):
        browser.get((site / f"{name}.html").as_uri())
        assert requests(browser) <= {"file", "data", "blob", "about"}, name
        assert browser.get_log("browser") == [], name
