from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from test_occlusion import linear, random
from torch import Tensor, nn

from fgvis_lightning.baselines.rise import RISE, CheapRISE, upsampling

CPU = torch.device("cpu")


def kernel(cells: int, pixels: int) -> Tensor:
    """What a pixel (pixels,) takes of each cell (pixels,cells) when cells are upsampled linearly."""
    taken = torch.zeros(pixels, cells, dtype=torch.float64)
    for i in range(pixels):
        at = (i + 0.5) * cells / pixels - 0.5
        below = math.floor(at)
        for cell, weight in ((below, below + 1 - at), (below + 1, at - below)):
            inside = -cell if cell < 0 else 2 * (cells - 1) - cell if cell >= cells else cell  # reflected
            taken[i, max(inside, 0)] += weight
    return taken


def crops(cells: int, pixels: int) -> Iterator[Tensor]:
    """The same for each place where the mask can be cropped along an axis."""
    cell = math.ceil(pixels / cells)
    large = kernel(cells, (cells + 1) * cell)
    yield from (large[shift : shift + pixels] for shift in range(cell))


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_expectation_over_all_masks(p: float) -> None:
    height, width, cells = 8, 11, 3
    network, images = linear(height, width)
    method = RISE(masks=20_000, cells=cells, p=p, batch_size=2000)
    maps = method(network, images, torch.tensor([0, 1])).double()
    # E[M_i M_j] = p² + p (1 - p) Σ_cells of what both take of a cell, averaged over the crops.
    shared = torch.stack(
        [(both := torch.kron(y, x)) @ both.T for y in crops(cells, height) for x in crops(cells, width)]
    ).mean(0)
    evidence = (network.weight * images).sum(1).flatten(1) * torch.tensor([1.0, -1.0])[:, None]
    expected = 0.5 + evidence @ (p**2 + p * (1 - p) * shared) / p
    # The noise is mostly that of how often a pixel is kept, and common to both images.
    torch.testing.assert_close(maps.flatten(1), expected, rtol=0, atol=0.04)
    difference = maps.flatten(1)[0] - maps.flatten(1)[1]
    assert torch.corrcoef(torch.stack([difference, expected[0] - expected[1]]))[0, 1] > 0.99


def test_brute_force_over_its_masks() -> None:
    network, images = linear(9, 13)
    method = RISE(masks=30, cells=4, p=0.3, batch_size=8)
    masks = torch.cat(list(method.drawn(9, 13, CPU))).double()
    expected = torch.zeros(2, 9, 13, dtype=torch.float64)
    for mask in masks:
        p = network(images * mask).softmax(1)
        for i, target in enumerate((1, 0)):
            expected[i] += p[i, target] * mask[0] / (30 * 0.3)
    torch.testing.assert_close(method(network, images, torch.tensor([1, 0])).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "cells"), [(224, 224, 7), (40, 56, 7), (5, 9, 7), (8, 8, 1)])
def test_masks(height: int, width: int, cells: int) -> None:
    method = RISE(masks=200, cells=cells, batch_size=70)
    chunks = list(method.drawn(height, width, CPU))
    assert [len(chunk) for chunk in chunks] == [70, 70, 60], "never all in memory"
    masks = torch.cat(chunks)
    assert masks.shape == (200, 1, height, width)
    assert masks.min() == 0
    assert masks.max() == pytest.approx(1)
    assert masks.mean() == pytest.approx(0.5, abs=0.1 if cells == 1 else 0.03)
    assert torch.equal(masks, torch.cat(list(RISE(masks=200, cells=cells, batch_size=1).drawn(height, width, CPU))))
    assert not torch.equal(masks, torch.cat(list(RISE(masks=200, cells=cells, seed=1).drawn(height, width, CPU))))


def test_a_mask_is_a_crop_of_an_upsampled_grid() -> None:
    ways = [torch.kron(y, x) for y in crops(3, 7) for x in crops(3, 8)]
    used = set()
    for mask in torch.cat(list(RISE(masks=40, cells=3).drawn(7, 8, CPU))).double().flatten(1):
        fits = []
        for number, way in enumerate(ways):
            grid = torch.linalg.lstsq(way, mask[:, None]).solution.round().clamp(0, 1)
            if torch.allclose((way @ grid)[:, 0], mask, atol=1e-6):
                fits.append(number)
        assert fits
        used.update(fits[:1] if len(fits) == 1 else [])
    assert len(used) > len(ways) / 2, "randomly shifted along both axes"


@pytest.mark.parametrize(("cells", "pixels"), [(7, 256), (3, 10), (1, 4)])
def test_borders_are_the_authors(cells: int, pixels: int) -> None:
    resize = pytest.importorskip("skimage.transform").resize
    grid = random(cells, cells).numpy()
    theirs = resize(grid, (pixels, pixels), order=1, mode="reflect", anti_aliasing=False)
    ours = upsampling(cells, pixels).double()
    torch.testing.assert_close(ours @ torch.from_numpy(grid) @ ours.T, torch.from_numpy(theirs), rtol=0, atol=1e-5)


def test_finds_the_patch_that_decides() -> None:
    class Patch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inside = x[:, :, 8:16, 24:32].mean((1, 2, 3))
            return torch.stack([inside * 8 - 4, torch.zeros_like(inside)], 1)

    images = 1 + 0.1 * random(1, 3, 32, 48).float()
    found = CheapRISE(masks=500)(Patch(), images, torch.tensor([0]))[0]
    y, x = divmod(int(found.argmax()), 48)
    assert 8 <= y < 16
    assert 24 <= x < 32
