from __future__ import annotations

import torch
from references import plain_gradient, residual_gradient
from toy_networks import Plain, Residual

from fgvis_lightning.baselines import Gradient


def test_is_the_largest_absolute_derivative_of_the_logit() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    targets = torch.tensor([2, 0, 2])
    plain, residual = Plain().double().eval(), Residual().double().eval()
    for index in range(3):
        one, target = x[index : index + 1], int(targets[index])
        # Without other reference activations than its own, every gate is open.
        expected = plain_gradient(plain, "relu", one, one, target).abs().amax(1)
        torch.testing.assert_close(Gradient()(plain, x, targets)[index : index + 1], expected.float())
        expected = residual_gradient(residual, one, one, target).abs().amax(1)
        torch.testing.assert_close(Gradient()(residual, x, targets)[index : index + 1], expected.float())


def test_leaves_network_and_images_alone_also_without_grad() -> None:
    network, x = Plain().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        maps = Gradient()(network, x, torch.tensor([0, 1]))
    assert not maps.requires_grad
    assert not x.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
