from __future__ import annotations

import pytest
import torch
from test_occlusion import random
from torch import Tensor, nn
from toy_networks import Tiny

from fgvis_lightning.baselines.meaningful_perturbation import MeaningfulPerturbation, total_variation
from fgvis_lightning.method.games import blurred, probability


class Patch(nn.Module):
    """Class 0 is high if a patch has contrast; nothing else matters."""

    def __init__(self, y: int, x: int) -> None:
        super().__init__()
        self.y, self.x = y, x

    def forward(self, x: Tensor) -> Tensor:
        contrast = x[:, :, self.y : self.y + 12, self.x : self.x + 12].std((1, 2, 3))
        return torch.stack([8 * contrast - 4, torch.zeros_like(contrast)], 1)


@pytest.mark.parametrize("beta", [2.0, 3.0])
def test_total_variation_by_loops(beta: float) -> None:
    masks = random(2, 1, 5, 7).sigmoid()
    for mask, found in zip(masks[:, 0], total_variation(masks, beta), strict=True):
        total = 0.0
        for y in range(5):
            for x in range(7):
                down = float(mask[y + 1, x] - mask[y, x]) if y < 4 else 0.0
                right = float(mask[y, x + 1] - mask[y, x]) if x < 6 else 0.0
                total += (down**2 + right**2) ** (beta / 2)
        assert float(found) == pytest.approx(total)


def test_total_variation_has_a_gradient_where_the_mask_is_flat() -> None:
    mask = torch.ones(1, 1, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(total_variation(mask, 3).sum(), mask)
    assert torch.equal(gradient, torch.zeros_like(mask))


def test_objective_by_hand() -> None:
    network, images = Tiny().eval().double(), random(2, 3, 32, 40)
    method, targets = MeaningfulPerturbation(area=0.5, variation=2.0, beta=2), torch.tensor([1, 2])
    reference = blurred(images, images, torch.Generator())
    mask = torch.full((2, 1, 28, 35), 0.25, dtype=torch.float64)
    expected = probability(network(0.25 * images + 0.75 * reference), targets) + 0.5 * 0.75 * 28 * 35
    torch.testing.assert_close(method.objective(network, images, reference, mask, targets), expected)
    mask[:, :, :, :10] = 0  # a step of 0.25 in 28 rows
    kept = method.upsampled(mask, images)
    expected = probability(network(kept * images + (1 - kept) * reference), targets)
    expected = expected + 0.5 * (0.75 * 28 * 25 + 28 * 10) + 2.0 * 28 * 0.25**2
    torch.testing.assert_close(method.objective(network, images, reference, mask, targets), expected)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (40, 56), (56, 40), (9, 20)])
