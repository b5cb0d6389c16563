from __future__ import annotations

import pytest
import torch
from references import plain_gradient, residual_gradient
from torch import Tensor, nn
from toy_networks import Plain, Residual, Tiny

from fgvis_lightning.baselines import RISE, MaskedGradient
from fgvis_lightning.errors import InputError

CPU = torch.device("cpu")


def worth(network: Plain | Residual, x: Tensor, mask: Tensor, target: int) -> Tensor:
    """Derivative (3,H,W) of the target's log p with respect to the mask (3,H,W), without autograd.

    ``log p_c = z_c - log Σ exp z_k``, so its gradient is the sum of the logits' with the weights ``[k = c] - p_k``.
    """
    e = (mask * x)[None]
    with torch.no_grad():
        p = network(e)[0].softmax(0)
    total = torch.zeros_like(e)
    for k in range(len(p)):
        # Without other reference activations than its own, every gate is open.
        one = (
            plain_gradient(network, "relu", e, e, k)
            if isinstance(network, Plain)
            else residual_gradient(network, e, e, k)
        )
        total += (float(k == target) - p[k]) * one
    return x * total[0]


@pytest.mark.parametrize("kind", [Plain, Residual])
def test_is_the_mean_over_its_masks(kind: type[Plain | Residual]) -> None:
    torch.manual_seed(0)
    network, x, targets = kind().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([2, 0])
    masks = torch.cat(list(RISE(masks=5, cells=3, seed=4).drawn(8, 8, CPU))).double()
    found = MaskedGradient(masks=5, cells=3, seed=4, batch_size=2)(network, x, targets)
    for image, target, one in zip(x, targets.tolist(), found, strict=True):
        expected = torch.zeros(8, 8, dtype=torch.float64)
        for mask in masks:
            entries = worth(network, image, mask.expand(3, -1, -1), target)
            for channel in range(3):
                for y in range(8):
                    for at in range(8):
                        expected[y, at] += max(0.0, float(entries[channel, y, at])) / 3 / 5
        torch.testing.assert_close(one.double(), expected, rtol=1e-5, atol=1e-7)


def test_one_open_mask_is_gradient_times_input() -> None:
    """With p = 1 nothing is masked, so all masks are alike."""
    network, x, targets = Tiny().eval(), torch.randn(2, 3, 12, 14), torch.tensor([1, 3])
    e = x.clone().requires_grad_()
    network(e).log_softmax(1)[[0, 1], targets].sum().backward()
    assert e.grad is not None
    expected = (x * e.grad).clamp(min=0).mean(1)
    torch.testing.assert_close(MaskedGradient(masks=3, p=1.0)(network, x, targets), expected)


def test_finds_the_patch_that_raises_the_score() -> None:
    class Patch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inside, beside = x[:, :, 8:16, 24:32].mean((1, 2, 3)), x[:, :, 8:16, :8].mean((1, 2, 3))
            return torch.stack([4 * (inside - beside), torch.zeros_like(inside)], 1)

    (found,) = MaskedGradient()(Patch(), torch.ones(1, 3, 32, 48), torch.tensor([0]))
    inside = torch.zeros(32, 48, dtype=torch.bool)
    inside[8:16, 24:32] = True
    assert torch.equal(found > 0, inside), "what lowers the score is no evidence"


def test_a_seed_is_a_map_and_passes_do_not_matter() -> None:
    network, x, targets = Tiny().eval(), torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 2])
    maps = MaskedGradient(seed=1)(network, x, targets)
    assert torch.equal(maps, MaskedGradient(seed=1)(network, x, targets))
    assert not torch.equal(maps, MaskedGradient(seed=2)(network, x, targets))
    assert torch.equal(maps[1:2], MaskedGradient(seed=1)(network, x[1:2], targets[1:2])), "the same masks for all"
    torch.testing.assert_close(maps, MaskedGradient(seed=1, batch_size=13)(network, x, targets))

    rows: list[int] = []
    network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    MaskedGradient()(network, x[:1], targets[:1])
    assert sum(rows) == 40


def test_leaves_network_and_images_alone_also_without_grad() -> None:
    network, x = Tiny().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        maps = MaskedGradient(masks=2)(network, x, torch.tensor([0, 1]))
    assert not maps.requires_grad
    assert not x.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_refuses() -> None:
    with pytest.raises(InputError, match="Expected masks to be 1 or more, but MaskedGradient got 0"):
        MaskedGradient(masks=0)
    with pytest.raises(InputError, match=r"Expected p to be above 0 and at most 1, but got 0\.0"):
        MaskedGradient(p=0.0)
