"""An item of the report in a browser, from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from browsing import Reader
from made_results import EVIL, explanation, photo
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from fgvis_lightning import load_explanation
from fgvis_lightning.cli import main
from fgvis_lightning.results.numbers import USUAL
from fgvis_lightning.results.tensor_files import load_metadata, save_tensors

pytestmark = pytest.mark.slow


def test_an_item_is_seen_in_four_pictures(reader: Reader, report_page: Path, report_run: Path) -> None:
    reader.open(report_page)
    reader.all("a.card")[1].click()
    reader.until(reader.is_drawn)
    captions = ["image", "evidence", "evidence by color channel", "on the dimmed image, brightened"]
    assert reader.captions("#views") == captions
    image = reader.pixel(0, 0)
    assert image == reader.run("[...stage.item.image.data].slice(0, 3)")
    # All of the red, half of the green, nothing of the blue.
    evidence = [image[0], 127.5 + (image[1] - 127.5) / 2, 127.5]
    assert reader.pixel(0, 0, 1) == pytest.approx(evidence, abs=2)
    assert reader.pixel(0, 31, 1) == pytest.approx([127.5] * 3, abs=1)
    assert reader.pixel(0, 0, 2) == pytest.approx([255, 127.5, 0], abs=1)
    dim = 0.35 * sum(image) / 3
    assert reader.pixel(0, 0, 3) == pytest.approx([dim + 0.5**0.5 * (part - dim) for part in image], abs=1)
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
    save_tensors(path, {"mask": (item.mask[0] / 8).half()}, load_metadata(path))
    main(["report", str(tmp_path / "run")])
    reader.open(tmp_path / "run" / "report.html", "#item=a%40cat")
    reader.until(reader.is_drawn)
    assert reader.captions("#views")[1:] == [
        "evidence, brightened × 8.0",
        "evidence by color channel, brightened × 8.0",
        "on the dimmed image, brightened × 8.0 or more",
    ]
    assert reader.pixel(0, 0, 2) == pytest.approx([255, 127.5, 0], abs=1)
    image = reader.pixel(0, 0)
    dim = 0.35 * sum(image) / 3
    assert reader.pixel(0, 0, 3) == pytest.approx([dim + 0.5**0.5 * (part - dim) for part in image], abs=1)
    reader.one("#brighten").click()
    assert reader.captions("#views")[1:] == ["evidence", "evidence by color channel", "on the dimmed image"]
    assert reader.pixel(0, 0, 2) == pytest.approx([32, 16, 0], abs=1)
    assert reader.pixel(0, 0, 3) == pytest.approx([dim + (part - dim) / 16 for part in image], abs=1)
    for change, unbrightened, words in (
        (lambda mask: mask / 32, "too faint to see unless brightened", None),
        (lambda mask: mask * 0, "none", "none"),
        (lambda mask: mask * 0 + 1, "whole image", "whole image"),
    ):
        save_tensors(path, {"mask": change(item.mask[0]).half()}, load_metadata(path))
        main(["report", str(tmp_path / "run")])
        reader.open(tmp_path / "run" / "report.html", "#item=a%40cat")
        reader.until(reader.is_drawn)
        for expected in (words, unbrightened):
            if expected:
                assert {text.partition(": ")[2] for text in reader.captions("#views")[1:]} == {expected}
            reader.one("#brighten").click()


def test_a_view_has_scores_curves_and_metadata(reader: Reader, report_page: Path) -> None:
    reader.open(report_page, "#item=0001%40dog")
    reader.until(reader.is_drawn)
    assert "iterations" not in reader.one("#detail").text  # folded
    reader.one("#metadata").find_element(By.XPATH, "preceding-sibling::summary").click()
    words = reader.one("#detail").text
    assert "dog" in words
    assert "score on the image\n0.222" in words
    assert "score on the explanation\n0.111" in words
    assert "deletion AUC\n0.300" in words
    assert "mean evidence\n6.3 %" in words
    assert f"agreement of the runs ({USUAL})\n0.875" in words
    assert "iterations 4" in words
    assert len(reader.all("#curves polyline")) == 2
    assert "deletion, AUC 0.300" in (reader.one("#curves title").get_attribute("textContent") or "")
    reader.open(report_page, "#item=0002%40cat")
    reader.until(reader.is_drawn)
    assert "agreement of the runs" not in reader.one("#detail").text
    reader.open(report_page, "#item=torn")
    reader.until(lambda: EVIL in reader.one("#problem").text)
    assert not reader.one("#stage").is_displayed()


def test_pictures_are_zoomed_and_moved_together(reader: Reader, report_file: Path) -> None:
    reader.open(report_file, "#item=0001%40dog")
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


def test_a_pixel_is_zoomed_to_and_read(reader: Reader, report_file: Path) -> None:
    reader.open(report_file, "#item=0001%40dog")
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


def test_two_fingers_zoom(reader: Reader, report_file: Path) -> None:
    reader.emulate("setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    reader.emulate("setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
    try:
        reader.open(report_file, "#item=0001%40dog")
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


def test_a_pixel_is_read_by_touch(reader: Reader, report_file: Path) -> None:
    reader.emulate("setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    reader.emulate("setTouchEmulationEnabled", enabled=True)
    try:
        reader.open(report_file, "#item=0001%40dog")
        reader.until(reader.is_drawn)
        left, top, width, height = reader.box(0)
        points = [{"x": left + width * 3.5 / 32, "y": top + height * 2.5 / 32}]
        for kind, touches in (("touchStart", points), ("touchEnd", [])):
            reader.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
        assert reader.one("#pixel").text == "pixel 3, 2: evidence red 1.00, green 0.50, blue 0.00"
        assert reader.run("byId('pixel').getBoundingClientRect().bottom") <= 844
    finally:
        reader.emulate("setTouchEmulationEnabled", enabled=False)


def test_all_of_it_by_keyboard(reader: Reader, report_file: Path) -> None:
    reader.open(report_file)
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


def test_numbers_come_first(reader: Reader, report_file: Path) -> None:
    reader.emulate("setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    reader.open(report_file, "#item=0001%40dog")
    reader.until(reader.is_drawn)
    below = reader.run("byId('views').getBoundingClientRect().top")
    numbers = ["score on the image", "score on the explanation", "mean evidence", "level"]
    assert [term.text for term in reader.all("#scores dt")] == [*numbers, f"agreement of the runs ({USUAL})"]
    assert all(term.rect["y"] + term.rect["height"] < below < 844 / 2 for term in reader.all("#scores dd"))
    assert [term.text for term in reader.all("#values dt")] == ["deletion AUC", "insertion AUC"]
