"""Gradient methods against loops over their definitions; controls; and class activation maps against theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_occlusion import linear, random
from torch import Tensor, nn
from toy_networks import Tiny

from fgvis_lightning import InputError
from fgvis_lightning.baselines import (
    Edges,
    GradCAM,
    GradCAMPlusPlus,
    Gradient,
    GradientSHAP,
    GradientXInput,
    GuidedBackprop,
    GuidedGradCAM,
    IntegratedGradients,
    LayerCAM,
    OtherClass,
    Random,
    ScoreCAM,
    SmoothGrad,
)
from fgvis_lightning.networks.classifier import freeze

X, TARGETS = random(2, 3, 16, 20).float(), torch.tensor([3, 1])


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return Tiny().eval().requires_grad_(False)


def derivative(network: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    leaf = image[None].clone().requires_grad_()
    return torch.autograd.grad(network(leaf)[0, target], leaf)[0][0]


def test_integrated_gradients_are_the_integral() -> None:
    network = tiny()
    found = IntegratedGradients(iterations=200)(network, X, TARGETS)
    change = network(X) - network(torch.zeros_like(X))
    expected = change.gather(1, TARGETS[:, None])[:, 0]
    torch.testing.assert_close(found.flatten(1).sum(1), expected, rtol=0.02, atol=5e-3)
    steps = 200
    midpoints = [(k + 0.5) / steps for k in range(steps)]
    sums = sum(derivative(network, X[0] * alpha, TARGETS[0]) for alpha in midpoints) / steps
    torch.testing.assert_close(found[0], (sums * X[0]).sum(0), rtol=0.05, atol=0.01)
    batched = IntegratedGradients(iterations=30, batch_size=7)(network, X, TARGETS)
    torch.testing.assert_close(batched, IntegratedGradients(iterations=30)(network, X, TARGETS), rtol=1e-4, atol=1e-6)


def test_of_a_linear_network_all_signed_ones_are_weight_times_input() -> None:
    """Log-probabilities are not linear; a logit that is has the same contributions by every method."""

    class Logits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = (x * weight).flatten(1).sum(1)
            return torch.stack([y, -y], 1)

    weight, x = random(3, 8, 8).float(), random(2, 3, 8, 8, seed=1).float()
    expected = (x * weight).sum(1) * torch.tensor([1.0, -1.0])[:, None, None]
    targets = torch.tensor([0, 1])
    for method in (GradientXInput(), IntegratedGradients(iterations=3), GradientSHAP(samples=7, batch_size=3, noise=0)):
        torch.testing.assert_close(method(Logits(), x, targets), expected, rtol=1e-4, atol=1e-5)
    noisy = GradientSHAP(samples=2000, noise=0.1)(Logits(), x, targets)
    torch.testing.assert_close(noisy, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("squared", [False, True])
def test_smoothgrad_is_a_mean_over_noisy_images(squared: bool) -> None:
    network = tiny()
    found = SmoothGrad(samples=400, noise=0.1, squared=squared, batch_size=64)(network, X, TARGETS)
    generator = torch.Generator().manual_seed(1)
    for image, target, one in zip(X, TARGETS, found, strict=True):
        sigma = 0.1 * float(image.max() - image.min())
        total = torch.zeros_like(image)
        for _ in range(400):
            gradient = derivative(network, image + sigma * torch.randn(image.shape, generator=generator), target)
            total += gradient**2 if squared else gradient
        expected = (total / 400).abs().amax(0)
        assert torch.corrcoef(torch.stack([one.flatten(), expected.flatten()]))[0, 1] > 0.97
        assert float(one.mean() / expected.mean()) == pytest.approx(1, abs=0.1)
    still = SmoothGrad(samples=2, noise=0)(network, X, TARGETS)
    torch.testing.assert_close(still, Gradient()(network, X, TARGETS), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", [SmoothGrad(7), SmoothGrad(7, squared=True), GradientSHAP(7)])
def test_noise_does_not_depend_on_the_batch_size(method: SmoothGrad | GradientSHAP) -> None:
    """If the number of values is no multiple of 16, torch draws other numbers for two images at once."""
    network, x = tiny(), random(2, 3, 15, 17).float()
    parts = replace(method, batch_size=3)(network, x, TARGETS)
    torch.testing.assert_close(method(network, x, TARGETS), parts, rtol=1e-4, atol=1e-6)


def test_guided_grad_cam_is_the_product() -> None:
    network = tiny()
    both = GuidedBackprop()(network, X, TARGETS) * GradCAM()(network, X, TARGETS)
    assert torch.equal(GuidedGradCAM()(network, X, TARGETS), both)


def features(network: nn.Module, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of a layer (K,h,w), and the target's gradient at them, for one image."""
    kept: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = network(x.clone().requires_grad_())
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, TARGETS[0]], kept[0])
    return kept[0][0].detach(), gradient[0]


