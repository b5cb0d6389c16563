"""Networks with further inputs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_shapes import QUICK
from torch import Tensor, nn

from fgvis_lightning import explain
from fgvis_lightning.baselines import GradCAM
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.load import load_classifier


class WithAge(nn.Module):
    """Takes an age (B,1), too, which its second class goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor, age: Tensor, scale: float = 100.0) -> Tensor:
        h = self.conv(x).relu().mean((1, 2, 3))
        return torch.stack([h, age[:, 0] / scale], 1)


def test_further_inputs_are_fixed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, image = WithAge().eval(), torch.rand(3, 3, 8, 8)
    np.save(tmp_path / "age.npy", np.array([63.0]))
    with torch.no_grad():
        mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        p = network((image - mean) / std, torch.full((3, 1), 63.0)).softmax(1)[:, 0]
    bound = partial(network, age=torch.tensor([[63.0]]), scale=100.0)
    for found in (
        explain(bound, image, 0, **QUICK),
        explain(network, image, 0, inputs={"age": [63]}, **QUICK),
        explain(network, image, 0, inputs={"age": str(tmp_path / "age.npy")}, **QUICK),
    ):
        torch.testing.assert_close(found.score_image, p)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "it has further inputs .*--model.classifier.inputs, or with functools.partial"),
        ({"inputs": {"age": "missing.npy"}}, "the input age as numbers or an .npy file, but got 'missing.npy'"),
    ],
)
def test_missing_inputs_are_pointed_out(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain(WithAge(), torch.rand(1, 3, 8, 8), 0, **QUICK, **given)
    with pytest.raises(InputError, match="by name, but got some by position"):
        explain(partial(WithAge(), torch.rand(1, 3, 8, 8)), torch.rand(1, 3, 8, 8), 0, **QUICK)


def test_messages_are_about_the_users_network() -> None:
    class Distance(WithAge):
        def forward(self, x: Tensor, age: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(x, age, scale).pow(2).sum(1)

    with pytest.raises(
        InputError, match=r"every nonlinearity of Distance to be gated, but these cannot be: 1 of pow\."
    ):
        explain(Distance(), torch.rand(1, 3, 8, 8), 0, inputs={"age": [63]}, **QUICK)
    bound = load_classifier(WithAge(), inputs={"age": [63]}, size=(8, 8)).network
    image, target = torch.rand(1, 3, 8, 8), torch.tensor([0])
    assert torch.equal(GradCAM("conv")(bound, image, target), GradCAM("network.conv")(bound, image, target))


def test_inputs_of_several_images_are_pointed_out() -> None:
    bound = partial(WithAge(), age=torch.tensor([[63.0], [20.0]]))
    with pytest.raises(InputError, match="The input age is not repeated for each image, since its first dimension"):
        explain(bound, torch.rand(2, 3, 8, 8), 0, **{**QUICK, "seeds": 2})
