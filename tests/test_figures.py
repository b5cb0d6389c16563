from __future__ import annotations

from typing import Any

import pytest
import torch
from matplotlib import colormaps

from fgvis_lightning.figures import brightened, grid, heat, pixels


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
