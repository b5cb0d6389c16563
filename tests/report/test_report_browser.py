"""The report in a browser, from a file, as its readers have it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_results import EVIL, attribution, evaluation, explanation, photo, run
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from fgvis_lightning import load_explanation
from fgvis_lightning.cli import main
from fgvis_lightning.results.tensor_files import save_tensors

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Reader]:
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight items with its evaluation, and a failure."""
    folder = run(tmp_path_factory.mktemp("report") / "run", 8)
    evaluation(folder / "evaluation", "run", {f"{n:04}@{('cat', 'dog')[n % 2]}": (n * 3 % 8) / 10 for n in range(7)})
    return folder


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    """Its report in one file."""
    main(["report", str(folder), "--output", str(folder / "one.html")])
    return folder / "one.html"


@pytest.fixture(scope="module", params=["file", "folder"])
def page(request: pytest.FixtureRequest, folder: Path) -> Path:
    """Its report, as one file or as a folder."""
    output = folder / f"{request.param}.html"
    main(["report", str(folder), "--output", str(output), "--limit", "50" if request.param == "file" else "0"])
    return output if request.param == "file" else output.with_suffix("") / "index.html"


def test_items_are_sorted(reader: Reader, file: Path) -> None:
    reader.open(file)
    assert [name[:4] for name in reader.names()] == [*(f"{number:04}" for number in range(8)), "torn"]
    reader.choose("sort", "deletion")
    order = sorted(range(7), key=lambda number: number * 3 % 8)
    reader.until(lambda: [name[:4] for name in reader.names()] == [*(f"{n:04}" for n in order), "0007", "torn"])
    reader.choose("order", "down")
    reader.until(lambda: [name[:4] for name in reader.names()] == [*(f"{n:04}" for n in order[::-1]), "0007", "torn"])
    reader.choose("sort", "score_image")
    reader.until(lambda: [name[:4] for name in reader.names()] == [*(f"{n:04}" for n in range(8)[::-1]), "torn"])


def test_runs_whose_agreement_is_undefined_agree_the_least(reader: Reader, tmp_path: Path) -> None:
    for id, agreement in (
        ("a@cat", 0.5),
        ("b@cat", float("nan")),
        ("c@cat", None),
        ("d@cat", -0.25),
        ("e@cat", float("nan")),
    ):
        explanation(tmp_path / "run", id, photo(tmp_path / f"{id[0]}.png", 0), agreement=agreement)
    main(["report", str(tmp_path / "run")])
    reader.open(tmp_path / "run" / "report.html")
    reader.choose("sort", "agreement")
    reader.until(lambda: "".join(name[0] for name in reader.names()) == "bedac")
    assert "runs agree: undefined" in reader.all("a.card")[0].text
    reader.choose("order", "down")
    reader.until(lambda: "".join(name[0] for name in reader.names()) == "adbec")
    reader.all("a.card")[2].click()
    reader.until(reader.is_drawn)
    assert "agreement of the runs\nundefined" in reader.one("#detail").text


def test_the_largest_evidence_is_one_click_away_and_old_links_stay_valid(reader: Reader, file: Path) -> None:
    reader.open(file)
    reader.one("#largest").click()
    largest = [*(f"{number:04}" for number in range(8)[::-1]), "torn"]
    reader.until(lambda: [name[:4] for name in reader.names()] == largest)
    assert "sort=evidence&order=down" in reader.driver.current_url
    assert "mean evidence 25.0 %" in reader.all("a.card")[0].text
    reader.open(file, "#sort=sparsity")  # 1 - evidence
    reader.until(lambda: [name[:4] for name in reader.names()] == largest)
    reader.open(file, "#sort=sparsity&order=down&sparsity_from=0.8&sparsity_to=0.9")
    reader.until(lambda: [name[:4] for name in reader.names()] == ["0003", "0004", "0005"])
    assert [reader.run(f"form.elements.evidence_{end}.value") for end in ("from", "to")] == ["10", "20"]
    assert reader.one("#count").text == "3 of 9 items shown"


