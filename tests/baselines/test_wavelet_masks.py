from __future__ import annotations

import sys
from typing import Any

import pytest
import pywt
import torch
from test_occlusion import random
from torch import Tensor, nn
from toy_networks import Tiny

from fgvis_lightning.baselines.wavelet_masks import Bands, CartoonX, WaveletX
from fgvis_lightning.errors import InputError
from fgvis_lightning.method.games import probability
from fgvis_lightning.networks.load import load_classifier

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
KNOWN: Any = {"mean": MEAN, "std": STD}


class Pattern(nn.Module):
    """Class 0 is high if a patch has just this pattern; nothing else matters."""

    def __init__(self, pattern: Tensor) -> None:
        super().__init__()
        self.pattern = pattern

    def forward(self, x: Tensor) -> Tensor:
        alike = (x[:, :, 24:36, 8:20] * self.pattern).mean((1, 2, 3)) / self.pattern.square().mean()
        return torch.stack([8 * alike - 4, torch.zeros_like(alike)], 1)


def pixels(count: int = 1, height: int = 28, width: int = 37) -> Tensor:
    return 0.5 + 0.2 * random(count, 3, height, width).clamp(-2, 2)


def normalized(image: Tensor) -> Tensor:
    return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def composed(bands: Bands) -> Tensor:
    """The images of coefficients (N,C,1 or 3,h,w), by PyWavelets, one channel after the other."""
    images = []
    for n in range(len(bands[0])):
        for channel in range(bands[0].shape[1]):
            rest, *details = [band[n, channel].numpy() for band in bands]
            images.append(torch.from_numpy(pywt.waverec2([rest[0], *map(tuple, details)], "db3", mode="zero")))
    return torch.stack(images).unflatten(0, bands[0].shape[:2])


@pytest.mark.parametrize(("height", "width"), [(28, 37), (64, 48), (9, 11)])
def test_the_transform_is_that_of_pywavelets(height: int, width: int) -> None:
    image, method = pixels(2, height, width), CartoonX()
    bands = method.decomposed(image)
    assert len(bands) == 6
    for n in range(2):
        for channel in range(3):
            with pytest.warns(UserWarning, match="too high"):  # for an image that small
                rest, *details = pywt.wavedec2(image[n, channel].numpy(), "db3", mode="zero", level=5)
            torch.testing.assert_close(bands[0][n, channel, 0], torch.from_numpy(rest))
            for band, detail in zip(bands[1:], details, strict=True):
                torch.testing.assert_close(band[n, channel], torch.stack([torch.from_numpy(part) for part in detail]))
    torch.testing.assert_close(method.composed(bands, image), image)
    torch.testing.assert_close(composed(bands)[..., :height, :width], image)


@pytest.mark.parametrize("kind", [CartoonX, WaveletX])
def test_objective_by_hand(kind: type[CartoonX]) -> None:
    network, image, target = Tiny().eval().double(), pixels(), torch.tensor([2])
    method, x = kind(samples=3, sparsity=2.5, spatial=0.75, **KNOWN), normalized(image)
    bands = method.decomposed(image)
    gray = method.decomposed(image.mean(1, keepdim=True))
    mask = [random(*band[:, :1].shape, seed=i).sigmoid() for i, band in enumerate(bands)]
    noise = method.noise(bands, 3, torch.Generator().manual_seed(1))
    with torch.no_grad():
        score = probability(network(x), target)
        goal = method.goal(score)
        assert float(goal) == (1 if kind is WaveletX else float(score))
        found = method.distortion(network, x, bands, noise, mask, target, goal)
        for sample in range(3):
            y = composed([m * c + (1 - m) * n[sample] for m, c, n in zip(mask, bands, noise, strict=True)])
            y = y[..., :28, :37].clamp(0, 1)
            assert ((y == 0) | (y == 1)).any()
            expected = (goal - probability(network(normalized(y)), target)) ** 2
            torch.testing.assert_close(found[sample, None], expected)
    shown = composed([m * c for m, c in zip(mask, gray, strict=True)])[..., :28, :37].clamp(0, 1)
    count = sum(part.numel() for part in mask)
    expected = 2.5 * sum(float(part.sum()) for part in mask) / count + 0.75 * shown.mean()
    torch.testing.assert_close(method.size(mask, gray, x), expected)


def test_noise_has_mean_and_deviation_of_each_scale() -> None:
    bands = CartoonX().decomposed(pixels(height=96, width=96))
    gaussian, uniform = (method.noise(bands, 40, torch.Generator()) for method in (CartoonX(), WaveletX()))
    for band, one, other in zip(bands, gaussian, uniform, strict=True):
        mean, std = float(band.mean()), float(band.std())
        near = 5 * std / (40 * band.numel()) ** 0.5
        assert one.shape == other.shape == (40, *band.shape[1:])
        assert float(one.mean()) == pytest.approx(mean, abs=near)
        assert float(one.std()) == pytest.approx(std, rel=0.1)
        assert float(other.mean()) == pytest.approx(mean, abs=near)
        assert float((other - mean).abs().max()) <= std * (1 + 1e-6)
        assert float(other.std()) == pytest.approx(std / 3**0.5, rel=0.1)
        assert not torch.equal(one[0], one[1])