def test_upsampled(height: int, width: int) -> None:
    method, images = MeaningfulPerturbation(), torch.zeros(1, 3, height, width)
    coarse = method.circles(images)
    cells = min(28, height, width)
    assert coarse.shape[-2:] == (round(height / min(height, width) * cells), round(width / min(height, width) * cells))
    flat = method.upsampled(torch.full_like(coarse[:1], 0.3), images)
    torch.testing.assert_close(flat, torch.full((1, 1, height, width), 0.3))
    mask = torch.zeros_like(coarse[:1])
    mask[:, :, mask.shape[2] // 4, mask.shape[3] // 2] = 1
    large = method.upsampled(mask, images)[0, 0]
    assert 0 <= large.min() < 1e-6
    assert large.max() <= 1
    y, x = divmod(int(large.argmax()), width)
    assert abs((y + 0.5) / height - (mask.shape[2] // 4 + 0.5) / mask.shape[2]) <= 1.01 / mask.shape[2]
    assert abs((x + 0.5) / width - (mask.shape[3] // 2 + 0.5) / mask.shape[3]) <= 1.01 / mask.shape[3]


def test_width_of_the_upsampling() -> None:
    mask = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
    mask[..., 14, 14] = 1  # its center is at pixel 115.5
    large = MeaningfulPerturbation().upsampled(mask, torch.zeros(1, 3, 224, 224))[0, 0].sum(0)
    near = ((torch.arange(224)[:, None] + 0.5 - 8 * (torch.arange(28) + 0.5)) ** 2 / -50).exp().double()
    torch.testing.assert_close(large / large.sum(), (near[:, 14] / near.sum(1)) / (near[:, 14] / near.sum(1)).sum())


def test_circles_grow_from_nothing_to_everything() -> None:
    coarse = MeaningfulPerturbation().circles(torch.zeros(1, 3, 224, 224))[:, 0]
    assert coarse[0].all()
    assert not coarse[-1].any()
    assert (coarse.diff(dim=0) <= 0).all()
    removed = (1 - coarse).flatten(1).sum(1) * 64  # in pixels
    for radius in (40, 80, 110):
        assert float(removed[radius // 5]) == pytest.approx(torch.pi * radius**2, rel=0.1)
    assert torch.equal(coarse, coarse.flip(-1))
    assert torch.equal(coarse, coarse.flip(-2))


def test_starts_at_the_smallest_circle_that_suppresses_the_score() -> None:
    images, network = random(3, 3, 56, 56), Patch(22, 22)
    images[1] *= 0.05  # without contrast, and blurring it changes next to nothing
    method = MeaningfulPerturbation(iterations=0)
    start = method.learned(network, images, torch.tensor([0, 0, 1]))
    # Target 1 only gains from blurring, so there is nothing to suppress.
    assert start[2].all()
    reference, circles = blurred(images, images, torch.Generator()), method.circles(images)

    def score(mask: Tensor) -> float:
        kept = method.upsampled(mask[None], images)[0]
        return float(network((kept * images[0] + (1 - kept) * reference[0])[None]).softmax(1)[0, 0])

    chosen = next(i for i, circle in enumerate(circles) if torch.equal(circle, start[0]))
    assert 0 < chosen < len(circles) - 1
    bound = score(circles[-1]) + 0.01 * (score(circles[0]) - score(circles[-1]))
    assert score(circles[chosen]) <= bound < score(circles[chosen - 1])


def test_finds_the_patch_that_decides_and_lowers_its_objective() -> None:
    images, targets = random(2, 3, 56, 72).float(), torch.tensor([0, 0])
    network, method = Patch(8, 44), MeaningfulPerturbation(iterations=80)
    start = MeaningfulPerturbation(iterations=0).learned(network, images, targets)
    end = method.learned(network, images, targets)
    reference = blurred(images, images, torch.Generator())
    before, after = (method.objective(network, images, reference, mask, targets) for mask in (start, end))
    assert (after < before - 0.01).all()
    assert end.min() >= 0
    assert end.max() <= 1
    found = method(network, images, targets)
    torch.testing.assert_close(found, 1 - method.upsampled(end, images)[:, 0])
    inside = torch.zeros(56, 72, dtype=torch.bool)
    inside[8:20, 44:56] = True
    for one in found:
        assert one[inside].mean() > 0.5
        assert one[inside].mean() > 5 * one[~inside].mean()
        assert inside[divmod(int(one.argmax()), 72)]


def test_explanation_is_the_image_where_evidence_is_and_blurred_elsewhere() -> None:
    images, network = random(2, 3, 56, 72).float(), Patch(8, 44)
    shown, maps = MeaningfulPerturbation(iterations=10).explanation(network, images, torch.tensor([0, 0]))
    reference = blurred(images, images, torch.Generator())
    torch.testing.assert_close(shown, maps[:, None] * images + (1 - maps[:, None]) * reference)
    assert torch.equal(maps, MeaningfulPerturbation(iterations=10)(network, images, torch.tensor([0, 0])))


def test_shifts_are_of_the_image_under_the_mask() -> None:
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return x.mean((2, 3))

    images = torch.zeros(2, 3, 56, 56)
    images[:, :, 30, 20] = 1000
    method = MeaningfulPerturbation(iterations=40, jitter=16, lr=0)
    method(Watch(), images, torch.tensor([0, 0]))
    places = {divmod(int(x[0, 0].argmax()), 56) for x in seen[-40:]}
    assert {y for y, _ in places} == {x + 10 for _, x in places} == {29, 30, 31, 32}
    assert len(places) > 4, "along each axis on its own"
    assert all(torch.equal(x[0], x[1]) for x in seen), "the same for all images"


def test_adam_by_hand() -> None:
    network, images, targets = Tiny().eval().double(), random(1, 3, 32, 32), torch.tensor([2])
    reference = blurred(images, images, torch.Generator())
    mask = MeaningfulPerturbation(iterations=0).learned(network, images, targets)
    first, second = torch.zeros_like(mask), torch.zeros_like(mask)
    method = MeaningfulPerturbation(iterations=5, jitter=0)
    for t in range(1, 6):
        mask = mask.detach().requires_grad_()
        loss = method.objective(network, images, reference, mask, targets).sum()
        (gradient,) = torch.autograd.grad(loss, mask)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        step = 0.1 * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        mask = (mask - step).clamp(0, 1)
    torch.testing.assert_close(method.learned(network, images, targets), mask.detach(), rtol=1e-4, atol=1e-5)
