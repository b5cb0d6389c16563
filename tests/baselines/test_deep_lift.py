"""DeepLIFT: contributions sum to the logit's change, and are Captum's where Captum knows the network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from captum.attr import DeepLift
from torch import Tensor, nn
from toy_networks import Plain, Residual, Spelled

from fgvis_lightning.baselines import DeepLIFT

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.tensor([1, 0, 3])


class Gated(nn.Module):
    """Squeeze and excitation, a residual sum in place, max pooling with windows that overlap, an activation by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.squeeze, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu6(self.first(x)), 3, stride=2, padding=1)
        short = x
        x = F.silu(self.second(x))
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        x += short
        return self.head((x * torch.tanh(x)).flatten(1))


def change(network: nn.Module) -> Tensor:
    with torch.no_grad():
        logits = network(X) - network(torch.zeros_like(X))
    return logits.gather(1, TARGETS[:, None])[:, 0].float()


@pytest.mark.parametrize(
    "network", [Plain(), Residual(), Gated(), Plain(nn.PReLU()), Spelled(lambda x: x.clamp(-1, 1))]
)
def test_contributions_sum_to_the_change(network: nn.Module) -> None:
    found = DeepLIFT()(network.double().eval(), X, TARGETS)
    torch.testing.assert_close(found.flatten(1).sum(1), change(network), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Softplus, nn.ELU])
@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_equals_captum(activation: Callable[[], nn.Module]) -> None:
    """Without maximum pooling, over which Captum's contributions do not sum to the change."""
    layers = [nn.Conv2d(3, 5, 3), activation(), nn.AvgPool2d(2), nn.Conv2d(5, 6, 2), activation(), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(24, 4)).double().eval()
    x = X.clone().requires_grad_()
    theirs = DeepLift(network).attribute(x, torch.zeros_like(X), TARGETS).sum(1).detach().float()
    torch.testing.assert_close(DeepLIFT()(network, X, TARGETS), theirs, rtol=1e-4, atol=1e-6)


def test_saturation_is_seen() -> None:
    """Where the gradient is 0, since the activation has saturated, the change still has its cause (section 3.1)."""

    class Saturated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x[:, :, 2, 5].sum(1).clamp(max=1)
            return torch.stack([y, -y], 1)

    found = DeepLIFT()(Saturated(), torch.full((1, 3, 8, 8), 2.0), torch.tensor([0]))
    assert found[0, 2, 5] == pytest.approx(1)
    assert found.sum() == pytest.approx(1)


def test_a_value_that_did_not_change_has_the_derivative() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Tanh()).double()
    x = torch.full_like(X, 1e-9)
    found = DeepLIFT()(network, x, TARGETS)
    leaf = torch.zeros_like(X, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(leaf).gather(1, TARGETS[:, None]).sum(), leaf)
    torch.testing.assert_close(found * 1e9, (gradient * x).sum(1).float() * 1e9, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["relu", "sigmoid"])
def test_activations_called_by_keyword(name: str) -> None:
    function = getattr(torch, name)
    torch.manual_seed(0)
    network = Spelled(function).double().eval()
    plain = DeepLIFT()(network, X, TARGETS)
    network.activation = lambda x: function(input=x)
    assert torch.equal(DeepLIFT()(network, X, TARGETS), plain)
