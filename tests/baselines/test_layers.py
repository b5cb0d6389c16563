"""Layers of class activation maps: the last call of a module, and layers without maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fgvis_lightning.baselines import GradCAM, GradCAMPlusPlus, GuidedGradCAM, LayerCAM, Method, ScoreCAM
from fgvis_lightning.errors import InputError

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([1, 2])
CAMS = [GradCAM, GuidedGradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM]


class Shared(nn.Module):
    """One activation that runs twice, with a marker at its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 5, 3, 2, 1)
        self.relu, self.marker, self.unused = nn.ReLU(), nn.Identity(), nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.two(self.relu(self.one(x))))
        out: Tensor = self.head(self.marker(h).mean((2, 3)))
        return out


@pytest.fixture
def network() -> Shared:
    torch.manual_seed(0)
    return Shared().eval()


@pytest.mark.parametrize("method", CAMS)
def test_a_module_that_runs_twice_gives_its_last_maps(method: type[Method], network: Shared) -> None:
    twice, marked = (method(layer=layer)(network, X, TARGETS) for layer in ("relu", "marker"))  # type: ignore[call-arg]
    assert torch.equal(twice, marked)
    assert marked.std() > 0


@pytest.mark.parametrize("method", CAMS)
@pytest.mark.parametrize(
    ("layer", "says"),
    [("head", r"'head' returns \(1, 4\)"), ("unused", "'unused' does not run"), ("rel", "Nearest: relu")],
)
def test_layers_without_maps(method: type[Method], layer: str, says: str, network: Shared) -> None:
    with pytest.raises(InputError, match=says):
        method(layer=layer)(network, X, TARGETS)  # type: ignore[call-arg]


@pytest.mark.parametrize("method", [GradCAMPlusPlus, LayerCAM, ScoreCAM])
def test_bfloat16_and_the_callers_gradients(method: type[Method], network: Shared) -> None:
    network.head.weight.grad = torch.ones_like(network.head.weight)
    exact = method()(network, X, TARGETS)
    assert torch.equal(network.head.weight.grad, torch.ones_like(network.head.weight))
    rough = method()(network.bfloat16(), X.bfloat16(), TARGETS)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.1
