from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from toy_networks import Residual, Tiny

from fgvis_lightning import InputError
from fgvis_lightning.baselines import GradCAM
from fgvis_lightning.baselines.grad_cam import last_convolutional


def test_weights_by_hand() -> None:
    """Behind the maps' average comes a linear layer: its weights, over the number of places, are Grad-CAM's."""
    network = Tiny().double().eval()
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 4])
    maps = network.features(x).detach()
    weights = network.head.weight.detach()[targets] / maps[0, 0].numel()
    cam = torch.zeros(2, *maps.shape[-2:], dtype=torch.float64)
    for image in range(2):
        for channel in range(maps.shape[1]):
            cam[image] += weights[image, channel] * maps[image, channel]
    expected = F.interpolate(cam.clamp(min=0)[:, None], (12, 16), mode="bilinear")[:, 0].float()
    assert expected.max() > 0
    torch.testing.assert_close(GradCAM()(network, x, targets), expected)


def test_layer_by_name_and_activation_changed_in_place_later() -> None:
    torch.manual_seed(0)
    network, x = Residual().double().eval(), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    middle = network.conv2(network.relu(network.conv1(x))).detach().requires_grad_()
    skip = network.relu(network.conv1(x)).detach()
    logit = network.head((network.conv3(middle.clamp(min=0)) + skip).clamp(min=0).flatten(1))[0, 2]
    (gradient,) = torch.autograd.grad(logit, middle)
    expected = (gradient.mean((2, 3), keepdim=True) * middle).sum(1).clamp(min=0).detach().float()
    torch.testing.assert_close(GradCAM("conv2")(network, x, torch.tensor([2])), expected)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vgg11", "features.19"),
        ("resnet18", "layer4"),
        ("densenet121", "features"),
        ("mobilenet_v3_small", "features"),
        ("tf_efficientnet_lite0", "bn2"),
        ("mobilenetv3_small_050", "blocks"),  # whose last convolution is behind the pooling
    ],
)
def test_the_end_of_the_last_convolutional_layer_is_found(name: str, layer: str) -> None:
    library = torchvision.models.get_model if name in torchvision.models.list_models() else timm.create_model
    assert last_convolutional(library(name).eval(), torch.zeros(1, 3, 96, 96)) == layer


def test_errors() -> None:
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(InputError, match=r"Expected layer to be a module of Residual, but got 'conv4'\. Nearest: conv"):
        GradCAM("conv4")(Residual().eval(), x, torch.tensor([0]))

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    with pytest.raises(InputError, match="Expected a network with convolutions, but no module of Flat is one"):
        GradCAM()(Flat().eval(), x, torch.tensor([0]))
