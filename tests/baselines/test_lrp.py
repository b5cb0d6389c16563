"""LRP: equal to Zennit's composite where that has the layers, conserved where it has not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_deep_lift import TARGETS, Gated, X
from torch import Tensor, nn
from toy_networks import Residual

from fgvis_lightning.baselines import LRP


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(inplace=True), nn.AvgPool2d(2)]
    head = [nn.Conv2d(8, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)]
    return nn.Sequential(*features, *head).double().eval()


def test_equals_zennit() -> None:
    composites: Any = pytest.importorskip("zennit.composites")
    network = chain()
    with composites.EpsilonPlusFlat().context(network) as changed:
        leaf = X.clone().requires_grad_()
        logits = changed(leaf)
        start = torch.zeros_like(logits).scatter(1, TARGETS[:, None], logits.detach().gather(1, TARGETS[:, None]))
        (theirs,) = torch.autograd.grad(logits, leaf, start)
    found = LRP()(network, X, TARGETS)
    torch.testing.assert_close(found, theirs.sum(1).float(), rtol=1e-3, atol=1e-5)


def without_biases(network: nn.Module) -> nn.Module:
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    return network.double().eval()


@pytest.mark.parametrize("network", [chain(), Residual(), Gated()], ids=["chain", "residual", "gated"])
def test_nothing_is_lost_without_biases(network: nn.Module) -> None:
    found = LRP(epsilon=1e-12)(without_biases(network), X, TARGETS)
    logit = network(X).gather(1, TARGETS[:, None])[:, 0].detach().float()
    torch.testing.assert_close(found.flatten(1).sum(1), logit, rtol=1e-3, atol=1e-4)


def test_a_residual_sum_shares_in_proportion() -> None:
    """By hand: of the sum 1 + 3 of two paths, which look at different pixels, one quarter is the first one's."""

    class Paths(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, torch.eye(3)[:, :, None, None])  # the lowest layer, one pixel wide
            a, b = torch.relu(x[:, :1, 0, 0]), torch.relu(x[:, :1, 4, 4] * 3)
            return F.linear(a + b, torch.tensor([[2.0], [-1.0]]))

    found = LRP()(Paths(), torch.ones(1, 3, 8, 8), torch.tensor([0]))[0]
    assert found[0, 0] == pytest.approx(2, rel=1e-3)
    assert found[4, 4] == pytest.approx(6, rel=1e-3)
    assert found.sum() == pytest.approx(8, rel=1e-3)


def test_gates_get_nothing() -> None:
    """Whatever opens the gate, all relevance is at the pixels that the signal looks at."""

    class Opened(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, torch.eye(3)[:, :, None, None])
            signal, gate = torch.relu(x[:, :, :4].mean((2, 3))), torch.sigmoid(x[:, :, 4:].mean((2, 3)))
            return gate * signal

    found = LRP()(Opened(), torch.rand(2, 3, 8, 8) + 0.5, torch.tensor([0, 1]))
    assert found[:, 4:].abs().max() == 0
    assert (found[:, :4] > 0).all()


def test_batch_normalization_is_folded() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
    norm.running_mean = torch.randn(6)
    norm.running_var = torch.rand(6) + 0.5
    first, head = nn.Conv2d(3, 6, 1), nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(384, 4))
    network = nn.Sequential(first, nn.ReLU(), conv, norm, *head).double().eval().requires_grad_(False)
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    same = nn.Conv2d(6, 6, 3, padding=1).double()
    values = {"weight": conv.weight * scale[:, None, None, None], "bias": norm.bias - norm.running_mean * scale}
    same.load_state_dict(values)
    by_hand = nn.Sequential(first, nn.ReLU(), same, *head).eval().requires_grad_(False)
    torch.testing.assert_close(LRP()(network, X, TARGETS), LRP()(by_hand, X, TARGETS), rtol=1e-3, atol=1e-5)
