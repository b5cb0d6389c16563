from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_metrics_curves import Counting, batch, brightness, small
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics import ROAD, impute, road, road_curves

SIDE, CORNER = 1 / 6, 1 / 12


def solved(image: Tensor, removed: Tensor) -> Tensor:
    """The equations written out, pixel by pixel, and solved as a dense system in float64."""
    height, width = removed.shape
    unknown = {place: number for number, place in enumerate(map(tuple, removed.nonzero().tolist()))}
    left = np.zeros((len(unknown), len(unknown)))
    right = np.zeros((len(unknown), len(image)))
    for (y, x), row in unknown.items():
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                inside = 0 <= y + i < height and 0 <= x + j < width
                if (i, j) == (0, 0) or not inside:
                    continue
                weight = SIDE if 0 in (i, j) else CORNER
                left[row, row] += weight
                if (y + i, x + j) in unknown:
                    left[row, unknown[y + i, x + j]] -= weight
                else:
                    right[row] += weight * image[:, y + i, x + j].double().numpy()
    result = image.double().clone()
    found = np.linalg.solve(left, right)
    for (y, x), row in unknown.items():
        result[:, y, x] = torch.from_numpy(found[row])
    return result


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_removed_pixels_are_means_of_their_neighbors(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 11, 14, generator=generator)
    removed = torch.rand(3, 11, 14, generator=generator) < share
    removed[2] = True
    removed[2, 3, 0] = False  # all of it is that one pixel then
    found = impute(images, removed, 1e-7)
    for index in range(3):
        torch.testing.assert_close(found[index].double(), solved(images[index], removed[index]), rtol=0, atol=1e-4)
        assert torch.equal(found[index][:, ~removed[index]], images[index][:, ~removed[index]])
        assert torch.equal(impute(images[index : index + 1], removed[index : index + 1], 1e-7)[0], found[index])
    hidden = torch.where(removed[:, None], torch.full_like(images, 9.0), images)
    assert torch.equal(impute(hidden, removed, 1e-7), found), "what is removed has no part in it"


def test_images_that_impute_themselves() -> None:
    removed = torch.zeros(2, 9, 9, dtype=torch.bool)
    removed[0, 2:7, 2:6] = True
    slope = torch.arange(9.0).expand(2, 3, 9, 9)
    torch.testing.assert_close(impute(slope, removed, 1e-7), slope, rtol=0, atol=1e-4)
    assert torch.equal(impute(torch.zeros(2, 3, 9, 9), removed), torch.zeros(2, 3, 9, 9))
    double = impute(slope.double(), removed)
    assert double.dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(impute(slope, removed), impute(slope, removed))
        torch.testing.assert_close(impute(slope, removed, 1e-7), slope, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_imputation_by_quantus() -> None:
    quantus: Any = pytest.importorskip("quantus")
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, 16, 16, generator=generator)
    removed = torch.rand(16, 16, generator=generator) < 0.6
    theirs = quantus.functions.perturb_func.noisy_linear_imputation(
        image.numpy().copy(), removed.flatten().nonzero()[:, 0].numpy(), noise=0.0
    )
    found = impute(image[None], removed[None], 1e-7)[0]
    torch.testing.assert_close(found, torch.as_tensor(theirs).float().view(3, 16, 16), rtol=0, atol=1e-4)


def test_scores_of_what_is_left() -> None:
    network = small(16, 16)
    x, saliency, targets = batch(2, 16, 16)
    saliency[1] = saliency[1].round()  # many pixels of equal value
    shares = 0.3, 0.9
    morf, lerf = road_curves(network, x, saliency, targets, shares, noise=0.05, seed=4)
    noise = 0.05 * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(4)).double()
    draw = torch.randperm(256, generator=torch.Generator().manual_seed(4)).tolist()
    network.double()
    for index in range(2):
        values = saliency[index].flatten().tolist()
        order = sorted(range(256), key=lambda pixel: (-values[pixel], draw.index(pixel)))
        for column, count in enumerate((77, 230)):
            for curve, gone in ((morf, order[:count]), (lerf, order[-count:])):
                removed = torch.zeros(256, dtype=torch.bool)
                removed[gone] = True
                removed = removed.view(16, 16)
                picture = solved(x[index], removed) + noise * removed
                score = float(network(picture[None]).softmax(1)[0, targets[index]])
                assert float(curve[index, column]) == pytest.approx(score, abs=1e-4)


def test_one_number() -> None:
    morf, lerf = torch.tensor([[0.2, 0.0], [0.5, 0.5]]), torch.tensor([[1.0, 0.6], [0.5, 0.5]])
    assert road(morf, lerf).tolist() == pytest.approx([0.35, 0])
    x = torch.full((1, 3, 16, 16), 0.2)
    x[:, :, 4:8, 4:8] = 1
    for sign in (1, -1):  # the bright square matters
        value = road(*road_curves(brightness, x, sign * x.mean(1), torch.tensor([0])))
        assert float(value) * sign > 0.01


def test_batches() -> None:
    network = Counting(small(16, 16))
    x, saliency, targets = batch(3, 16, 16)
    state = torch.random.get_rng_state()
    whole = road_curves(network, x, saliency, targets, batch_size=20)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert network.sizes == [20, 20, 14]
    for index in range(3):
        alone = road_curves(network, x[index : index + 1], saliency[index : index + 1], targets[index : index + 1])
        for mine, other in zip(alone, whole, strict=True):
            torch.testing.assert_close(mine[0], other[index], rtol=0, atol=1e-6)


def test_errors() -> None:
    x, saliency, targets = batch(2, 8, 8)
    network = small(16, 16)
    with pytest.raises(InputError, match=r"Expected saliency to be \(2,8,8\), but got \(2,8,7\)"):
        road_curves(network, x, saliency[:, :, 1:], targets)
    with pytest.raises(InputError, match=r"shares between 0 and 1, but got 64 and \(0\.5, 1\.0\)"):
        ROAD(network, (0.5, 1.0)).update(x, saliency, targets)
    with pytest.raises(InputError, match="Expected at least one pixel of each image to remain"):
        impute(x, torch.ones(2, 8, 8, dtype=torch.bool))
    with pytest.raises(InputError, match=r"removed pixels \(B,H,W\) as booleans, but got \(2,3,8,8\) and \(2,8,8\) of"):
        impute(x, torch.ones(2, 8, 8))
    with pytest.raises(InputError, match=r"both curves to be \(B,P\), but got \(2,9\) and \(2,8\)"):
        road(torch.ones(2, 9), torch.ones(2, 8))
