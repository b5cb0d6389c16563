from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_occlusion import LinearProbability, random
from torch import Tensor, nn

from fgvis_lightning.baselines.lime import LIME, Ridge
from fgvis_lightning.errors import InputError


def quadrants(self: LIME, image: NDArray[np.float64]) -> NDArray[np.int64]:
    """Six rectangles instead of superpixels."""
    _, height, width = image.shape
    return np.add.outer(3 * (np.arange(height) // (height // 2)), np.arange(width) // (width // 3))


def blocks(image: Tensor, numbers: Tensor) -> Tensor:
    """The image (3,H,W) with each superpixel in its mean color."""
    filled = image.clone()
    for number in numbers.unique():
        inside = numbers == number
        filled[:, inside] = image[:, inside].mean(1, keepdim=True)
    return filled


def case() -> tuple[LinearProbability, Tensor, Tensor]:
    """A network, an image, and how much showing each of six rectangles adds to the probability of class 0."""
    weight, image = random(3, 10, 12), random(3, 10, 12, seed=1)
    numbers = torch.from_numpy(quadrants(LIME(), image.numpy()))
    gain = weight * (image - blocks(image, numbers))
    weight *= 0.4 / (gain.abs().sum() + (weight * image).abs().sum())
    gain = (weight * (image - blocks(image, numbers))).sum(0)
    return LinearProbability(weight), image, torch.stack([gain[numbers == n].sum() for n in range(6)])


@pytest.mark.parametrize(("target", "sign"), [(0, 1), (1, -1)])
def test_coefficients_of_a_model_that_is_linear_in_the_superpixels(
    monkeypatch: pytest.MonkeyPatch, target: int, sign: int
) -> None:
    monkeypatch.setattr(LIME, "superpixels", quadrants)
    network, image, gain = case()
    found = LIME(samples=200, alpha=1e-9)(network, image[None], torch.tensor([target]))[0]
    expected = sign * gain[torch.from_numpy(quadrants(LIME(), image.numpy()))]
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)
    shrunk = LIME(samples=200)(network, image[None], torch.tensor([target]))[0]
    assert (shrunk - found).abs().max() > 1e-3 * found.abs().max(), "the default penalty is felt"
    torch.testing.assert_close(shrunk.double(), expected, rtol=0.15, atol=float(expected.abs().max()) * 0.1)


def test_samples_and_weights_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LIME, "superpixels", quadrants)
    image = random(3, 10, 12, seed=1)
    numbers = torch.from_numpy(quadrants(LIME(), image.numpy()))
    filled, seen = blocks(image, numbers), []

    class Square(nn.Module):  # not linear, so that the weights matter
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.stack([(x * image).mean((1, 2, 3)) * 4, (x**2).mean((1, 2, 3)) * 3], 1)

    network = Square()
    found = LIME(samples=50, batch_size=20)(network, image[None], torch.tensor([0]))[0]
    samples = torch.cat(seen)
    assert len(samples) == 50
    assert torch.equal(samples[0], image), "the first is the whole image"
    shown = torch.zeros(50, 6, dtype=torch.float64)
    for i, sample in enumerate(samples):
        for n in range(6):
            inside = numbers == n
            is_shown = torch.equal(sample[:, inside], image[:, inside])
            assert is_shown or torch.allclose(sample[:, inside], filled[:, inside])
            shown[i, n] = is_shown
    assert shown[1:].mean() == pytest.approx(0.5, abs=0.1)
    probability = network(samples).softmax(1)[:, 0]
    weights = []
    for row in shown:
        cosine = row.sum() / (row.norm() * 6**0.5) if row.any() else torch.tensor(0.0)
        weights.append((-((1 - cosine) ** 2) / 0.25**2).exp().sqrt())
    # The intercept as a column of its own, without a penalty.
    z, w = torch.cat([shown, torch.ones(50, 1)], 1).double(), torch.stack(weights).double()
    penalty = torch.diag(torch.tensor([1.0] * 6 + [0.0], dtype=torch.float64))
    expected = torch.linalg.solve(z.T @ (w[:, None] * z) + penalty, z.T @ (w * probability))[:6]
    torch.testing.assert_close(found.double(), expected[numbers], rtol=1e-4, atol=1e-6)


def test_ridge_is_the_minimum() -> None:
    z, y, weights = random(40, 5), random(40, seed=1), random(40, seed=2).abs()
    ridge = Ridge(2.0)
    data: Any = type("Loader", (), {"dataset": type("Data", (), {"tensors": (z, y, weights)})})
    ridge.fit(data)

    def loss(b: Tensor) -> Tensor:
        rest = y - z @ b
        return (weights * (rest - (weights * rest).sum() / weights.sum()) ** 2).sum() + 2 * (b**2).sum()

    gradient = torch.autograd.functional.jacobian(loss, ridge.representation())
    torch.testing.assert_close(gradient, torch.zeros(5, dtype=torch.float64))


def test_superpixels_follow_the_image() -> None:
    image = torch.full((3, 48, 60), -1.0, dtype=torch.float64)
    image[:, 10:30, 20:44] = 2
    image[0, :, :15] = 3
    method = LIME(max_dist=10)
    numbers = method.superpixels(image.numpy())
    assert sorted(np.unique(numbers)) == list(range(numbers.max() + 1))
    patch = np.zeros((48, 60), dtype=bool)
    patch[10:30, 20:44] = True
    assert not set(numbers[patch]) & set(numbers[~patch])
    assert not set(numbers[:, :15].ravel()) & set(numbers[:, 15:].ravel())
    assert np.array_equal(method.superpixels(5 * image.numpy() - 2), numbers), "whatever the normalization"
    assert LIME(max_dist=10, kernel_size=1).superpixels(image.numpy()).max() > numbers.max()
    assert LIME().superpixels(image.numpy()).max() < numbers.max()


def test_an_image_of_one_color() -> None:
    maps = LIME(samples=20)(nn.Sequential(nn.Flatten(), nn.Linear(300, 2)), torch.ones(1, 3, 10, 10), torch.tensor([0]))
    torch.testing.assert_close(maps, torch.zeros(1, 10, 10), rtol=0, atol=1e-6)


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(InputError, match=r'Expected scikit-image .*pip install "fgvis-lightning\[baselines\]"'):
        LIME()(nn.Flatten(), torch.ones(1, 3, 8, 8), torch.tensor([0]))