class Mine(ScoreCAM):
    """A user's own class."""


@pytest.mark.parametrize("method", [GradCAMPlusPlus(), LayerCAM(), Mine()], ids=lambda one: type(one).__name__)
def test_cams_are_those_of_their_papers(method: GradCAMPlusPlus, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pytorch_grad_cam")
    network, layer = freeze(tiny()), "features.3"  # as the commands do, after which it has no parameters
    found = type(method)(layer=layer)(network, X[:1], TARGETS[:1])[0]
    assert capsys.readouterr() == ("", ""), "no bar of the library's"
    maps, gradient = features(network, layer, X[:1])
    if isinstance(method, LayerCAM):
        cam = (gradient.clamp(min=0) * maps).sum(0)
    elif isinstance(method, ScoreCAM):
        scores = []
        for one in torch.nn.functional.interpolate(maps[None], X.shape[-2:], mode="bilinear")[0]:
            spread = one.max() - one.min()
            shown = X[:1] * ((one - one.min()) / spread if spread > 0 else torch.zeros_like(one))
            scores.append(network(shown)[0, TARGETS[0]])
        cam = (torch.stack(scores).softmax(0)[:, None, None] * maps).sum(0)
    else:
        alpha = gradient**2 / (2 * gradient**2 + (maps.sum((1, 2), keepdim=True) * gradient**3) + 1e-6)
        weights = (alpha * gradient.clamp(min=0)).sum((1, 2), keepdim=True)
        cam = (weights * maps).sum(0)
    expected = torch.nn.functional.interpolate(cam.clamp(min=0)[None, None], X.shape[-2:], mode="bilinear")[0, 0]
    assert 0 <= found.min() <= found.max() <= 1
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.95, "up to how they enlarge"


def test_controls() -> None:
    network = tiny()
    assert torch.equal(Random(3)(network, X, TARGETS)[0], Random(3)(network, X, TARGETS)[1])
    assert not torch.equal(Random(3)(network, X, TARGETS), Random(4)(network, X, TARGETS))
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 1
    edges = Edges()(network, step, TARGETS[:1])[0]
    assert (edges[:, 3:5] == 4).all(), "Sobel's 1 2 1 at a step of 1"
    assert edges[:, :3].abs().max() == edges[:, 5:].abs().max() == 0
    other = OtherClass(Gradient())(network, X, TARGETS)
    logits = network(X)
    for number, target in enumerate(TARGETS.tolist()):
        best = max((float(value), index) for index, value in enumerate(logits[number]) if index != target)[1]
        torch.testing.assert_close(other[number], Gradient()(network, X, torch.tensor([best] * 2))[number])


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(InputError, match="Expected samples to be 1 or more, but SmoothGrad got 0"):
        SmoothGrad(samples=0)
    with pytest.raises(InputError, match="Expected noise to be 0 or more, but GradientSHAP got -1"):
        GradientSHAP(noise=-1)
    with pytest.raises(InputError, match="Expected iterations to be 1 or more, but IntegratedGradients got 0"):
        IntegratedGradients(iterations=0)
    with pytest.raises(InputError, match=r"Expected layer to be a module of Tiny, but got 'features\.33'"):
        LayerCAM(layer="features.33")(tiny(), X, TARGETS)


def test_probabilities_are_not_needed() -> None:
    """Networks whose outputs are log-probabilities are explained as well."""
    network, images = linear(8, 8)
    found = IntegratedGradients(iterations=4)(network, images, torch.tensor([0, 1]))
    assert found.isfinite().all()