def test_items_are_filtered(reader: Reader, file: Path) -> None:
    reader.open(file)
    assert reader.one("#count").text == "9 of 9 items shown"
    reader.choose("class", "dog")
    reader.until(lambda: reader.one("#count").text == "4 of 9 items shown")
    assert all("dog" in name for name in reader.names())
    reader.choose("state", "missed")
    reader.until(lambda: [name[:4] for name in reader.names()] == ["0003", "0007"])
    reader.one("#ranges summary").click()
    reader.one("input[name=score_image_to]").send_keys("0.5")
    reader.until(lambda: [name[:4] for name in reader.names()] == ["0003"])
    reader.one("button[type=reset]").click()
    reader.until(lambda: len(reader.names()) == 9)
    reader.choose("state", "missing")
    reader.until(lambda: reader.names() == ["torn"])
    reader.one("button[type=reset]").click()
    reader.one("input[name=deletion_from]").send_keys("0.45")
    reader.until(lambda: [name[:4] for name in reader.names()] == ["0002", "0005"])
    reader.one("input[name=text]").send_keys("DOG")
    reader.until(lambda: [name[:4] for name in reader.names()] == ["0005"])
    reader.one("input[name=text]").send_keys(" nothing")
    reader.until(lambda: "None of 9 items" in reader.one("#count").text)


def test_thumbnails_are_seen(reader: Reader, page: Path) -> None:
    reader.open(page, "#items")
    reader.until(lambda: reader.run("[...document.querySelectorAll('img.thumb')].some(i => i.naturalWidth === 64)"))


