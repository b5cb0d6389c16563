from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.method.games import GAMES
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.figures import (
    KEY,
    brightened,
    brightest,
    explanation_panel,
    grid,
    heat,
    overlay,
    overlay_words,
    pixels,
)
from fgvis_lightning.results.layout import as_file
from fgvis_lightning.results.notebook import draw
from fgvis_lightning.results.shapes import in_view


def test_brightness_ends_at_a_quantile_that_a_single_pixel_does_not_move() -> None:
    values = torch.rand(100, 100)
    values[3, 4] = 1e6
    result = brightened(values)
    assert result.max() == 1
    assert result[values < 0.9].mean() == pytest.approx(0.45, abs=0.02)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_map_goes_from_black_to_bright_whatever_its_scale(scale: float) -> None:
    saliency = torch.linspace(-1, 1, 10000).reshape(100, 100).double() * scale
    picture = heat(saliency.float())
    colors = torch.tensor(colormaps["inferno"]([0.0, 1.0]))[:, :3].float()
    torch.testing.assert_close(picture[:, 0, 0], colors[0])  # evidence against the class
    torch.testing.assert_close(picture[:, 40, 0], colors[0])
    torch.testing.assert_close(picture[:, -1, -1], colors[1])


def test_an_offset_does_not_matter_and_a_constant_is_gray() -> None:
    saliency = torch.rand(20, 20)
    saliency[0, 0] = 0
    torch.testing.assert_close(heat(saliency + 4), heat(saliency), atol=0.02, rtol=0)
    assert torch.equal(heat(torch.full((4, 6), 0.7)), torch.full((3, 4, 6), 0.5))


def test_a_few_bright_pixels_are_seen() -> None:
    saliency = torch.zeros(100, 100)
    saliency[5, 5] = 1e-3
    assert heat(saliency)[:, 5, 5].sum() > 2


def test_grid_shows_each_picture_where_it_belongs() -> None:
    red, green = (torch.zeros(3, 4, 4).index_fill(0, torch.tensor(channel), 1.0) for channel in (0, 1))
    rows: list[list[tuple[torch.Tensor | None, str]]] = [[(red, ""), (None, "")], [(green, "a\nb"), (red, "c")]]
    figure = grid(rows, ["left", "right"], ["up", "down"], 1.0, "why")
    image = pixels(figure)
    middle = len(image) // 2, int(0.659 * image.shape[1])  # names are at the left

    def shown(part: Any) -> set[str]:
        return {name for name, color in (("red", (255, 0, 0)), ("green", (0, 255, 0))) if (part == color).all(-1).any()}

    upper, lower = image[: middle[0]], image[middle[0] :]
    assert [shown(upper[:, : middle[1]]), shown(upper[:, middle[1] :])] == [{"red"}, set()]
    assert [shown(lower[:, : middle[1]]), shown(lower[:, middle[1] :])] == [{"green"}, {"red"}]
    texts = {text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title)}
    assert {"left", "right", "a\nb", "c"} <= texts
    assert {"up", "down", "why"} <= {text.get_text() for text in figure.texts}


def shown(image: torch.Tensor, evidence: torch.Tensor, name: str = "cat", **known: Any) -> Figure:
    """The panel of one item in the deletion game."""
    score = torch.tensor([0.75])
    explanation = Explanation((1 - evidence)[None], torch.tensor([3]), score, score / 8, GAMES["deletion"], **known)
    return explanation_panel(explanation, 0, image, torch.full((3, 1, 1), 0.5), name)


def names(figure: Figure) -> list[str]:
    return [axes.get_title("left").replace("\n", " ") for axes in figure.axes]  # as if not wrapped


