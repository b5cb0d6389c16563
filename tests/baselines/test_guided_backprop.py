from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from references import conv, conv_backward
from torch import Tensor, nn
from toy_networks import Plain, Residual, Spelled

from fgvis_lightning import InputError
from fgvis_lightning.baselines import GuidedBackprop

TARGETS = torch.tensor([1, 3])


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_two_layers_by_hand() -> None:
    torch.manual_seed(0)
    network, x = Plain().double().eval(), images()
    z1 = conv(network.conv1, x)
    z2 = conv(network.conv2, z1.clamp(min=0))
    gradient = network.head.weight.detach()[TARGETS].reshape(2, 6, 8, 8)
    gradient = conv_backward(network.conv2, gradient.clamp(min=0) * (z2 > 0))
    gradient = conv_backward(network.conv1, gradient.clamp(min=0) * (z1 > 0))
    expected = gradient.abs().amax(1).float()
    torch.testing.assert_close(GuidedBackprop()(network, x, TARGETS), expected)


def test_in_place_reused_residual_by_hand() -> None:
    torch.manual_seed(0)
    network, x = Residual().double().eval(), images()
    skip = conv(network.conv1, x).clamp(min=0)
    middle = conv(network.conv2, skip).clamp(min=0)
    last = (conv(network.conv3, middle) + skip).clamp(min=0)
    at_last = network.head.weight.detach()[TARGETS].reshape(2, 5, 8, 8).clamp(min=0) * (last > 0)
    at_middle = conv_backward(network.conv3, at_last).clamp(min=0) * (middle > 0)
    at_skip = (at_last + conv_backward(network.conv2, at_middle)).clamp(min=0) * (skip > 0)
    expected = conv_backward(network.conv1, at_skip).abs().amax(1).float()
    torch.testing.assert_close(GuidedBackprop()(network, x, TARGETS), expected)


@pytest.mark.parametrize(
    "spelling",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        F.relu,
        F.relu_,
        torch.relu,
        Tensor.relu,
        Tensor.relu_,
        lambda z: F.relu(z, True),
    ],
)
def test_every_spelling_is_guided(spelling: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    network, x = Spelled(spelling).double().eval(), images()
    z = F.conv2d(x, network.conv.weight.detach(), network.conv.bias.detach(), padding=1)  # type: ignore[union-attr]
    gradient = network.head.weight.detach()[TARGETS].reshape(2, 4, 8, 8).clamp(min=0) * (z > 0)
    expected = conv_backward(network.conv, gradient).abs().amax(1).float()
    torch.testing.assert_close(GuidedBackprop()(network, x, TARGETS), expected)


def test_without_relus_it_is_refused() -> None:
    with pytest.raises(InputError, match=r"Expected a network with ReLUs, .* Spelled has 1 of gelu"):
        GuidedBackprop()(Spelled(F.gelu).double().eval(), images(), TARGETS)


def test_other_activations_are_named() -> None:
    def both(z: Tensor) -> Tensor:
        return F.silu(F.relu(z))

    with pytest.warns(UserWarning, match="1 of silu pass the ordinary gradient"):
        GuidedBackprop()(Spelled(both).double().eval(), images(), TARGETS)
