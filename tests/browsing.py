"""A browser, for tests of pages."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Reader:
    """Someone who looks at pages."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, page: Path, hash: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(page.as_uri() + hash)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def run(self, script: str) -> Any:
        return self.driver.execute_script(f"return {script}")

    def names(self) -> list[str]:
        return list(self.run("[...document.querySelectorAll('a.card .soft')].map((name) => name.textContent)"))

    def choose(self, name: str, value: str) -> None:
        if not self.run("byId('tools').open"):
            self.one("#tools summary").click()
        Select(self.one(f"select[name={name}]")).select_by_value(value)

    def until(self, condition: Callable[[], Any]) -> None:
        WebDriverWait(self.driver, 10, 0.02).until(lambda _: condition())

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def focused(self) -> Any:
        return self.run("document.activeElement.id || document.activeElement.dataset.place")

    def is_drawn(self) -> Any:
        """Whether the picture of the opened item is there."""
        return self.run("stage.item !== null")

    def pixel(self, x: int, y: int, picture: int = 0) -> list[int]:
        """What is drawn there, read from a copy: the browser advises against reading a canvas that it draws."""
        return list(
            self.driver.execute_script(
                "const context = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });"
                f"context.drawImage(stage.pictures[{picture}].canvas, {-x}, {-y});"
                "return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);"
            )
        )

    def fade(self, value: int) -> None:
        self.driver.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))",
            self.one("#fade"),
            value,
        )

    def captions(self, css: str) -> list[str]:
        return [caption.text for caption in self.all(f"{css} figcaption")]

    def widths(self) -> list[float]:
        """Of the pictures, all of them, with what lies outside of their frames."""
        return list(self.run("stage.pictures.map(({canvas}) => canvas.getBoundingClientRect().width)"))

    def box(self, picture: int) -> tuple[float, float, float, float]:
        """Left, top, width and height of a picture's frame, without its border."""
        script = "(({frame: f}) => { const b = f.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })"
        left, top, width, height = self.run(f"{script}(stage.pictures[{picture}])")
        return left, top, width, height

    def mouse(self, kind: str, picture: int, x: float, y: float, **more: Any) -> None:
        """What a mouse does at (x, y) of a picture's frame, in shares of it."""
        left, top, width, height = self.box(picture)
        event = {"type": kind, "x": left + x * width, "y": top + y * height, **more}
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def emulate(self, command: str, **options: Any) -> None:
        self.driver.execute_cdp_cmd(f"Emulation.{command}", options)

    def messages(self) -> list[Any]:
        """What the console says."""
        return list(self.driver.get_log("browser"))

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def start() -> Iterator[Reader]:
    """A browser without a window; the test is skipped if there is none."""
    binary = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        reason = "needs Chromium and its driver: apt-get install chromium chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as started:
        yield Reader(started)
