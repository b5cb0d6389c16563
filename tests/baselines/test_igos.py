from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_meaningful_perturbation import Patch
from test_occlusion import random
from torch import Tensor
from toy_networks import Tiny

from fgvis_lightning.baselines.igos import IGOSPlusPlus, upsampled
from fgvis_lightning.baselines.progress import reporting
from fgvis_lightning.method.games import probability


def problem() -> tuple[Any, Tensor, Tensor, Tensor]:
    images = random(1, 3, 20, 24)
    return Tiny().eval().double(), images, IGOSPlusPlus().reference(images), torch.tensor([2])


def test_score_terms_by_hand() -> None:
    network, image, reference, target = problem()
    method = IGOSPlusPlus(path=3, cells=5, noise=0, batch_size=5)
    mask = random(1, 2, 5, 6, seed=3).sigmoid()
    mask_x, mask_y = upsampled(mask, image)[0]
    expected = 0.0
    for m, inserts in ((mask_x, False), (mask_y, True), (mask_x * mask_y, False), (mask_x * mask_y, True)):
        for step in (1, 2, 3):
            share = m * step / 3
            e = reference * share + image * (1 - share) if inserts else image * share + reference * (1 - share)
            score = probability(network(e), target).item()
            expected += (-score if inserts else score) / 2 / 3
    assert [len(rows) for rows in method.rows()] == [5, 5, 2]
    with torch.no_grad():
        parts = [
            method.scores(network, image, reference, target, mask, rows, torch.Generator()) for rows in method.rows()
        ]
    assert float(sum(parts)) == pytest.approx(expected)


def test_noise_on_all_images_of_a_path() -> None:
    seen: list[Tensor] = []

    class Watch(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x)

    image, mask = torch.zeros(1, 3, 40, 40), torch.ones(1, 2, 28, 28)
    for size in (16, 5):
        method, generator = IGOSPlusPlus(path=4, batch_size=size), torch.Generator()
        for rows in method.rows():
            method.scores(Watch().eval(), image, image, torch.tensor([0]), mask, rows, generator)
    drawn, again = torch.cat(seen[:1]), torch.cat(seen[1:])
    assert torch.equal(drawn, again), "batches do not matter"
    assert len(drawn) == 16
    assert float(drawn.std()) == pytest.approx(0.2, rel=0.05)
    assert len(drawn.flatten(1).unique(dim=0)) == 16


def test_penalties_by_loops() -> None:
    image, method = 0.1 * random(1, 3, 20, 24), IGOSPlusPlus(area=2, variation=3)
    mask = random(1, 2, 5, 6, seed=3).sigmoid()
    coarse, large = (part[0, 0] * part[0, 1] for part in (mask, upsampled(mask, image)))
    expected = 2 * sum(1 - value for value in coarse.flatten().tolist()) / 30
    for dy, dx in ((1, 0), (0, 1)):
        plain = [float(coarse[y + dy, x + dx] - coarse[y, x]) ** 2 for y in range(5 - dy) for x in range(6 - dx)]
        edges = []
        for y in range(20 - dy):
            for x in range(24 - dx):
                step = float((image[0, :, y + dy, x + dx] - image[0, :, y, x]).mean())
                edges.append(math.exp(-(step**2) / 0.01) * float(large[y + dy, x + dx] - large[y, x]) ** 2)
        expected += 3 * 0.5 * (sum(plain) / len(plain) + sum(edges) / len(edges))
    assert float(method.size(mask, image)) == pytest.approx(expected)


def test_each_iteration_lowers_the_objective_along_the_gradient() -> None:
    network, image, reference, target = problem()
    method = IGOSPlusPlus(path=3, cells=5, noise=0, area=0.05, variation=0.5)

    def objective(mask: Tensor) -> Tensor:
        scores = [
            method.scores(network, image, reference, target, mask, rows, torch.Generator()) for rows in method.rows()
        ]
        return sum(scores) + method.size(mask, image)

    mask = method.start(image)
    assert mask.shape == (1, 2, 5, 6)
    for _ in range(4):
        variable = mask.clone().requires_grad_()
        before = objective(variable)
        (gradient,) = torch.autograd.grad(before, variable)
        steps = [1000 * 0.2**k for k in range(12)]
        tried = [(mask - step * gradient).clamp(0, 1) for step in steps]
        with torch.no_grad():
            good = [
                float(objective(one)) <= float(before) - 1e-4 * step * float(gradient.square().sum())
                for step, one in zip(steps, tried, strict=True)
            ]
        expected = tried[good.index(True)] if True in good else tried[-1]
        mask = method.improved(network, mask, image, reference, target, torch.Generator())
        torch.testing.assert_close(mask, expected)
        assert True in good


def test_a_search_without_success_ends() -> None:
    class Worse(Tiny):
        """Whatever is tried later, the score is one that the objective does not want."""

        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            sign = torch.tensor([1.0, -1.0]).repeat_interleave(2).repeat(2)  # of the paths that delete, and insert
            return super().forward(x) + (self.calls > 1) * 9 * sign[:, None] * torch.eye(5)[2]

    network, image = Worse().eval(), random(1, 3, 20, 24).float()
    method = IGOSPlusPlus(path=2, cells=5, step=1e-3)
    found = method.improved(
        network, method.start(image), image, method.reference(image), torch.tensor([2]), torch.Generator()
    )
    assert found.isfinite().all()
    assert network.calls == 1 + 3  # 1e-3, 2e-4 and 4e-5; the next one is taken as it is


@pytest.mark.parametrize(("y", "x"), [(8, 44), (36, 12)])
def test_finds_the_patch_that_decides(y: int, x: int) -> None:
    images, targets = random(1, 3, 56, 72).float(), torch.tensor([0])
    network, method = Patch(y, x), IGOSPlusPlus(path=5)
    shown, maps = method.explanation(network, images, targets)
    assert maps.min() >= 0
    assert maps.max() <= 1
    inside = torch.zeros(56, 72, dtype=torch.bool)
    inside[y : y + 12, x : x + 12] = True
    assert maps[0][inside].mean() > 0.3
    assert maps[0][inside].mean() > 5 * maps[0][~inside].mean()
    reference = method.reference(images)
    torch.testing.assert_close(shown, maps[:, None] * images + (1 - maps[:, None]) * reference)


def test_every_iteration_is_told() -> None:
    told = []
    with reporting(lambda done, total: told.append((done, total))):
        IGOSPlusPlus(iterations=3, path=2)(Tiny().eval(), random(2, 3, 20, 24).float(), torch.tensor([0, 1]))
    assert told == [(i + 1, 6) for i in range(6)]
