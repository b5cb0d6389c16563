from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fgvis_lightning import FGVis, explain
from fgvis_lightning.networks.classifier import freeze
from fgvis_lightning.networks.folding import folded


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Batch normalization that does something, as after training."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return freeze(network.eval())


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (torchvision.models.resnet18, 0),
        (torchvision.models.shufflenet_v2_x0_5, 0),
        (lambda: torchvision.models.googlenet(init_weights=False, aux_logits=False), 0),
        (torchvision.models.densenet121, 62),  # most come before a convolution, behind a concatenation
        (lambda: timm.create_model("tf_efficientnet_lite0"), 0),
        (lambda: timm.create_model("regnety_002"), 0),
        (lambda: timm.create_model("repvgg_a0"), 17),  # of which some normalize the block's own input
    ],
)
def test_folded_networks_say_the_same(make: Callable[[], nn.Module], left: int) -> None:
    network = lively(make()).double()
    before = norms(network)
    made, count = folded(network, (3, 96, 96))
    assert (norms(made), count) == (left, before - left)
    x = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    results: list[list[Tensor]] = []
    for each in (network, made):
        e = x.clone().requires_grad_()
        logits = each(e)
        results.append([logits.detach(), *torch.autograd.grad(logits[:, 3].sum(), e)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))
    assert norms(network) == before  # and itself as it was


class Net(nn.Module):
    """A convolution and a batch normalization with something between or beside them."""

    def __init__(self, middle: str, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, **options)
        self.norm = nn.BatchNorm2d(4, affine=middle != "plain")
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.other_norm = nn.BatchNorm2d(4)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        match self.middle:
            case "used twice":
                h = self.norm(h) + h
            case "looked at":
                h = self.norm(h) * (h.amax() > -1e9)
            case "changed":
                h = self.norm(h.mul_(2))
            case "called twice":
                h = self.norm(h) + self.norm(self.conv(x.flip(3)))
            case "function":
                h = F.batch_norm(h, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias)
            case "half a channel":
                h = self.norm(F.pad(h, (1, 1, 1, 1)))
            case _:
                assert h.dim() == 4  # which looks at no value
                h = self.norm(h)
        return self.other_norm(self.other(h.relu())).mean((2, 3))


@pytest.mark.parametrize(
    ("middle", "count"),
    [
        *(("as usual", 2), ("plain", 2), ("used twice", 1), ("looked at", 1), ("changed", 1), ("called twice", 1)),
        *(("half a channel", 1),),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_only_where_it_changes_nothing(middle: str, count: int, bias: bool, padding_mode: str) -> None:
    network = lively(Net(middle, bias=bias, padding_mode=padding_mode))
    made, found = folded(network, (3, 8, 8))
    assert found == count
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(made(x), network(x), atol=1e-5)


def test_a_function_leaves_its_module_alone() -> None:
    """The module that owns the statistics would be replaced, and nobody calls it."""
    network = lively(Net("function"))
    assert folded(network, (3, 8, 8)) == (network, 0)


def test_what_is_left_as_it_is() -> None:
    network = lively(Net("as usual"))
    assert folded(network, (3, 8, 8), keep=(nn.BatchNorm2d,)) == (network, 0)
    assert folded(nn.Flatten(), (3, 8, 8))[1] == 0  # nothing to fold
    stubborn = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)))
    assert folded(stubborn, (3, 9, 9)) == (stubborn, 0)  # cannot be run on such an image
    assert folded(stubborn, (3, 8, 8))[1] == 1
    heard: list[int] = []
    hooked = Net("as usual")
    hooked.norm.register_forward_hook(lambda *call: heard.append(1))
    assert folded(lively(hooked), (3, 8, 8))[1] == 1


def test_option() -> None:
    network = Net("as usual").eval()
    models = [FGVis.of(network, size=(8, 8), fold=fold) for fold in (True, False)]
    assert [norms(model.network) for model in models] == [0, 2]
    assert norms(network) == 2


@pytest.mark.slow
def test_explanations_of_a_folded_network_are_as_good() -> None:
    """A hundred steps with gates amplify the last bit, so they are not the same; size and score are."""
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = lively(torchvision.models.resnet18(), seed=1)
    options: dict[str, Any] = {"game": "preservation", "iterations": 40, "normalize": ((0.5,) * 3, (0.25,) * 3)}
    whole, parts = (explain(network, images, fold=fold, **options) for fold in (True, False))
    assert torch.equal(whole.targets, parts.targets)
    assert torch.allclose(whole.score_image, parts.score_image, rtol=1e-4)
    assert (whole.score_explanation >= whole.score_image * 0.999).all()
    assert (whole.sparsity - parts.sparsity).abs().mean() < 0.05