def test_an_item_is_seen_as_image_evidence_mask_and_overlay(reader: Reader, page: Path, folder: Path) -> None:
    reader.open(page)
    reader.all("a.card")[1].click()
    reader.until(reader.is_drawn)
    captions = ["image", "evidence", "evidence by color channel", "on the dimmed image"]
    assert reader.captions("#views") == captions
    image = reader.pixel(0, 0)
    assert image == reader.run("[...stage.item.image.data].slice(0, 3)")
    # All of the red, half of the green, nothing of the blue.
    evidence = [image[0], 127.5 + (image[1] - 127.5) / 2, 127.5]
    assert reader.pixel(0, 0, 1) == pytest.approx(evidence, abs=2)
    assert reader.pixel(0, 31, 1) == pytest.approx([127.5] * 3, abs=1)
    assert reader.pixel(0, 0, 2) == pytest.approx([255, 127.5, 0], abs=1)
    assert reader.pixel(0, 0, 3) == pytest.approx(image, abs=1)
    assert reader.pixel(0, 31, 3) == pytest.approx([0.35 * sum(reader.pixel(0, 31)) / 3] * 3, abs=1)
    for value in (100, 200):  # the first fades into the others
        reader.fade(value)
        assert reader.pixel(0, 0) == reader.pixel(0, 0, value // 100)
    for channel, bright in (("0", 255), ("1", 127.5), ("2", 0)):
        reader.one(f"input[name=channel][value='{channel}']").click()
        assert reader.pixel(0, 0, 2) == pytest.approx([bright] * 3, abs=1)
    assert reader.all("#views canvas")[2].get_attribute("aria-label") == "evidence in blue"


def test_faint_evidence_is_brightened_as_the_caption_says(reader: Reader, tmp_path: Path) -> None:
    path = explanation(tmp_path / "run", "a@cat", photo(tmp_path / "a.png", 0))
    item = load_explanation(path)
    save_tensors(path, {"mask": (item.mask[0] / 8).half()}, item.metadata)
    main(["report", str(tmp_path / "run")])
    reader.open(tmp_path / "run" / "report.html", "#item=a%40cat")
    reader.until(reader.is_drawn)
    assert reader.captions("#views")[1:3] == [
        "evidence, brightened × 8.0",
        "evidence by color channel, brightened × 8.0",
    ]
    assert reader.pixel(0, 0, 2) == pytest.approx([255, 127.5, 0], abs=1)
    reader.one("#brighten").click()
    assert reader.captions("#views")[1] == "evidence"
    assert reader.pixel(0, 0, 2) == pytest.approx([32, 16, 0], abs=1)
    save_tensors(path, {"mask": (item.mask[0] * 0).half()}, item.metadata)
    main(["report", str(tmp_path / "run")])
    reader.open(tmp_path / "run" / "report.html", "#item=a%40cat")
    reader.until(reader.is_drawn)
    assert {caption.partition(": ")[2] for caption in reader.captions("#views")[1:]} == {"none"}


def test_a_view_has_scores_curves_and_metadata(reader: Reader, page: Path) -> None:
    reader.open(page, "#item=0001%40dog")
    reader.until(reader.is_drawn)
    assert "iterations" not in reader.one("#detail").text  # folded
    reader.one("#metadata").find_element(By.XPATH, "preceding-sibling::summary").click()
    words = reader.one("#detail").text
    assert "dog" in words
    assert "score on the image\n0.222" in words
    assert "score on the explanation\n0.111" in words
    assert "deletion AUC\n0.300" in words
    assert "mean evidence\n6.3 %" in words
    assert "agreement of the runs\n0.875" in words
    assert "iterations 4" in words
    assert len(reader.all("#curves polyline")) == 2
    assert "deletion, AUC 0.300" in (reader.one("#curves title").get_attribute("textContent") or "")
    reader.open(page, "#item=0002%40cat")
    reader.until(reader.is_drawn)
    assert "agreement of the runs" not in reader.one("#detail").text
    reader.open(page, "#item=torn")
    reader.until(lambda: EVIL in reader.one("#problem").text)
    assert not reader.one("#stage").is_displayed()


def test_pictures_are_zoomed_and_moved_together(reader: Reader, file: Path) -> None:
    reader.open(file, "#item=0001%40dog")
    reader.until(reader.is_drawn)
    fit = reader.widths()
    assert fit == pytest.approx([fit[0]] * 4, abs=0.1)
    reader.one("#in").click()
    reader.one("#in").click()
    assert min(reader.widths()) > 1.5 * fit[0]
    assert len(set(reader.widths())) == 1
    assert reader.run("stage.zoom === Math.floor(stage.zoom)")
    assert reader.run("[stage.x, stage.y]") == [0.5, 0.5]
    reader.one("#stage").send_keys(Keys.ARROW_RIGHT)
    assert reader.run("stage.x") > 0.5
    assert len(set(reader.run("stage.pictures.map(({canvas}) => canvas.style.transform)"))) == 1
    assert reader.one("#detail-title").text == "dog"  # the arrow moved the pictures, and nothing else
    reader.mouse("mouseWheel", 2, 0.5, 0.5, deltaX=0, deltaY=100)
    smaller = reader.run("stage.zoom")
    assert max(reader.widths()) < 3 * fit[0]
    reader.one("#stage").send_keys("+")
    assert reader.run("stage.zoom") > smaller
    reader.one("#fit").click()
    assert reader.widths() == fit


def test_a_pixel_is_zoomed_to_and_read(reader: Reader, file: Path) -> None:
    reader.open(file, "#item=0001%40dog")
    reader.until(reader.is_drawn)
    x, y = 3.5 / 32, 2.5 / 32  # the middle of a pixel, in shares of the picture
    for _ in range(12):
        reader.mouse("mouseWheel", 2, x, y, deltaX=0, deltaY=-100)
    assert reader.run("stage.zoom") == 48
    assert reader.run("stage.pictures[0].canvas.style.imageRendering") == "pixelated"
    reader.mouse("mouseMoved", 2, x, y)
    assert reader.one("#pixel").text == "pixel 3, 2: evidence red 1.00, green 0.50, blue 0.00"
    assert [cross.is_displayed() for cross in reader.all("#views .cross")] == [True, True, False, True]
    reader.mouse("mousePressed", 2, x, y, button="left", buttons=1, clickCount=1)
    reader.mouse("mouseMoved", 2, x + 0.2, y, button="left", buttons=1)
    reader.mouse("mouseReleased", 2, x + 0.2, y, button="left", clickCount=1)
    assert reader.one("#pixel").text.startswith("pixel 3, 2:")  # it has come along
    reader.mouse("mouseMoved", 2, x, -0.3)
    assert reader.one("#pixel").text.startswith("Point")


def test_two_fingers_zoom(reader: Reader, file: Path) -> None:
    reader.emulate("setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    reader.emulate("setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
    try:
        reader.open(file, "#item=0001%40dog")
        reader.until(reader.is_drawn)
        lefts = reader.run("stage.pictures.map(({frame}) => frame.getBoundingClientRect().left)")
        assert len(set(lefts)) == 1  # one below the other
        fit = reader.run("stage.scale")
        left, top, width, height = reader.box(0)
        for kind, apart in (("touchStart", 0.1), ("touchMove", 0.2), ("touchMove", 0.3), ("touchEnd", None)):
            shares = [] if apart is None else [0.5 - apart, 0.5 + apart]
            points = [{"x": left + width * at, "y": top + height / 2, "id": int(at < 0.5)} for at in shares]
            reader.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        assert reader.run("stage.zoom") == pytest.approx(3 * fit, rel=0.1)
        assert reader.run("stage.x") == pytest.approx(0.5, abs=0.02)
    finally:
        reader.emulate("setTouchEmulationEnabled", enabled=False)


def test_a_pixel_is_read_by_touch(reader: Reader, file: Path) -> None:
    reader.emulate("setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    reader.emulate("setTouchEmulationEnabled", enabled=True)
    try:
        reader.open(file, "#item=0001%40dog")
        reader.until(reader.is_drawn)
        left, top, width, height = reader.box(0)
        points = [{"x": left + width * 3.5 / 32, "y": top + height * 2.5 / 32}]
        for kind, touches in (("touchStart", points), ("touchEnd", [])):
            reader.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
        assert reader.one("#pixel").text == "pixel 3, 2: evidence red 1.00, green 0.50, blue 0.00"
        assert reader.run("byId('pixel').getBoundingClientRect().bottom") <= 844
    finally:
        reader.emulate("setTouchEmulationEnabled", enabled=False)


def test_the_worst_item_is_found_and_its_link_passed_on(reader: Reader, file: Path) -> None:
    reader.open(file)
    assert reader.one("#overview .missed dt").text == "level missed"
    assert [len(card.find_elements(By.CSS_SELECTOR, "span.missed")) for card in reader.all("a.card")] == [
        *(int(number % 4 == 3) for number in range(8)),
        1,
    ]
    reader.one("#overview .missed a").click()
    reader.until(lambda: [name[:4] for name in reader.names()] == ["0003", "0007"])
    reader.choose("sort", "score_explanation")
    reader.until(lambda: [name[:4] for name in reader.names()] == ["0003", "0007"])
    reader.choose("order", "down")
    reader.until(lambda: [name[:4] for name in reader.names()] == ["0007", "0003"])
    reader.all("a.card")[1].click()
    reader.until(reader.is_drawn)
    assert "level missed" in reader.one("#missed").text
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    reader.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions})
    reader.one("#copy").click()
    reader.until(lambda: reader.one("#copied").text == "Copied")
    link = reader.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert link == reader.driver.current_url
    reader.open(file, "#" + link.partition("#")[2])
    reader.until(reader.is_drawn)
    assert (reader.one("#detail-id").text, reader.one("#place").text) == ("0003@dog", "2 of 2")


def test_all_of_it_by_keyboard(reader: Reader, file: Path) -> None:
    reader.open(file)
    reader.press(Keys.TAB, Keys.ENTER, Keys.TAB)
    assert (
        reader.run("document.activeElement.textContent") == "Sort and filter"
    )  # the link to the items skips what is before them
    reader.driver.execute_script("document.querySelector('a.card').focus()")
    reader.press(Keys.ENTER)
    reader.until(reader.is_drawn)
    assert reader.focused() == "detail-title"
    reader.press(Keys.ARROW_RIGHT)
    reader.until(lambda: reader.one("#detail-id").text == "0001@dog")
    reader.press(Keys.ARROW_RIGHT)
    reader.until(lambda: reader.one("#detail-id").text == "0002@cat")
    reader.press(Keys.ARROW_LEFT)
    reader.until(lambda: reader.one("#detail-id").text == "0001@dog")
    reader.until(reader.is_drawn)
    reader.press("+")
    assert reader.run("stage.zoom") > 0
    reader.press("0", "g")
    assert reader.run("stage.zoom") == 0
    assert reader.captions("#views")[2] == "evidence in green"
    reader.press("f")
    assert reader.captions("#views")[0] == "evidence"
    for _ in range(30):  # the focus stays in the dialog, or in the browser's own controls
        reader.press(Keys.TAB)
        assert reader.run("document.activeElement === document.body || byId('detail').contains(document.activeElement)")
    reader.press(Keys.ESCAPE)
    reader.until(lambda: reader.focused() == "1")  # the card of the item that was seen last


def test_an_address_keeps_what_is_seen(reader: Reader, page: Path) -> None:
    reader.open(page)
    reader.choose("class", "dog")
    reader.choose("sort", "score_image")
    reader.choose("order", "down")
    reader.until(lambda: [name[:4] for name in reader.names()] == ["0007", "0005", "0003", "0001"])
    reader.all("a.card")[1].click()
    reader.until(reader.is_drawn)
    address = reader.driver.current_url
    reader.open(page, address.partition("#")[2].join(["#", ""]))
    reader.until(reader.is_drawn)
    assert reader.one("#detail-id").text == "0005@dog"
    assert reader.one("#place").text == "2 of 4"
    reader.one("#close").click()
    assert [name[:4] for name in reader.names()] == ["0007", "0005", "0003", "0001"]
    reader.all("a.card")[0].click()
    reader.until(lambda: reader.run("byId('detail').open"))
    reader.driver.back()
    reader.until(lambda: not reader.run("byId('detail').open"))


def test_it_is_dark_where_the_reader_likes_it_dark(reader: Reader, file: Path) -> None:
    def brightness(css: str, kind: str) -> float:
        color = reader.run(f"getComputedStyle(document.querySelector('{css}')).{kind}")
        return sum(map(int, color.strip("rgb()").split(","))) / 3

    reader.open(file)
    assert brightness("body", "backgroundColor") > 200 > 100 > brightness("body", "color")
    reader.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert brightness("body", "backgroundColor") < 60 < 200 < brightness("body", "color")


@pytest.mark.parametrize("sides", [(32, 32), (24, 40), (40, 24)])
def test_pictures_fill_their_frames(reader: Reader, tmp_path: Path, sides: tuple[int, int]) -> None:
    for name in ("cat", "dog", "owl"):
        path = explanation(tmp_path / "run", f"a@{name}", tmp_path / "a.png", name, side=40)
        item = load_explanation(path)
        save_tensors(path, {"mask": item.mask[0, :, : sides[0], : sides[1]].half()}, item.metadata)
    main(["report", str(tmp_path / "run")])
    boxes = (
        "stage.pictures.map(({frame, canvas}) => [frame, canvas].map((box) => box.getBoundingClientRect().toJSON()))"
    )
    for width in (390, 768, 1000, 1440):
        reader.emulate("setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width == 390)
        reader.open(tmp_path / "run" / "report.html", "#item=a%40dog")
        reader.until(lambda: len(reader.all("#others canvas")) == 3)
        for more in ("0", "byId('metadata').parentElement.open = true"):
            reader.run(more)
            reader.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
            for frame, canvas in reader.run(boxes):
                for end in ("right", "bottom"):
                    assert frame[end] - 1 == pytest.approx(canvas[end], abs=0.05), (width, end)


def test_numbers_come_first(reader: Reader, file: Path) -> None:
    reader.emulate("setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    reader.open(file, "#item=0001%40dog")
    reader.until(reader.is_drawn)
    below = reader.run("byId('views').getBoundingClientRect().top")
    numbers = ["score on the image", "score on the explanation", "mean evidence", "level", "agreement of the runs"]
    assert [term.text for term in reader.all("#scores dt")] == numbers
    assert all(term.rect["y"] + term.rect["height"] < below < 844 / 2 for term in reader.all("#scores dd"))
    assert [term.text for term in reader.all("#values dt")] == ["deletion AUC", "insertion AUC"]


@pytest.mark.parametrize("width", [320, 390])
def test_it_fits_a_phone(reader: Reader, file: Path, width: int) -> None:
    reader.emulate("setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=2, mobile=True)
    reader.open(file)
    assert reader.run("document.documentElement.scrollWidth") <= width
    reader.open(file, "#item=0001%40dog")
    reader.until(reader.is_drawn)
    assert reader.run("byId('detail').scrollWidth") <= width
    assert reader.run("document.documentElement.scrollWidth") <= width


def test_text_is_legible(reader: Reader, file: Path) -> None:
    """Contrast of at least 4.5 between the colors of text and those behind it (WCAG 2, AA)."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in ("light", "dark"):
        reader.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        reader.open(file)
        names = ("paper", "card", "ink", "soft", "accent", "bad", "on-bad")
        style = "getComputedStyle(document.documentElement)"
        colors = {name: reader.run(f"{style}.getPropertyValue('--{name}').trim()") for name in names}
        pairs = [(text, behind) for behind in ("paper", "card") for text in ("ink", "soft", "accent", "bad")]
        for text, behind in [*pairs, ("on-bad", "bad")]:
            high, low = sorted((luminance(colors[text]), luminance(colors[behind])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, text, behind)


def test_a_screen_reader_finds_its_way(reader: Reader, file: Path) -> None:
    def nodes() -> list[tuple[str, str]]:
        """Role and name of all that a screen reader is told of."""
        tree = reader.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        told = [node for node in tree if not node["ignored"]]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in told]

    operable = {"button", "link", "slider", "combobox", "radio", "checkbox", "spinbutton", "searchbox", "image", "img"}
    reader.open(file, "#item=0001%40dog")
    reader.until(reader.is_drawn)
    found = nodes()
    assert ("dialog", "dog") in found
    assert any(role == "slider" and name.startswith("Fade") for role, name in found)
    assert not {role for role, name in found if not name} & operable
    reader.one("#close").click()
    found = nodes()
    assert {role for role, _ in found} >= {"main", "navigation", "banner", "contentinfo", "heading", "status"}
    assert not {role for role, name in found if not name} & operable


def test_evil_names_are_shown_as_they_are(reader: Reader, tmp_path: Path) -> None:
    evil = "</script><script>console.error('ran')</script>"
    explanation(tmp_path / "run", "a@cat", photo(tmp_path / "a.png", 0), name=EVIL)
    explanation(tmp_path / "run", "b@cat", tmp_path / f"{EVIL}.png", name=evil)
    main(["report", str(tmp_path / "run")])
    reader.open(tmp_path / "run" / "report.html")
    assert {card.text for card in reader.all("a.card strong")} == {EVIL, evil}
    reader.choose("class", evil)
    reader.until(lambda: len(reader.names()) == 1)
    reader.all("a.card")[0].click()
    reader.until(reader.is_drawn)
    assert reader.one("#detail-title").text == evil
    assert EVIL in reader.one("#problem").text


def test_classes_and_methods_are_seen_side_by_side(reader: Reader, tmp_path: Path) -> None:
    image = photo(tmp_path / "a.png", 0)
    explanation(tmp_path / "all" / "FGVis", "a@cat", image)
    explanation(tmp_path / "all" / "FGVis", "a@dog", image, "dog", share=0.5, feasible=False)
    attribution(tmp_path / "all" / "Grad_CAM", "a@cat", image, "Grad-CAM")
    main(["report", str(tmp_path / "all")])
    reader.open(tmp_path / "all" / "report.html")
    reader.choose("method", "Grad-CAM")
    reader.until(lambda: len(reader.names()) == 1)
    reader.all("a.card")[0].click()
    reader.until(lambda: len(reader.all("#others canvas")) == 3)
    assert not reader.one("#channels").is_displayed()
    assert reader.captions("#views") == ["image", "image × map", "map"]
    reader.all("#others a")[0].click()
    reader.until(lambda: reader.one("#detail-id").text == "FGVis: a@cat")
    reader.until(lambda: len(reader.all("#others canvas")) == 3)
    assert reader.one("#channels").is_displayed()
    scores = "0.500 → 0.250 · "
    assert reader.captions("#others") == [
        f"FGVis\n{scores}mean evidence 12.5 %\nevidence by color channel",
        f"dog, FGVis\n{scores}mean evidence 25.0 %\nlevel missed\nevidence by color channel",
        "Grad-CAM\n0.500\nmap",
    ]
    assert len({round(reader.box(picture)[1]) for picture in (4, 5, 6)}) == 1
    assert [reader.pixel(0, 12, picture) for picture in (4, 5)] == [[0, 0, 0], pytest.approx([255, 127.5, 0], abs=1)]
    reader.one("input[name=compared][value=evidence]").click()
    assert reader.pixel(0, 12, 4) == pytest.approx([127.5] * 3, abs=1)
    widths = reader.widths()
    reader.one("#in").click()
    assert [after / before for before, after in zip(widths, reader.widths(), strict=True)] == pytest.approx(
        [reader.run("stage.times")] * 7, rel=0.01
    )
    times = reader.run("stage.times")
    reader.all("#others a")[0].click()
    reader.until(lambda: reader.one("#detail-id").text == "FGVis: a@dog")
    reader.until(lambda: len(reader.all("#others canvas")) == 3)
    assert reader.run("stage.times") == pytest.approx(times)  # the same image stays where it is


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("thousand") / "run", 1000, side=32)


@pytest.mark.parametrize("limit", ["50", "0"])
def test_a_thousand_items_stay_fluid(
    reader: Reader, thousand: Path, limit: str, record_property: Callable[[str, object], None]
) -> None:
    main(["report", str(thousand), "--limit", limit])
    page = thousand / "report.html" if limit == "50" else thousand / "report" / "index.html"
    start = time.perf_counter()
    reader.open(page)
    reader.until(lambda: reader.one("#count").text == "1,001 of 1,001 items shown, the first 48 below")
    reader.one("#more").click()
    reader.until(lambda: reader.one("#count").text == "1,001 of 1,001 items shown")
    opened = time.perf_counter() - start
    filtered = reader.run(
        "(() => { const start = performance.now();"
        "form.elements.class.value = 'dog'; form.elements.sort.value = 'evidence'; update();"
        "document.body.getBoundingClientRect(); return performance.now() - start; })()"
    )
    assert reader.one("#count").text == "500 of 1,001 items shown"
    loaded = reader.run("[...document.querySelectorAll('img.thumb')].filter(i => i.src).length")
    assert loaded < 200
    record_property("seconds to open", opened)
    record_property("milliseconds to sort and filter", filtered)
    print(f"limit {limit}: {opened:.2f} s to open, {filtered:.0f} ms to sort and filter, {loaded} thumbnails loaded")
    assert opened < 20
    assert filtered < 2000
