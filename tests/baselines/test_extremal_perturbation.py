from __future__ import annotations

import math

import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from test_meaningful_perturbation import Patch
from test_occlusion import random
from torch import Tensor, nn
from toy_networks import Tiny

from fgvis_lightning.baselines.extremal_perturbation import ExtremalPerturbation, perturbed
from fgvis_lightning.errors import InputError


def slow_mask(mask: Tensor, cell: int, sigma: float, y: int, x: int) -> float:
    """M at a pixel of the image, which may be beyond its border, of a coarse mask (h,w)."""
    reach = 1 + math.ceil(sigma / cell)
    above = below = 0.0
    for j in range(y // cell - reach, y // cell + reach + 1):
        for i in range(x // cell - reach, x // cell + reach + 1):
            inside = 0 <= j < mask.shape[0] and 0 <= i < mask.shape[1]
            z = math.hypot(y + 0.5 - (j + 0.5) * cell, x + 0.5 - (i + 0.5) * cell) / sigma
            term = math.exp(-2 * max(0, z - 0.5) ** 2) * float(mask[j, i]) if inside else 0.0
            above += term * math.exp(20 * term)
            below += math.exp(20 * term)
    return above / below


@pytest.mark.parametrize(("height", "width", "cell", "sigma"), [(40, 52, 1, 3.75), (96, 97, 3, 9.0)])
def test_smooth_mask_by_loops(height: int, width: int, cell: int, sigma: float) -> None:
    method, images = ExtremalPerturbation(), torch.zeros(1, 3, height, width)
    mask = random(2, 1, math.ceil(height / cell), math.ceil(width / cell)).sigmoid()
    mask[1] = (mask[1] > 0.7).double()
    smooth = method.smoothed(mask, images)
    margin = math.ceil(sigma / cell) * cell
    assert smooth.shape[-2:] == (mask.shape[2] * cell + 2 * margin, mask.shape[3] * cell + 2 * margin)
    for y, x in ((0, 0), (-margin, -2), (height // 2, width - 1), (height - 1, width // 3), (17, 23), (18, 24)):
        for row in range(2):
            expected = slow_mask(mask[row, 0], cell, sigma, y, x)
            assert float(smooth[row, 0, y + margin, x + margin]) == pytest.approx(expected)
    inside = method.within(smooth, images)
    assert torch.equal(inside, smooth[..., margin : margin + height, margin : margin + width])
    one = torch.zeros(1, 1, *mask.shape[2:], dtype=torch.float64)
    one[..., 10, 10] = 1
    peak = method.within(method.smoothed(one, images), images)[0, 0]
    assert peak.max() > 0.99
    assert peak[10 * cell + cell // 2, 10 * cell + cell // 2] > 0.99


def test_interpolates_between_ever_weaker_blurs() -> None:
    images = random(1, 3, 56, 60)
    pyramid = ExtremalPerturbation(levels=5).pyramid(images)
    assert torch.equal(pyramid[-1], images)
    for level, sigma in enumerate((5.0, 3.75, 2.5, 1.25)):  # 20 pixels of 224 are 5 of 56
        size = 2 * math.ceil(3 * sigma) + 1
        torch.testing.assert_close(pyramid[level], tvf.gaussian_blur(images, [size, size], [sigma, sigma]))
    mask = torch.tensor([0.0, 1.0, 0.5, 0.3]).double().repeat(15).expand(1, 1, 56, 60)
    found = perturbed(pyramid, mask)
    expected = [pyramid[0], pyramid[4], pyramid[2], 0.8 * pyramid[1] + 0.2 * pyramid[2]]
    for column, image in enumerate(expected):
        torch.testing.assert_close(found[..., column::4], image[..., column::4])


@pytest.mark.parametrize("mirrored", [False, True])
def test_objective_by_hand(mirrored: bool) -> None:
    network, images, targets = Tiny().eval().double(), random(2, 3, 32, 40), torch.tensor([1, 2])
    method = ExtremalPerturbation(areas=[0.2])
    pyramid, mask = method.pyramid(images), random(2, 1, 32, 40, seed=2).sigmoid()
    smooth = method.smoothed(mask, images)
    count = smooth[0].numel()
    wanted = torch.zeros(2, count, dtype=torch.float64)
    wanted[:, -256:] = 1  # 0.2 of 32 · 40
    found = method.objective(network, pyramid, wanted, mask, targets, 7.0, mirrored)
    for row in range(2):
        values = sorted(smooth[row].flatten().tolist())
        misfit = sum((value - (index >= count - 256)) ** 2 for index, value in enumerate(values)) / count
        e = perturbed(pyramid[:, row : row + 1], method.within(smooth[row : row + 1], images))
        logit = network(e.flip(-1) if mirrored else e)[0, targets[row]]
        assert found[row].item() == pytest.approx(7 * misfit - logit.item())


def test_descent_by_hand() -> None:
    network, images, targets = Tiny().eval().double(), random(1, 3, 24, 24), torch.tensor([2])
    method = ExtremalPerturbation(areas=[0.25], iterations=4, weight=5, growth=1.5, lr=3)
    pyramid = method.pyramid(images)
    mask = torch.ones(1, 1, 24, 24, dtype=torch.float64)
    every = method.smoothed(mask, images).numel()
    wanted = (torch.arange(every) >= every - round(0.25 * every))[None]
    step = torch.zeros_like(mask)
    for t in range(4):
        mask.requires_grad_()
        loss = method.objective(network, pyramid, wanted.double(), mask, targets, 5 * 1.5**t, t % 2 == 1)
        (gradient,) = torch.autograd.grad(loss.sum(), mask)
        step = gradient if t == 0 else 0.9 * step + 0.1 * gradient
        mask = (mask.detach() - 3 * step).clamp(0, 1)
    assert 0.05 < mask.mean() < 0.95
    torch.testing.assert_close(method.learned(network, pyramid, targets), mask)


@pytest.mark.parametrize(("y", "x"), [(8, 44), (38, 10), (2, 2), (24, 28)])
def test_finds_the_patch_that_decides_and_has_the_area(y: int, x: int) -> None:
    images, targets = random(1, 3, 56, 72).float(), torch.tensor([0])
    network = Patch(y, x)
    method = ExtremalPerturbation(iterations=150, growth=1.019, areas=[0.1], mirror=False)
    shown, maps = method.explanation(network, images, targets)
    assert maps.min() >= 0
    assert maps.max() <= 1
    inside = torch.zeros(56, 72, dtype=torch.bool)
    inside[y : y + 12, x : x + 12] = True  # 0.036 of the image
    assert maps[0][inside].mean() > 0.8
    assert maps[0][~inside].mean() < 0.2
    smooth = method.smoothed(method.learned(network, method.pyramid(images), targets), images)
    assert float((smooth > 0.5).float().mean()) == pytest.approx(0.1, rel=0.2)
    torch.testing.assert_close(shown, perturbed(method.pyramid(images), maps[:, None]))
    before, after = (network(e)[0].softmax(0)[0] for e in (images, shown))
    assert after > 0.8 * before


def test_several_areas_are_masks_of_their_own() -> None:
    network, images, targets = Tiny().eval(), random(2, 3, 24, 30).float(), torch.tensor([1, 3])
    options = {"iterations": 5, "weight": 10.0, "lr": 1.0}
    areas = [0.05, 0.3]
    both = ExtremalPerturbation(areas=areas, **options)(network, images, targets)  # type: ignore[arg-type]
    each = [ExtremalPerturbation(areas=[a], **options)(network, images, targets) for a in areas]  # type: ignore[arg-type]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2, rtol=1e-4, atol=1e-5)
    assert (each[0].mean((1, 2)) < each[1].mean((1, 2))).all()


def test_sees_the_mirror_image_in_every_second_iteration() -> None:
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return x.mean((2, 3))

    images = random(1, 3, 24, 24).float()
    for mirror, flips in ((True, [False, True, False, True]), (False, [False] * 4)):
        seen.clear()
        ExtremalPerturbation(iterations=4, lr=0, mirror=mirror)(Watch(), images, torch.tensor([0]))
        assert [torch.equal(x, seen[0].flip(-1)) for x in seen] == flips


@pytest.mark.parametrize("areas", [[], [0.0], [1.0], [0.1, math.nan]])
def test_areas_that_cannot_be(areas: list[float]) -> None:
    with pytest.raises(InputError, match="Expected areas between 0 and 1, as shares of the mask, but got"):
        ExtremalPerturbation(areas=areas)
