"""What holds for all methods alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_networks import Tiny

from fgvis_lightning import InputError, explain
from fgvis_lightning.baselines import (
    LRP,
    RISE,
    CartoonX,
    DeepLIFT,
    Edges,
    ExcitationBackprop,
    ExtremalPerturbation,
    FGVisMethod,
    GradCAM,
    GradCAMPlusPlus,
    Gradient,
    GradientSHAP,
    GradientXInput,
    GuidedBackprop,
    GuidedGradCAM,
    IGOSPlusPlus,
    IntegratedGradients,
    LayerCAM,
    MaskedGradient,
    MaskMethod,
    MeaningfulPerturbation,
    Method,
    Occlusion,
    OtherClass,
    Random,
    ScoreCAM,
    SmoothGrad,
    WaveletX,
)
from fgvis_lightning.baselines.maps import MapModule
from fgvis_lightning.networks.classifier import Classifier, freeze
from fgvis_lightning.networks.preprocessing import Preprocessing

METHODS = [
    Gradient(),
    GradientXInput(),
    IntegratedGradients(iterations=5),
    SmoothGrad(samples=4),
    SmoothGrad(samples=4, squared=True),
    GradientSHAP(samples=4),
    DeepLIFT(),
    LRP(),
    GuidedBackprop(),
    ExcitationBackprop(),
    GradCAM(),
    GuidedGradCAM(),
    GradCAMPlusPlus(),
    LayerCAM(),
    ScoreCAM(),
    Occlusion(),
    MeaningfulPerturbation(iterations=5),
    ExtremalPerturbation(iterations=5, weight=1, lr=1),
    CartoonX(iterations=5, samples=2),
    WaveletX(iterations=5, samples=2),
    IGOSPlusPlus(iterations=2, path=3, area=0),
    RISE(masks=20),
    MaskedGradient(masks=10),
    FGVisMethod(iterations=5),
    FGVisMethod(iterations=5, game="preservation", noise=0.1),
    Edges(),
    Random(),
    OtherClass(Gradient()),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_one_signature(method: Method) -> None:
    """(B,3,H,W) and (B,) → (B,H,W) in float32, each image for itself; the network stays as it was."""
    network = Tiny().eval().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    x, targets = torch.randn(3, 3, 24, 32), torch.tensor([4, 0, 2])
    maps = method(network, x, targets)
    assert maps.shape == (3, 24, 32)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert all(float(one.std()) > 0 for one in maps)
    alone = method(network, x[1:2], targets[1:2])
    torch.testing.assert_close(maps[1:2], alone, rtol=1e-3, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network._forward_hooks
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    state = torch.random.get_rng_state()
    assert torch.equal(method(network, x, targets), maps), "each call gives the same"
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is the user's"


class Opaque(nn.Module):
    """A network whose inside cannot be seen."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inside = [network]

    def forward(self, x: Tensor) -> Tensor:
        return self.inside[0](x)


@pytest.mark.parametrize("method", [method for method in METHODS if method.black_box], ids=lambda method: str(method))
def test_black_boxes_get_a_faster_network(method: Method) -> None:
    """They look at nothing inside of it, so that they can be given another network of the same function."""
    network = freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(1056, 5)))
    x, targets = torch.randn(2, 3, 14, 24), torch.tensor([4, 0])
    assert torch.equal(method(network, x, targets), method(Opaque(network), x, targets))
    classifier = Classifier(network, Preprocessing(size=(14, 24), resize=24), (), "")
    module = method.module(classifier, "one", {})
    assert isinstance(module, MapModule)
    assert not any(isinstance(one, nn.BatchNorm2d) for one in module.network.modules())
    torch.testing.assert_close(module.network(x), network(x))
    assert any(isinstance(one, nn.BatchNorm2d) for one in network.modules()), "the user's stays as it is"


class Gray(nn.Module):
    """A network of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Tiny()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    "method", [method for method in METHODS if isinstance(method, MaskMethod)], ids=lambda method: type(method).__name__
)
def test_what_is_left_of_images(method: MaskMethod) -> None:
    """Also of gray images, and of images without anything to see."""
    for channels, network in ((3, Tiny().eval()), (1, Gray().eval())):
        x, targets = torch.randn(3, channels, 20, 24), torch.tensor([1, 0, 3])
        x[1:] = torch.tensor([0.0, -2.0])[:, None, None, None]
        left, maps = method.explanation(network, x, targets)
        assert left.shape == x.shape
        assert left.dtype == maps.dtype == torch.float32
        assert not left.requires_grad
        assert left.isfinite().all()
        assert maps.isfinite().all()
        assert maps.shape == (3, 20, 24)
        alone = method.explanation(network, x[:1], targets[:1])
        torch.testing.assert_close(left[:1], alone[0], rtol=1e-3, atol=1e-3)
        assert torch.equal(maps[:1], maps[:1].clamp(0, 1)), "a mask, or a gray value"


def test_fgvis_is_what_explain_finds() -> None:
    network = Tiny().eval()
    images, targets = torch.rand(2, 3, 12, 16), torch.tensor([1, 3])
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    x = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    explanation = explain(network, images, targets, iterations=20, normalize=(mean, std), accelerator="cpu")
    torch.testing.assert_close(FGVisMethod(iterations=20)(network, x, targets), explanation.saliency())


@pytest.mark.parametrize("method", [Gradient(), OtherClass(Gradient()), RISE(masks=4), WaveletX(iterations=2)])
def test_callers_without_gradients_get_the_same_maps(method: Method) -> None:
    network, x, targets = Tiny().eval(), torch.randn(2, 3, 16, 16), torch.tensor([1, 0])
    expected = method(network, x, targets)
    with torch.no_grad():
        assert torch.equal(method(network, x, targets), expected)
    with torch.inference_mode():
        assert torch.equal(method(network, x * 1, targets * 1), expected)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_what_no_method_takes(method: Method) -> None:
    network, x, targets = Tiny().eval(), torch.randn(2, 3, 16, 16), torch.tensor([1, 0])
    wrong: list[tuple[nn.Module, Any, Any, str]] = [
        (Tiny().train(), x, targets, r"Expected Tiny in eval mode, but features.1 \(BatchNorm2d\)"),
        (network, x[0], targets[0], r"Expected targets to be class indices \(B,\), but got \(\)"),
        (network, x, [1, 0], r"Expected targets to be class indices \(B,\), but got \[1, 0\]"),
        (network, x, targets.float(), r"Expected targets to be .* of torch.float32"),
        (network, x, targets - 1, r"Expected 2 targets, class indices from 0, but got \[0, -1\]"),
        (network, x, targets[:1], r"Expected 2 targets, class indices from 0, but got \[1\]"),
        (network, (x > 0).byte(), targets, r"Expected images to be normalized images \(B,3,H,W\), but got"),
        (network, x[:0], targets[:0], r"Expected images to be normalized images \(B,3,H,W\), but got"),
    ]
    for model, given, classes, message in wrong:
        with pytest.raises(InputError, match=message):
            method(model, given, classes)
