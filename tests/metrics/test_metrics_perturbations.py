from __future__ import annotations

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from test_metrics_curves import Counting, batch, small
from torch import Tensor, nn

from fgvis_lightning.baselines import Gradient
from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics import infidelity, max_sensitivity, sensitivity_n


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 5)).eval().requires_grad_(False)


def slope(network: nn.Module, targets: Tensor) -> Tensor:
    """The gradient of each target's logit (B,3,12,12)."""
    weight = network.get_parameter("1.weight")
    return weight[targets].view(-1, 3, 12, 12)


def test_sums_of_a_linear_network_foretell_all() -> None:
    network = linear()
    x, _, targets = batch(2, 12, 12)
    saliency = (slope(network, targets) * x).sum(1)
    ones = torch.ones(2, 3)
    torch.testing.assert_close(sensitivity_n(network, x, saliency, targets), ones, rtol=0, atol=1e-4)
    torch.testing.assert_close(sensitivity_n(network, x, -3 * saliency, targets), -ones, rtol=0, atol=1e-4)
    for value in (1.0, 0.1):  # whose sums in float32 depend on their order
        assert sensitivity_n(network, x, torch.full((2, 12, 12), value), targets).isnan().all()


def test_sensitivity_n_subset_by_subset() -> None:
    network = small(12, 12)
    x, saliency, targets = batch(2, 12, 12)
    found = sensitivity_n(network, x, saliency, targets, (0.05, 0.6), subsets=9, seed=2)
    network.double()
    generator = torch.Generator().manual_seed(2)
    for column, count in enumerate((7, 86)):
        subsets = [torch.randperm(144, generator=generator)[:count].tolist() for _ in range(9)]
        for index in range(2):
            target = int(targets[index])
            whole = float(network(x[index : index + 1].double())[0, target])
            sums, drops = [], []
            for subset in subsets:
                picture = x[index].double().clone()
                for pixel in subset:
                    picture[:, pixel // 12, pixel % 12] = 0
                sums.append(sum(float(saliency[index, pixel // 12, pixel % 12]) for pixel in subset))
                drops.append(whole - float(network(picture[None])[0, target]))
            expected = float(stats.pearsonr(sums, drops).statistic)
            assert float(found[index, column]) == pytest.approx(expected, abs=1e-3)


def test_gradients_of_a_linear_network_are_faithful() -> None:
    network = linear()
    x, saliency, targets = batch(2, 12, 12)
    gradient = slope(network, targets)
    for scaled in (True, False):
        torch.testing.assert_close(
            infidelity(network, x, gradient, targets, scaled=scaled), torch.zeros(2), rtol=0, atol=1e-5
        )
    torch.testing.assert_close(infidelity(network, x, -7 * gradient, targets), torch.zeros(2), rtol=0, atol=1e-5)
    assert (infidelity(network, x, saliency, targets) > 1e-3).all()


@pytest.mark.parametrize("scaled", [True, False])
def test_infidelity_noise_by_noise(scaled: bool) -> None:
    network = small(12, 12)
    x, saliency, targets = batch(2, 12, 12)
    found = infidelity(network, x, saliency, targets, deviation=0.4, samples=7, scaled=scaled, seed=3)
    network.double()
    for index in range(2):
        target, generator = int(targets[index]), torch.Generator().manual_seed(3)
        said, done = [], []
        whole = float(network(x[index : index + 1].double())[0, target])
        for _ in range(7):
            change = 0.4 * torch.randn(3, 12, 12, generator=generator).double()
            said.append(float((change * saliency[index]).sum()))
            done.append(whole - float(network((x[index].double() - change)[None])[0, target]))
        factor = sum(a * b for a, b in zip(said, done, strict=True)) / sum(a * a for a in said) if scaled else 1.0
        expected = sum((factor * a - b) ** 2 for a, b in zip(said, done, strict=True)) / 7
        assert float(found[index]) == pytest.approx(expected, rel=1e-3)


def test_maps_that_move() -> None:
    x, _, targets = batch(2, 12, 12)
    assert max_sensitivity(lambda x, _: torch.ones(len(x), 12, 12), x, targets).tolist() == [0, 0]
    found = max_sensitivity(lambda x, t: t[:, None, None] + x[:, 0] ** 2, x, targets, 0.3, samples=5, seed=1)
    for index in range(2):
        generator = torch.Generator().manual_seed(1)
        there = targets[index] + x[index, 0] ** 2
        moves = []
        for _ in range(5):
            change = 0.3 * (2 * torch.rand(3, 12, 12, generator=generator) - 1)
            moved = targets[index] + (x[index, 0] + change[0]) ** 2
            moves.append(float((moved - there).square().sum().sqrt() / there.square().sum().sqrt()))
        assert float(found[index]) == pytest.approx(max(moves), rel=1e-4)


def test_a_method_of_the_package() -> None:
    network = small(12, 12)
    x, _, targets = batch(2, 12, 12)

    def method(images: Tensor, classes: Tensor) -> Tensor:
        return Gradient()(network, images, classes)

    found = max_sensitivity(method, x, targets, radius=0.5)
    assert found.isfinite().all()
    assert (found > 0).all()
    assert not found.requires_grad


def test_batches() -> None:
    network = small(12, 12)
    x, saliency, targets = batch(3, 12, 12)
    state = torch.random.get_rng_state()
    calls = (
        lambda some, size: sensitivity_n(network, x[some], saliency[some], targets[some], subsets=9, batch_size=size),
        lambda some, size: infidelity(network, x[some], saliency[some], targets[some], samples=9, batch_size=size),
        lambda some, size: max_sensitivity(lambda x, _: x.exp(), x[some], targets[some], batch_size=size),
    )
    for call in calls:
        whole = call(slice(0, 3), 64)
        for size in (1, 4):
            torch.testing.assert_close(call(slice(0, 3), size), whole, rtol=1e-4, atol=1e-5)
        for index in range(3):
            torch.testing.assert_close(call(slice(index, index + 1), 64)[0], whole[index], rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.random.get_rng_state(), state)
    counting = Counting(network)
    sensitivity_n(counting, x, saliency, targets, (0.1, 0.2), subsets=7, batch_size=8)
    assert counting.sizes == [8, 6] * 3


def test_errors() -> None:
    network = small(12, 12)
    x, saliency, targets = batch(2, 12, 12)
    with pytest.raises(InputError, match="subsets of at least 2 and shares between 0 and 1, but got 1 and"):
        sensitivity_n(network, x, saliency, targets, subsets=1)
    with pytest.raises(InputError, match=r"saliency to be \(2,12,12\), but got \(2,12,11\)"):
        sensitivity_n(network, x, saliency[:, :, 1:], targets)
    with pytest.raises(InputError, match=r"\(B,H,W\) or \(2,3,12,12\), but got \(2,1,12,12\)"):
        infidelity(network, x, saliency[:, None], targets)
    with pytest.raises(InputError, match="deviation above 0, but got 50 and 0"):
        infidelity(network, x, saliency, targets, deviation=0)
    with pytest.raises(InputError, match=r"radius above 0, but got 0 and 0\.02"):
        max_sensitivity(lambda x, _: x, x, targets, samples=0)
    with pytest.raises(InputError, match="Expected targets from 0 to 4, but got 7 to 7"):
        infidelity(network, x, saliency, targets + 7)
    with pytest.raises(InputError, match="batch_size to be at least 1, but got 0"):
        max_sensitivity(lambda x, _: x, x, targets, batch_size=0)
