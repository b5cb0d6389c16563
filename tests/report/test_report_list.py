"""The list of the report in a browser, from a file, as its readers have it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from browsing import Reader
from made_results import EVIL, evaluation, explanation, photo, run
from selenium.webdriver.common.by import By

from fgvis_lightning.cli import main
from fgvis_lightning.results.numbers import USUAL

pytestmark = pytest.mark.slow


def test_items_are_sorted(reader: Reader, report_file: Path) -> None:
    reader.open(report_file)
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
    assert f"agreement of the runs ({USUAL})\nundefined" in reader.one("#detail").text


def test_the_largest_evidence_is_one_click_away_and_old_links_stay_valid(reader: Reader, report_file: Path) -> None:
    reader.open(report_file)
    reader.one("#largest").click()
    largest = [*(f"{number:04}" for number in range(8)[::-1]), "torn"]
    reader.until(lambda: [name[:4] for name in reader.names()] == largest)
    assert "sort=evidence&order=down" in reader.driver.current_url
    assert "mean evidence 25.0 %" in reader.all("a.card")[0].text
    reader.open(report_file, "#sort=sparsity")  # 1 - evidence
    reader.until(lambda: [name[:4] for name in reader.names()] == largest)
    reader.open(report_file, "#sort=sparsity&order=down&sparsity_from=0.8&sparsity_to=0.9")
    reader.until(lambda: [name[:4] for name in reader.names()] == ["0003", "0004", "0005"])
    assert [reader.run(f"form.elements.evidence_{end}.value") for end in ("from", "to")] == ["10", "20"]
    assert reader.one("#count").text == "3 of 9 items shown"


def test_items_are_filtered(reader: Reader, report_file: Path) -> None:
    reader.open(report_file)
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


def test_thumbnails_are_seen(reader: Reader, report_page: Path) -> None:
    reader.open(report_page, "#items")
    reader.until(lambda: reader.run("[...document.querySelectorAll('img.thumb')].some(i => i.naturalWidth === 64)"))


def test_the_worst_item_is_found_and_its_link_passed_on(reader: Reader, report_file: Path) -> None:
    reader.open(report_file)
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
    reader.open(report_file, "#" + link.partition("#")[2])
    reader.until(reader.is_drawn)
    assert (reader.one("#detail-id").text, reader.one("#place").text) == ("0003@dog", "2 of 2")


def test_an_address_keeps_what_is_seen(reader: Reader, report_page: Path) -> None:
    reader.open(report_page)
    reader.choose("class", "dog")
    reader.choose("sort", "score_image")
    reader.choose("order", "down")
    reader.until(lambda: [name[:4] for name in reader.names()] == ["0007", "0005", "0003", "0001"])
    reader.all("a.card")[1].click()
    reader.until(reader.is_drawn)
    address = reader.driver.current_url
    reader.open(report_page, address.partition("#")[2].join(["#", ""]))
    reader.until(reader.is_drawn)
    assert reader.one("#detail-id").text == "0005@dog"
    assert reader.one("#place").text == "2 of 4"
    reader.one("#close").click()
    assert [name[:4] for name in reader.names()] == ["0007", "0005", "0003", "0001"]
    reader.all("a.card")[0].click()
    reader.until(lambda: reader.run("byId('detail').open"))
    reader.driver.back()
    reader.until(lambda: not reader.run("byId('detail').open"))


def test_it_is_dark_where_the_reader_likes_it_dark(reader: Reader, report_file: Path) -> None:
    def brightness(css: str, kind: str) -> float:
        color = reader.run(f"getComputedStyle(document.querySelector('{css}')).{kind}")
        return sum(map(int, color.strip("rgb()").split(","))) / 3

    reader.open(report_file)
    assert brightness("body", "backgroundColor") > 200 > 100 > brightness("body", "color")
    reader.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert brightness("body", "backgroundColor") < 60 < 200 < brightness("body", "color")


@pytest.mark.parametrize("width", [320, 390])
def test_it_fits_a_phone(reader: Reader, report_file: Path, width: int) -> None:
    reader.emulate("setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=2, mobile=True)
    reader.open(report_file)
    assert reader.run("document.documentElement.scrollWidth") <= width
    reader.open(report_file, "#item=0001%40dog")
    reader.until(reader.is_drawn)
    assert reader.run("byId('detail').scrollWidth") <= width
    assert reader.run("document.documentElement.scrollWidth") <= width


def test_text_is_legible(reader: Reader, report_file: Path) -> None:
    """Contrast of at least 4.5 between the colors of text and those behind it (WCAG 2, AA)."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in ("light", "dark"):
        reader.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        reader.open(report_file)
        names = ("paper", "card", "ink", "soft", "accent", "bad", "on-bad")
        style = "getComputedStyle(document.documentElement)"
        colors = {name: reader.run(f"{style}.getPropertyValue('--{name}').trim()") for name in names}
        pairs = [(text, behind) for behind in ("paper", "card") for text in ("ink", "soft", "accent", "bad")]
        for text, behind in [*pairs, ("on-bad", "bad")]:
            high, low = sorted((luminance(colors[text]), luminance(colors[behind])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, text, behind)


@pytest.mark.parametrize("width", [390, 1440])
def test_text_in_drawings_has_the_size_of_small_text(reader: Reader, tmp_path: Path, width: int) -> None:
    evaluation(run(tmp_path / "run", 10) / "evaluation", "run", {"0000@cat": 0.5, "0001@dog": 0.25})
    main(["report", str(tmp_path / "run")])
    reader.emulate("setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width == 390)
    reader.open(tmp_path / "run" / "report.html", "#item=0000%40cat")
    reader.until(lambda: reader.all("#curves text"))
    small = reader.run("parseFloat(getComputedStyle(byId('count')).fontSize)")
    sizes = "map((text) => parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a)"
    found = reader.run(f"[...document.querySelectorAll('svg text')].{sizes}")
    assert len(found) > 30
    assert found == pytest.approx([small] * len(found), rel=0.01)
    inside = "every((text) => text.getBBox().x >= 0 && text.getBBox().x + text.getBBox().width <= 340)"
    assert reader.run(f"[...document.querySelectorAll('#curves text')].{inside}")


def test_a_screen_reader_finds_its_way(reader: Reader, report_file: Path) -> None:
    def nodes() -> list[tuple[str, str]]:
        """Role and name of all that a screen reader is told of."""
        tree = reader.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        told = [node for node in tree if not node["ignored"]]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in told]

    operable = {"button", "link", "slider", "combobox", "radio", "checkbox", "spinbutton", "searchbox", "image", "img"}
    reader.open(report_file, "#item=0001%40dog")
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