def test_adam_by_hand() -> None:
    network, image, target = Tiny().eval().double(), pixels(height=16, width=20), torch.tensor([1])
    method, x = WaveletX(iterations=4, samples=3, batch_size=2, lr=0.2, scales=2, seed=7, **KNOWN), normalized(image)
    bands, gray = method.decomposed(image), method.decomposed(image.mean(1, keepdim=True))
    mask = [torch.ones_like(band[:, :1]) for band in bands]
    first, second = ([torch.zeros_like(part) for part in mask] for _ in range(2))
    generator = torch.Generator().manual_seed(7)
    for t in range(1, 5):
        for part in mask:
            part.requires_grad_()
        noise = method.noise(bands, 3, generator)
        loss = method.distortion(network, x, bands, noise, mask, target, torch.ones(1)).mean()
        gradients = torch.autograd.grad(loss + method.size(mask, gray, x), mask)
        for i, gradient in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            step = 0.2 * first[i] / (1 - 0.9**t) / ((second[i] / (1 - 0.999**t)).sqrt() + 1e-8)
            mask[i] = (mask[i].detach() - step).clamp(0, 1)
    learned = method.learned(network, x, bands, gray, target, lambda: None)
    for part, expected in zip(learned, mask, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)
    shown, maps = method.explanation(network, x, target)
    kept = composed([m * c for m, c in zip(mask, bands, strict=True)]).clamp(0, 1)[..., :16, :20]
    torch.testing.assert_close(shown, normalized(kept).float(), rtol=1e-4, atol=1e-4)
    kept = composed([m * c for m, c in zip(mask, gray, strict=True)]).clamp(0, 1)[..., :16, :20]
    torch.testing.assert_close(maps, kept[:, 0].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    [WaveletX(iterations=60, samples=4, spatial=2), CartoonX(iterations=60, lr=0.1, samples=4, sparsity=1)],
    ids=lambda method: type(method).__name__,
)
def test_finds_the_patch_that_decides(method: CartoonX) -> None:
    image = random(1, 3, 40, 56).float().clamp(-2.5, 2.5)
    network = Pattern(image[0, :, 24:36, 8:20])
    bands = method.decomposed((image + 2.5) / 5)
    gray = [band.mean(1, keepdim=True) for band in bands]
    mask = method.learned(network, image, bands, gray, torch.tensor([0]), lambda: None)
    finest = mask[-1][0, 0].mean(0)  # of every second pixel, after two for the filter's length
    inside = torch.zeros_like(finest)
    inside[14:20, 6:12] = 1
    assert finest[inside > 0].mean() > 0.4
    assert finest[inside > 0].mean() > 5 * finest[inside == 0].mean()
    shown, _ = method.explanation(network, image, torch.tensor([0]))
    before, after = (float(network(x)[0].softmax(0)[0]) for x in (image, shown))
    assert after > 0.7 * before


def test_black_is_that_of_the_normalization_or_the_image_s_own() -> None:
    x = normalized(pixels(2))
    black, span = CartoonX(**KNOWN).levels(x[:1])
    torch.testing.assert_close(
        normalized(torch.tensor([0.0, 0.3, 1.0]).double().view(3, 1, 1, 1).expand(3, 3, 1, 1)),
        black + span * torch.tensor([0.0, 0.3, 1.0]).double().view(3, 1, 1, 1),
    )
    black, span = CartoonX().levels(x[:1])
    assert (black.item(), (black + span).item()) == pytest.approx((x[0].min().item(), x[0].max().item()))
    flat = torch.full((1, 3, 20, 20), 0.7)
    shown, maps = WaveletX(iterations=3, samples=2).explanation(Tiny().eval(), flat, torch.tensor([0]))
    assert shown.isfinite().all()
    assert maps.isfinite().all()


def test_a_comparison_gives_the_normalization() -> None:
    classifier = load_classifier(Tiny(), size=(16, 16), mean=MEAN, std=STD)
    for given, expected in ((CartoonX(), MEAN), (CartoonX(mean=(0.0,) * 3, std=(1.0,) * 3), (0.0,) * 3)):
        module: Any = given.module(classifier, "cartoons", {})
        assert module.method.__self__.mean == expected


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ptwt", None)
    with pytest.raises(InputError, match=r"Expected ptwt for wavelets, but it is missing\. Run pip install .*baseline"):
        CartoonX()(Tiny().eval(), torch.rand(1, 3, 16, 16), torch.tensor([0]))


def test_half_a_normalization() -> None:
    with pytest.raises(InputError, match="Expected mean and std, or neither, but got"):
        CartoonX(mean=MEAN)
