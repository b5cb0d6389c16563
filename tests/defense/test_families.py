"""The defense on every family of CNNs: random weights, small images, torchvision's and timm's own code."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from references import graph_gradient
from torch import Tensor, nn

from fgvis_lightning import DefendedCNN
from fgvis_lightning.defense.nonlinearities import KINDS

TORCHVISION = {
    **dict.fromkeys(("alexnet", "vgg11", "vgg11_bn", "resnet18", "wide_resnet50_2", "resnext50_32x4d"), 64),
    **dict.fromkeys(("squeezenet1_1", "densenet121", "googlenet", "mobilenet_v2", "mobilenet_v3_small"), 64),
    **dict.fromkeys(("shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf"), 64),
    **dict.fromkeys(("regnet_x_400mf", "convnext_tiny"), 64),
    "inception_v3": 96,
}
TIMM = (
    *("regnety_002", "convnext_atto", "convnextv2_atto", "tf_efficientnet_lite0", "ghostnet_050", "hrnet_w18_small"),
    *(
        "dla34",
        "repvgg_a0",
        "nfnet_l0",
        "resnest14d",
        "mobilenetv4_conv_small",
        "edgenext_xx_small",
        "res2net50_14w_8s",
    ),
    *(
        "cspresnet50",
        "dpn48b",
        "selecsls42",
        "ese_vovnet19b_dw",
        "xception41",
        "skresnet18",
        "resnetv2_50",
        "rexnet_100",
    ),
    *("hardcorenas_a", "hgnetv2_b0", "inception_next_atto", "fasternet_t0", "starnet_s1", "seresnet50", "gernet_s"),
)


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    size = TORCHVISION.get(name, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on how googlenet and inception initialize
        network = (
            torchvision.models.get_model(name, weights=None) if name in TORCHVISION else timm.create_model(name)
        ).eval()
    for module in network.modules():  # so that activations neither vanish nor blow up, and no layer is switched off
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
        for parameter, value in (("layer_scale", 0.5), ("gamma", 0.5)):
            if isinstance(getattr(module, parameter, None), nn.Parameter):
                nn.init.constant_(getattr(module, parameter), value)
    return network, torch.randn(2, 3, size, size)


def gradient(network: Callable[[Tensor], Tensor], e: Tensor) -> Tensor:
    e = e.detach().clone().requires_grad_()
    return torch.autograd.grad(network(e)[:, 1].sum(), e)[0]


def state(network: nn.Module) -> dict[str, object]:
    hooks = [(m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m.training) for m in network.modules()]
    flags = {name: (p.requires_grad, p.grad is None, p._version) for name, p in network.named_parameters()}
    return {"hooks": str(hooks), "flags": flags, "modules": [type(m) for m in network.modules()]}


@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_every_family_is_gated_call_by_call(name: str) -> None:
    network, x = build(name)
    before, weights = state(network), {key: value.clone() for key, value in network.state_dict().items()}
    e = x * torch.rand_like(x)
    defended = DefendedCNN(network)
    defended.record(x)
    # At the image itself: the ordinary gradient, bit for bit.
    assert torch.equal(gradient(defended, x), gradient(network, x))
    # At a random mask: that of another implementation, which also counts the operators that ran. It knows activations.
    if "residual" in defended.coverage.gated:
        defended = DefendedCNN(network, exempt=KINDS)
        defended.record(x)
    expected, count = graph_gradient(network, x, e, 1)
    ours = gradient(defended, e)
    assert defended.coverage.gated.total() == defended.coverage.calls.total() == count == len(defended.coverage.layers)
    assert ours.any()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7 * expected.abs().max().item())
    assert not torch.equal(ours, gradient(network, e))
    # The caller's network is as it was.
    assert state(network) == before
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