def title(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def picture(figure: Figure, place: int) -> torch.Tensor:
    """What is drawn at a place (3,448,448)."""
    drawn, box = pixels(figure), figure.axes[place].get_window_extent()
    left, top = round(box.x0), round(len(drawn) - box.y1)
    assert (round(box.width), round(box.height)) == (448, 448)
    return torch.from_numpy(drawn[top : top + 448, left : left + 448] / 255).permute(2, 0, 1).float()


def assert_large(drawn: torch.Tensor, view: torch.Tensor, side: int = 56) -> None:
    """Each pixel of the view (3,H,W) is a square; old versions of matplotlib are off by one at its border."""
    for offset in (1, side // 2, side - 2):
        torch.testing.assert_close(drawn[:, offset::side, offset::side], view, rtol=0, atol=0.005)


def test_a_panel_shows_every_pixel() -> None:
    image, evidence = torch.rand(2, 3, 8, 8)
    figure = shown(image, evidence)
    assert names(figure) == [
        "image",
        "evidence (deletion)",
        "on the dimmed image, " + overlay_words(evidence),
        f"evidence by color channel, mean {100 * evidence.mean():.1f} %",
    ]
    assert title(figure) == ["cat", "0.750 on the image, 0.094 without the evidence", KEY]
    on_gray = torch.lerp(torch.full_like(image, 0.5), image, evidence)
    for place, view in enumerate((image, on_gray, overlay(image, evidence), evidence)):
        assert_large(picture(figure, place), view)


@pytest.mark.parametrize(("top", "times"), [(0.3125, "3.2"), (0.0625, "16"), (0.03125, "32"), (0.0003, "3,300")])
def test_faint_evidence_is_shown_brightened_beside_what_it_is(top: float, times: str) -> None:
    image, evidence = torch.rand(2, 3, 8, 8)
    evidence = top * evidence / brightest(evidence)
    figure = shown(image, evidence)
    unseen = ": too faint to see; brightened on the right" if top < 0.05 else ""
    assert names(figure) == [
        "image",
        f"evidence (deletion){unseen}",
        f"evidence, brightened ×\N{NO-BREAK SPACE}{times}",
        f"on the dimmed image, brightened ×\N{NO-BREAK SPACE}{times} or more",
        names(figure)[4],
        f"by color channel, brightened ×\N{NO-BREAK SPACE}{times}",
    ]
    assert names(figure)[4].startswith("evidence by color channel, mean ")
    assert names(figure)[4].endswith(f" %{unseen}")
    assert "0.0 %" not in names(figure)[4]
    assert picture(figure, 4).max() == pytest.approx(float(evidence.max()), abs=0.005)
    assert picture(figure, 5).max() == 1
    assert_large(picture(figure, 5), (evidence / top).clamp(max=1))


@pytest.mark.parametrize(("value", "words"), [(0.0, "none"), (1.0, "whole image")])
def test_nothing_and_the_whole_image_are_named_and_framed(value: float, words: str) -> None:
    figure = shown(torch.rand(3, 8, 8), torch.full((3, 8, 8), value))
    assert names(figure) == [
        "image",
        f"evidence (deletion): {words}",
        f"on the dimmed image: {words}",
        f"evidence by color channel: {words}",
    ]
    drawn = pixels(figure).astype(int).sum(2)
    for axes in figure.axes:  # a line around each picture, right beside it
        box = axes.get_window_extent()
        left, right, top, bottom = round(box.x0), round(box.x1), round(len(drawn) - box.y1), round(len(drawn) - box.y0)
        line = {*drawn[top:bottom, left - 1], *drawn[top:bottom, right], *drawn[top - 1, left:right]}
        assert line | {*drawn[bottom, left:right]} == {0xB9 + 0xBB + 0xB8}


def test_the_typefaces_are_there_and_have_the_letters(caplog: pytest.LogCaptureFixture) -> None:
    figure = shown(torch.rand(3, 8, 8), torch.rand(3, 8, 8) / 9, "კატა, şerit → ×")
    pixels(figure)  # a missing letter is a warning
    assert "'STIXGeneral', 'Times New Roman'," in as_file(figure, "svg").decode()
    assert not caplog.records, "a missing typeface"


def test_an_overlay_says_how_it_is_brightened() -> None:
    evidence = torch.full((3, 10, 10), 0.25)
    assert overlay_words(evidence) == "brightened ×\N{NO-BREAK SPACE}4.0 or more"
    evidence[:, 0] = 1
    assert overlay_words(evidence) == "brightened"


def test_a_volume_without_evidence_in_its_middle_says_so() -> None:
    evidence = torch.zeros(1, 8, 8, 8)
    evidence[:, 0, 0, 0] = 1
    score = torch.tensor([0.75])
    explanation = Explanation(evidence[None], torch.tensor([3]), score, score, GAMES["preservation"])
    figure = explanation_panel(explanation, 0, torch.rand(1, 8, 8, 8), torch.full((1, 1, 1), 0.5), "cat")
    assert names(figure)[1:] == [
        "evidence (preservation): none in these slices",
        "on the dimmed volume: none in these slices",
        "mask: none in these slices",
    ]


def test_a_volume_of_any_values_is_drawn_from_its_lowest_to_its_highest() -> None:
    score, evidence = torch.tensor([0.75]), torch.rand(1, 1, 4, 4, 4)
    explanation = Explanation(evidence, torch.tensor([3]), score, score, GAMES["preservation"])
    volume = torch.linspace(-1000, 1000, 64).view(1, 4, 4, 4)
    figure = explanation_panel(explanation, 0, volume, torch.zeros(1, 1, 1), "cat")
    assert names(figure)[0] == "volume, black -1000, white 1000"
    drawn = figure.axes[0].get_images()[0].get_array()
    assert drawn is not None
    assert len(np.unique(drawn)) > 30, "not black and white"
    image, fill, words = in_view(volume, torch.zeros(1, 1, 1))
    assert (float(image.min()), float(image.max()), fill.item()) == (0, 1, 0.5)
    assert words == ", black -1000, white 1000"
    assert torch.equal(in_view(evidence[0], fill)[0], evidence[0]), "values in [0,1] are as they are"


def test_a_panel_says_what_was_missed_and_how_well_runs_agree() -> None:
    pair = torch.rand(2, 3, 8, 8)
    assert title(shown(*pair, feasible=torch.tensor([False])))[1].endswith("without the evidence (level missed)")
    assert title(shown(*pair, feasible=torch.tensor([True])))[1].endswith("without the evidence")
    agree = title(shown(*pair, agreement=torch.tensor([0.928]), seeds=6))
    assert agree[1].endswith("without the evidence; 6 runs agree by r = 0.93 (0.1 to 0.6 is usual)")
    assert agree[2:] == [KEY]
    undefined = title(shown(*pair, agreement=torch.tensor([torch.nan]), seeds=6))
    assert undefined == title(shown(*pair))


@pytest.mark.parametrize("shape", [(224, 224), (8, 8), (224, 72), (72, 224), (600, 500)])
def test_nothing_in_a_panel_overlaps_or_is_cut_off(shape: tuple[int, int]) -> None:
    known = {"feasible": torch.tensor([False]), "agreement": torch.tensor([0.9]), "seeds": 6}
    figure = shown(torch.rand(3, *shape), torch.rand(3, *shape) / 9, "a class with a name that is long, " * 4, **known)
    drawn = pixels(figure)
    captions = [child for axes in figure.axes for child in axes.get_children() if isinstance(child, Text)]
    texts = [text for text in (*figure.texts, *captions) if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    assert len(boxes) == 3 + 2 * 6
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 <= box.y0
        assert box.x1 <= drawn.shape[1]
        assert box.y1 <= drawn.shape[0]
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_an_overlay_is_the_image_where_evidence_is_and_dim_gray_elsewhere() -> None:
    image, evidence = torch.rand(3, 4, 4), torch.zeros(3, 4, 4)
    evidence[:, 1] = 0.04
    evidence[0, 3, 3] = 0.03  # a quarter of the brightest, as a mean of the channels: half of the image
    drawn = overlay(image, evidence)
    half = (image[:, 3, 3] + 0.35 * image[:, 3, 3].mean()) / 2
    torch.testing.assert_close(drawn[:, 3, 3], half, atol=1e-3, rtol=0)
    torch.testing.assert_close(drawn[:, 1, 2], image[:, 1, 2])
    torch.testing.assert_close(drawn[:, 0, 0], 0.35 * image[:, 0, 0].mean().expand(3))


def test_an_explanation_gives_pictures_of_its_own_size() -> None:
    image, evidence = torch.rand(2, 3, 6, 8)
    score = torch.tensor([0.75])
    known: dict[str, Any] = {"images": image[None], "background": torch.full((3, 1, 1), 0.5)}
    found = Explanation(1 - evidence[None], torch.tensor([3]), score, score / 8, GAMES["deletion"], **known)
    for made, expected in (
        (found.to_pil(), torch.lerp(torch.full_like(image, 0.5), image, evidence)),
        (found.overlay(), overlay(image, evidence)),
    ):
        assert made.size == (8, 6)
        torch.testing.assert_close(pil_to_tensor(made) / 255, expected, atol=0.003, rtol=0)
    faint = replace(found, mask=1 - 0.1 * evidence[None]).to_pil()
    bright = torch.lerp(torch.full_like(image, 0.5), image, brightened(evidence))
    torch.testing.assert_close(pil_to_tensor(faint) / 255, bright, atol=0.003, rtol=0)
    with pytest.raises(InputError, match=r"this explanation has none\. Pass them as draw"):
        replace(found, images=None).overlay()


def test_a_notebook_gets_the_same_panel() -> None:
    image, evidence = torch.rand(2, 3, 8, 8)
    score = torch.tensor([0.75])
    explanation = Explanation(1 - evidence[None], torch.tensor([3]), score, score / 8, GAMES["deletion"])
    drawn = torch.from_numpy(np.asarray(draw(explanation, image[None], name="cat")).copy())
    assert torch.equal(drawn, torch.from_numpy(pixels(shown(image, evidence))))


def test_an_explanation_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(3, 3, 8, 8)
    score = torch.full((3,), 0.75)
    known: dict[str, Any] = {"images": images, "background": torch.full((3, 1, 1), 0.5), "names": ("cat", "dog", "fox")}
    explanation = Explanation(torch.rand(3, 3, 8, 8), torch.arange(3), score, score, GAMES["preservation"], **known)
    alone = np.asarray(draw(explanation, index=1))
    assert np.array_equal(alone, np.asarray(draw(explanation, images, 1, "dog", (0.5, 0.5, 0.5))))
    assert np.array_equal(alone, np.asarray(draw(explanation[1])))
    shown = explanation._repr_png_()
    assert shown is not None
    each = [np.asarray(draw(explanation, index=index)) for index in range(3)]
    assert np.array_equal(np.asarray(draw(explanation)), np.concatenate(each)), "one below another"
    assert np.array_equal(np.asarray(Image.open(BytesIO(shown))), np.concatenate(each))
    with pytest.raises(InputError, match="Expected an index below 0, but got 0"):
        draw(explanation[:0])
    bundle = explanation._repr_mimebundle_(include=None, exclude=None)
    assert bundle == {"text/html": explanation._repr_html_(), "image/png": shown}
    named = replace(explanation, names=("<b>", "b", "c"))
    page = named._repr_html_()
    assert "<b>" not in page
    assert page.count("&lt;b&gt; ") == 2, "below the picture, and in its description"
    assert f"base64,{b64encode(shown).decode()}" in explanation._repr_html_()
    without = replace(explanation, images=None)
    assert without._repr_png_() is None
    assert list(without._repr_mimebundle_()) == ["text/html"]
    assert without._repr_html_().startswith("<pre>")
    with pytest.raises(InputError, match="Expected the explained images, but this explanation has none"):
        draw(without)


def test_a_panel_is_saved_for_print(tmp_path: Path) -> None:
    images, score = torch.rand(2, 3, 8, 8), torch.full((2,), 0.75)
    explanation = Explanation(
        torch.rand(2, 3, 8, 8),
        torch.arange(2),
        score,
        score,
        GAMES["preservation"],
        names=("cat", "dog"),
        images=images,
    )
    explanation.save(tmp_path / "a.svg", 1)
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert ">dog</text>" in text
    assert "cat" not in text
    explanation.save(str(tmp_path / "a.PDF"))
    assert (tmp_path / "a.PDF").read_bytes().startswith(b"%PDF")
    explanation.save(tmp_path / "a.png", 1)
    with Image.open(tmp_path / "a.png") as saved:
        assert np.array_equal(np.asarray(saved.convert("RGB")), np.asarray(draw(explanation, index=1)))
    with pytest.raises(InputError, match="Expected the explained images, but this explanation has none"):
        replace(explanation, images=None).save(tmp_path / "b.pdf")
    assert not (tmp_path / "b.pdf").exists()


def test_overlay_dims_what_is_no_evidence() -> None:
    image, evidence = torch.full((3, 8, 8), 0.8), torch.zeros(3, 8, 8)
    evidence[:, 2] = 0.3
    picture = overlay(image, evidence)
    assert torch.allclose(picture[:, 2], image[:, 2]), "brightened"
    assert torch.allclose(picture[:, 3], 0.35 * image[:, 3])
