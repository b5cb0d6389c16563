from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_networks import Tiny

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.baselines.extremal_perturbation import CheapExtremalPerturbation, ExtremalPerturbation
from fgvis_lightning.baselines.igos import CheapIGOSPlusPlus, IGOSPlusPlus
from fgvis_lightning.baselines.lime import LIME, CheapLIME
from fgvis_lightning.baselines.meaningful_perturbation import CheapMeaningfulPerturbation, MeaningfulPerturbation
from fgvis_lightning.baselines.occlusion import CheapOcclusion, Occlusion
from fgvis_lightning.baselines.progress import reporting
from fgvis_lightning.baselines.rise import RISE, CheapRISE
from fgvis_lightning.baselines.wavelet_masks import CartoonX, CheapCartoonX, CheapWaveletX, WaveletX
from fgvis_lightning.errors import InputError


class LinearProbability(nn.Module):
    """Class 0 has probability 0.5 + ⟨weight, x⟩, and class 1 the rest."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        p = 0.5 + (x * self.weight).flatten(1).sum(1)
        return torch.stack([p, 1 - p], 1).log()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(height: int, width: int) -> tuple[LinearProbability, Tensor]:
    """A network and two images, all of whose masked versions have probabilities in (0.1, 0.9)."""
    weight, images = random(3, height, width), random(2, 3, height, width, seed=1)
    return LinearProbability(weight * 0.4 / (weight * images).abs().flatten(1).sum(1).max()), images


# --- what the methods of this family have in common ---

METHODS: dict[str, Callable[..., Method]] = {
    "occlusion": lambda **more: Occlusion(stride=30, **more),
    "rise": lambda **more: RISE(masks=20, **more),
    "lime": lambda **more: LIME(samples=30, kernel_size=1.5, **more),
    "perturbation": lambda **more: MeaningfulPerturbation(iterations=6, jitter=12, **more),
    "extremal": lambda **more: ExtremalPerturbation(iterations=6, weight=1, lr=1, **more),
    "cartoon": lambda **more: CartoonX(iterations=3, lr=0.002, sparsity=0.05, samples=9, **more),
    "wavelet": lambda **more: WaveletX(iterations=3, lr=0.002, samples=9, **more),
    "igos": lambda **more: IGOSPlusPlus(iterations=2, path=3, step=0.1, **more),
}
TOGETHER = ("perturbation", "extremal")  # all images in a pass
every_method = pytest.mark.parametrize("method", METHODS)


def example() -> tuple[Tiny, Tensor, Tensor]:
    network = Tiny().eval()
    with torch.no_grad():
        network.head.weight.mul_(0.3)  # no probability near 0 or 1
    images = random(3, 3, 40, 56).float()
    return network, images, network(images).argmax(1)


@every_method
def test_maps_of_any_size_and_of_one_image_alone(method: str) -> None:
    network, images, targets = example()
    maps = METHODS[method]()(network, images, targets)
    assert maps.shape == (3, 40, 56)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert maps.isfinite().all()
    assert (maps.flatten(1).std(1) > 0).all()
    for i in range(3):
        alone = METHODS[method]()(network, images[i : i + 1], targets[i : i + 1])
        torch.testing.assert_close(alone[0], maps[i], rtol=1e-4, atol=1e-5)
    other = METHODS[method]()(network, images, (targets + 1) % 5)
    assert ((other - maps).abs().flatten(1).amax(1) > 1e-4).all(), "the target matters"


@every_method
def test_same_bits_again_and_nothing_is_changed(method: str) -> None:
    network, images, targets = example()
    network.features[2] = nn.ReLU(inplace=True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    given, state = images.clone(), torch.get_rng_state()
    first = METHODS[method]()(network, images, targets)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(METHODS[method]()(network, images, targets), first)
    assert torch.equal(images, given)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert not network.training


@pytest.mark.parametrize("method", ["rise", "lime", "perturbation", "cartoon", "wavelet", "igos"])
def test_the_seed_matters(method: str) -> None:
    network, images, targets = example()
    maps = [METHODS[method](seed=seed)(network, images, targets) for seed in (0, 1)]
    assert not torch.equal(*maps)


@every_method
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "channels_last", "requires_grad", "float64", "frozen"])
def test_the_same_map_in_every_setting(method: str, mode: str) -> None:
    network, images, targets = example()
    expected = METHODS[method]()(network, images, targets)
    match mode:
        case "no_grad":
            with torch.no_grad():
                maps = METHODS[method]()(network, images, targets)
        case "inference_mode":
            with torch.inference_mode():
                maps = METHODS[method]()(network, images + 0, targets + 0)
        case "channels_last":
            maps = METHODS[method]()(network, images.to(memory_format=torch.channels_last), targets)
        case "requires_grad":
            maps = METHODS[method]()(network, images.clone().requires_grad_(), targets)
        case "float64":
            maps = METHODS[method]()(network.double(), images.double(), targets)
        case _:
            maps = METHODS[method]()(network.requires_grad_(False), images, targets)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=2e-4)


@every_method
def test_autocast_reaches_only_the_network(method: str) -> None:
    network, images, targets = example()

    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return network(x)

    expected = METHODS[method]()(Cast(), images, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = METHODS[method]()(network, images, targets)
    assert maps.dtype == torch.float32
    assert torch.equal(maps, expected)


@pytest.mark.parametrize("method", sorted({*METHODS} - {"igos"}))  # nobody knows how many passes its search takes
def test_every_pass_is_told(method: str) -> None:
    network, images, targets = example()
    passes, told = [], []
    network.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    with reporting(lambda done, total: told.append((done, total))):
        METHODS[method](**({} if method in TOGETHER else {"batch_size": 7}))(network, images, targets)
    assert told == [(i + 1, len(passes)) for i in range(len(passes))]
    assert max(passes) == (3 if method in TOGETHER else 7)


@pytest.mark.parametrize("method", ["occlusion", "rise", "lime", "cartoon", "wavelet", "igos"])
def test_the_batch_size_does_not_matter(method: str) -> None:
    network, images, targets = example()
    maps = [METHODS[method](batch_size=size)(network, images, targets) for size in (1, 3, 1000)]
    torch.testing.assert_close(maps[0], maps[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps[1], maps[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Occlusion(window=0.5), "window to be 1 or more"),
        (lambda: Occlusion(window=225), "window to be at most 224"),
        (lambda: Occlusion(stride=65), "stride to be at most 64"),
        (lambda: Occlusion(stride=math.nan), "stride to be 1 or more"),
        (lambda: Occlusion(batch_size=0), "batch_size to be 1 or more"),
        (lambda: RISE(masks=0), "masks to be 1 or more"),
        (lambda: RISE(cells=0), "cells to be 1 or more"),
        (lambda: RISE(batch_size=0), "batch_size to be 1 or more"),
        (lambda: RISE(p=0), "p to be above 0"),
        (lambda: RISE(p=1.5), "p to be above 0"),
        (lambda: LIME(samples=0), "samples to be 1 or more"),
        (lambda: LIME(kernel_size=0.5), "kernel_size to be 1 or more"),
        (lambda: LIME(seed=-1), "seed to be 0 or more"),
        (lambda: LIME(ratio=2), "ratio from 0 to 1"),
        (lambda: LIME(width=0), "width, alpha above 0"),
        (lambda: LIME(alpha=math.nan), "width, alpha above 0"),
        (lambda: MeaningfulPerturbation(beta=1), "beta to be 2 or more"),
        (lambda: MeaningfulPerturbation(cells=0), "cells to be 1 or more"),
        (lambda: MeaningfulPerturbation(lr=-1), "lr to be 0 or more"),
        (lambda: ExtremalPerturbation(levels=1), "levels to be 2 or more"),
        (lambda: ExtremalPerturbation(sigma=0), "sigma to be 1 or more"),
        (lambda: ExtremalPerturbation(weight=math.nan), "weight to be 0 or more"),
        (lambda: CartoonX(samples=0), "samples to be 1 or more"),
        (lambda: IGOSPlusPlus(path=0), "path to be 1 or more"),
        (lambda: IGOSPlusPlus(step=-1), "step to be 0 or more"),
        (lambda: WaveletX(spatial=-1), "spatial to be 0 or more"),
    ],
)
def test_parameters_that_cannot_be(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=f"Expected .*{message}.* but .*got"):
        make()


def test_the_cheap_ones_are_the_same_but_for_what_they_say() -> None:
    for cheap, changed, full in (
        (CheapOcclusion(), {"stride": 16}, Occlusion()),
        (CheapRISE(), {"masks": 1000}, RISE()),
        (CheapLIME(), {"samples": 300}, LIME()),
        (CheapMeaningfulPerturbation(), {"iterations": 100}, MeaningfulPerturbation()),
        (CheapExtremalPerturbation(), {"iterations": 200, "growth": 1.014}, ExtremalPerturbation()),
        (CheapCartoonX(), {"iterations": 200, "lr": 0.01, "samples": 4}, CartoonX()),
        (CheapWaveletX(), {"iterations": 100, "samples": 4}, WaveletX()),
        (CheapIGOSPlusPlus(), {"path": 5}, IGOSPlusPlus()),
    ):
        assert vars(cheap) == {**vars(full), **changed}
        assert all(getattr(full, name) != value for name, value in changed.items())
        assert isinstance(cheap, type(full))


# --- occlusion ---


@pytest.mark.parametrize(
    ("height", "width", "window", "stride"),
    [(14, 14, 4, 2), (14, 18, 5, 2), (13, 16, 6, 5), (10, 10, 10, 3), (9, 9, 1, 1)],
)
def test_mean_drop_over_the_windows_that_cover_a_pixel(height: int, width: int, window: int, stride: int) -> None:
    network, images = linear(height, width)
    scale = 224 / min(height, width)
    maps = Occlusion(window * scale, stride * scale, batch_size=5)(network, images, torch.tensor([0, 1]))
    # The drop is linear, so a square's is the sum of ⟨w, x⟩ in it, and the opposite for the other class.
    evidence = (network.weight * images).sum(1) * torch.tensor([1.0, -1.0])[:, None, None]
    total, count = torch.zeros_like(evidence), torch.zeros(height, width)
    tops = [*range(0, height - window, stride), math.ceil((height - window) / stride) * stride]
    lefts = [*range(0, width - window, stride), math.ceil((width - window) / stride) * stride]
    for y, x in itertools.product(tops, lefts):
        drop = evidence[:, y : y + window, x : x + window].sum((1, 2))
        total[:, y : y + window, x : x + window] += drop[:, None, None]
        count[y : y + window, x : x + window] += 1
    assert count.min() >= 1, "up to the right and bottom border"
    torch.testing.assert_close(maps.double(), total / count, rtol=1e-4, atol=1e-6)


def test_papers_sizes_at_224() -> None:
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((x == 0).flatten(1).sum(1))
            return x[:, :2, 0, 0]

    for method, windows in ((Occlusion(batch_size=16), 21**2), (CheapOcclusion(batch_size=16), 11**2)):
        seen.clear()
        method(Watch(), torch.ones(1, 3, 224, 224), torch.tensor([0]))
        assert torch.cat(seen).tolist() == [0] + [3 * 64 * 64] * windows
