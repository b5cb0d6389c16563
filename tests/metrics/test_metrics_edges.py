from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics import NewEdges, new_edges

SOBEL = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))


def edges(picture: Tensor, threshold: float) -> set[tuple[int, int]]:
    """The edges of a picture (3,H,W), pixel by pixel in float64."""
    gray = [
        [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in zip(*rows, strict=True)]
        for rows in zip(*picture.double().tolist(), strict=True)
    ]
    height, width = len(gray), len(gray[0])
    found = set()
    for y in range(height):
        for x in range(width):
            right = down = 0.0
            for i in range(3):
                for j in range(3):
                    value = gray[min(max(y + i - 1, 0), height - 1)][min(max(x + j - 1, 0), width - 1)]
                    right += SOBEL[i][j] * value / 4
                    down += SOBEL[j][i] * value / 4
            if math.sqrt(right**2 + down**2) > threshold:
                found.add((y, x))
    return found


def score(image: Tensor, explanation: Tensor, threshold: float) -> float:
    """The hallucination score from its definition."""
    there = edges(image, threshold)
    near = {(y + i, x + j) for y, x in there for i in (-1, 0, 1) for j in (-1, 0, 1)}
    return len(edges(explanation, threshold) - near) / max(1, len(there))


@pytest.mark.parametrize("threshold", [0.05, 0.2])
def test_by_the_definition(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 3, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (17, 23), mode="bilinear")
    images[:, :, 5:9, 6:15] = 0.9
    masks = (torch.rand(4, 1, 17, 23, generator=generator) < 0.9) * torch.rand(4, 3, 17, 23, generator=generator)
    explanations = images * (0.2 + 0.8 * masks)
    found = new_edges(images, explanations, threshold)
    expected = [score(*pair, threshold) for pair in zip(images, explanations, strict=True)]
    assert found.tolist() == pytest.approx(expected)
    assert min(expected) > 0
    assert torch.equal(new_edges(images.double(), explanations.double(), threshold), found)
    assert torch.equal(new_edges(images[1:2], explanations[1:2], threshold), found[1:2])


def drawn(*squares: tuple[int, int, int, float]) -> Tensor:
    """Gray 0.5 (1,3,32,32) with squares: top, left, side, brightness."""
    picture = torch.full((1, 3, 32, 32), 0.5)
    for top, left, side, value in squares:
        picture[:, :, top : top + side, left : left + side] = value
    return picture


SQUARE = (4, 4, 8, 0.9)


def test_pictures_whose_score_is_known() -> None:
    image = drawn(SQUARE)
    assert new_edges(image, image).tolist() == [0]
    assert new_edges(image, drawn()).tolist() == [0], "what is left out is not new"
    assert new_edges(image, drawn((4, 4, 8, 0.6))).tolist() == [0], "fainter, at the same place"
    assert new_edges(image, drawn((5, 4, 8, 0.9))).tolist() == [0], "moved by a pixel, within what counts as near"
    # A square has as many edges as an equal one: twice around, on either side of its outline.
    assert new_edges(image, drawn(SQUARE, (20, 20, 8, 0.1))).tolist() == [1]
    assert new_edges(image, drawn((20, 20, 8, 0.54))).tolist() == [0], "a step of 0.04 is no edge"
    assert new_edges(image, drawn((20, 20, 8, 0.56))).tolist() == [52 / 64], (
        "one of 0.06 is, but outside of its corners"
    )
    assert new_edges(drawn(), drawn(SQUARE)).tolist() == [10**2 - 6**2], "an image without edges: as with one"


def test_edges_are_those_of_the_gray_picture() -> None:
    blue, green = drawn(), drawn()
    blue[:, 2, 8:16, 8:16] = 0.9  # 0.114 · 0.4 is less than the threshold
    green[:, 1, 8:16, 8:16] = 0.9
    assert new_edges(drawn(SQUARE), blue).tolist() == [0]
    assert new_edges(drawn(SQUARE), green).item() > 0


def test_mean_over_images() -> None:
    images, explanations = drawn(SQUARE).repeat(2, 1, 1, 1), torch.cat([drawn(SQUARE), drawn((20, 20, 8, 0.9))])
    metric = NewEdges()
    metric.update(images, explanations)
    assert metric.compute().item() == 0.5
    assert NewEdges(threshold=0.45)(images, explanations).item() == 0


@pytest.mark.parametrize(
    ("image", "explanation", "message"),
    [
        (torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 5), r"one shape, but got \(1,3,4,4\) and \(1,3,4,5\)"),
        (torch.ones(1, 4, 4), torch.ones(1, 4, 4), r"images to be \(B,C,H,W\), but got \(1,4,4\)"),
        (
            torch.ones(1, 3, 4, 4),
            torch.full((1, 3, 4, 4), -2.0),
            r"explanations in \[0,1\], but got values from -2 to -2",
        ),
        (torch.ones(1, 3, 4, 4), torch.full((1, 3, 4, 4), torch.nan), "values from nan to nan. Denormalize"),
    ],
)
def test_errors(image: Tensor, explanation: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        new_edges(image, explanation)
