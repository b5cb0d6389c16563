"""Classes and methods of one image side by side, in the report in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from browsing import Reader
from made_results import attribution, explanation, photo

from fgvis_lightning import load_explanation
from fgvis_lightning.cli import main
from fgvis_lightning.results.tensor_files import load_metadata, save_tensors

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("sides", [(32, 32), (24, 40), (40, 24)])
def test_pictures_fill_their_frames(reader: Reader, tmp_path: Path, sides: tuple[int, int]) -> None:
    for name in ("cat", "dog", "owl"):
        path = explanation(tmp_path / "run", f"a@{name}", tmp_path / "a.png", name, side=40)
        item = load_explanation(path)
        save_tensors(path, {"mask": item.mask[0, :, : sides[0], : sides[1]].half()}, load_metadata(path))
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
    scores = "score 0.500 → 0.250 · "
    assert reader.captions("#others") == [
        f"FGVis\n{scores}mean evidence 12.5 %\nevidence by color channel",
        "Grad-CAM\nscore 0.500\nmap",
        f"dog, FGVis\n{scores}mean evidence 25.0 %\nlevel missed\nevidence by color channel",
    ]
    assert len({round(reader.box(picture)[1]) for picture in (4, 5, 6)}) == 1
    assert [reader.pixel(0, 12, picture) for picture in (4, 6)] == [[0, 0, 0], pytest.approx([255, 127.5, 0], abs=1)]
    reader.one("input[name=compared][value=evidence]").click()
    assert reader.pixel(0, 12, 4) == pytest.approx([127.5] * 3, abs=1)
    widths = reader.widths()
    reader.one("#in").click()
    assert [after / before for before, after in zip(widths, reader.widths(), strict=True)] == pytest.approx(
        [reader.run("stage.times")] * 7, rel=0.01
    )
    times = reader.run("stage.times")
    reader.all("#others a")[1].click()
    reader.until(lambda: reader.one("#detail-id").text == "FGVis: a@dog")
    reader.until(lambda: len(reader.all("#others canvas")) == 3)
    assert reader.run("stage.times") == pytest.approx(times)  # the same image stays where it is


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The report of two photos with two classes each, of which the run names the predicted one last."""
    for name, number in (("10", 0), ("2", 1)):
        image = photo(tmp_path / f"{name}.png", number)
        for target in ("dog", "top1-cat"):
            explanation(tmp_path / "run", f"{name}@{target}", image, target.removeprefix("top1-"))
    (tmp_path / "run" / "config.yaml").write_text("data: {targets: [dog, auto]}")
    main(["report", str(tmp_path / "run")])
    return tmp_path / "run" / "report.html"


def test_classes_have_the_same_order_everywhere(reader: Reader, photos: Path) -> None:
    reader.open(photos)
    order = ["2@dog", "2@top1-cat", "10@dog", "10@top1-cat"]
    assert reader.names() == order
    reader.choose("order", "down")
    reader.until(lambda: reader.names() == order[2:] + order[:2])
    reader.open(photos, "#item=2%40dog")
    reader.until(lambda: len(reader.all("#others canvas")) == 2)
    assert [title.text for title in reader.all("#others strong, #others a")] == ["dog", "cat"]


@pytest.mark.parametrize(("width", "columns"), [(390, 1), (1024, 2), (1440, 2)])
def test_the_classes_of_an_image_fill_the_width(reader: Reader, photos: Path, width: int, columns: int) -> None:
    reader.emulate("setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=width == 390)
    reader.open(photos)
    cards = [card.rect for card in reader.all("a.card")]
    assert len({card["x"] for card in cards}) == columns
    assert sum(card["width"] for card in cards[:columns]) > 0.9 * (width - 80)
    reader.open(photos, "#item=2%40dog")
    reader.until(lambda: len(reader.all("#others canvas")) == 2)
    frames = [frame.rect for frame in reader.all("#others .frame")]
    assert len({frame["x"] for frame in frames}) == columns
    assert sum(frame["width"] for frame in frames[:columns]) > 0.9 * (width - 80)


@pytest.mark.parametrize(("count", "rows"), [(5, [5]), (6, [3, 3]), (9, [5, 4])])
def test_many_classes_are_compared_in_even_rows(reader: Reader, tmp_path: Path, count: int, rows: list[int]) -> None:
    image = photo(tmp_path / "a.png", 0)
    for number in range(count):
        explanation(tmp_path / "run", f"a@class{number}", image, f"class {number} {'with a long name ' * (number % 2)}")
    main(["report", str(tmp_path / "run")])
    reader.emulate("setDeviceMetricsOverride", width=1440, height=900, deviceScaleFactor=1, mobile=False)
    reader.open(tmp_path / "run" / "report.html", "#item=a%40class0")
    reader.until(lambda: len(reader.all("#others canvas")) == count)
    tops = [round(frame.rect["y"]) for frame in reader.all("#others .frame")]
    assert [tops.count(top) for top in dict.fromkeys(tops)] == rows
    captions = [round(caption.rect["y"]) for caption in reader.all("#others figcaption")]
    assert [captions.count(top) for top in dict.fromkeys(captions)] == rows


def test_compared_classes_have_one_brightness(reader: Reader, tmp_path: Path) -> None:
    """Otherwise, less evidence may look brighter than more."""
    image = photo(tmp_path / "a.png", 0)
    for name, part in (("cat", 8), ("dog", 16)):
        path = explanation(tmp_path / "run", f"a@{name}", image, name)
        save_tensors(path, {"mask": (load_explanation(path).mask[0] / part).half()}, load_metadata(path))
    main(["report", str(tmp_path / "run")])
    reader.open(tmp_path / "run" / "report.html", "#item=a%40dog")
    reader.until(lambda: len(reader.all("#others canvas")) == 2)
    factors = [caption.rpartition("brightened ")[2] for caption in reader.captions("#others")]
    assert len(set(factors)) == 1
    alone = reader.captions("#views")[1].rpartition("brightened ")[2]
    assert float(alone[2:]) == pytest.approx(2 * float(factors[0][2:]), rel=0.02)
