from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from references import rise_aucs, rise_kernel
from torch import Tensor, nn
from toy_networks import Plain

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics import PROFILES, Profile, auc, curves, deletion_curve, find_profile, insertion_curve
from fgvis_lightning.metrics.profiles import OWN_MEAN, RISE_BLUR, STRONG_BLUR, ZERO

PLAIN_ZERO = Profile("zero", "here", deletion=ZERO, insertion=ZERO, rows=8)


def certain(p: Tensor) -> Tensor:
    """Logits (B,2) with these probabilities of class 0 (B,)."""
    return torch.stack([p.log(), (1 - p).log()], 1)


def brightness(x: Tensor) -> Tensor:
    """The probability is the mean of the pixels."""
    return certain(x.double().mean((1, 2, 3)).clamp(0, 1))


class Counting(nn.Module):
    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.network(x)


def small(height: int, width: int, classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, classes)
    return nn.Sequential(*layers).eval().requires_grad_(False)


def batch(count: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(count, 3, height, width, generator=generator)
    saliency = torch.randn(count, height, width, generator=generator)
    return x, saliency, torch.arange(count) % 5


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 56)])
def test_linear_network(height: int, width: int) -> None:
    x, saliency = torch.ones(2, 3, height, width), torch.rand(2, height, width)
    deletion, insertion = curves(brightness, x, saliency, torch.tensor([0, 1]), PLAIN_ZERO)
    line = torch.linspace(1, 0, height // 8 + 1)
    torch.testing.assert_close(deletion, torch.stack([line, 1 - line]))
    torch.testing.assert_close(insertion, torch.stack([1 - line, line]))
    torch.testing.assert_close(auc(deletion, PLAIN_ZERO), torch.full((2,), 0.5))
    assert deletion.dtype == insertion.dtype == torch.float32


def test_one_patch_decides() -> None:
    def patch(x: Tensor) -> Tensor:
        return certain((x[:, :, 8:16, 8:16] == 1).all(1).any(1).any(1).double())

    x = torch.ones(3, 3, 40, 40)
    found = torch.zeros(40, 40)
    found[8:16, 8:16] = 1  # 64 pixels, in the first step of 320
    late = torch.zeros(40, 40)
    late[16:, :] = 1  # 960 pixels, and then line by line from the top
    profile = replace(PLAIN_ZERO, ties="first")
    deletion, insertion = curves(patch, x, torch.stack([found, late, -found]), torch.zeros(3).long(), profile)
    assert deletion.tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0]]
    assert insertion.tolist() == [[0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]]
    assert auc(deletion).tolist() == pytest.approx([0.1, 0.9, 0.9])
    assert auc(insertion).tolist() == pytest.approx([0.9, 0.1, 0.1])


def rise_by_the_book(
    network: nn.Module, image: Tensor, saliency: Tensor, target: int, draw: list[int]
) -> tuple[float, float]:
    """Both AUC as the authors' program goes about it, in float64 and one picture at a time.

    Equal values come in the order of the numbers drawn for their pixels.
    """
    height, width = saliency.shape
    # A point under a Gaussian with what leaves the 11 by 11 square thrown back at its border.
    line = np.zeros(11)
    weights = np.exp(-0.5 * (np.arange(-20, 21) / 5.0) ** 2)
    for weight, place in zip(weights / weights.sum(), range(-15, 26), strict=True):
        while not 0 <= place < 11:
            place = -1 - place if place < 0 else 21 - place
        line[place] += weight
    kernel = np.outer(line, line)
    source = image.double().numpy()
    padded = np.pad(source, ((0, 0), (5, 5), (5, 5)))
    blurred = np.zeros_like(source)
    for i in range(11):
        for j in range(11):
            blurred += kernel[i, j] * padded[:, i : i + height, j : j + width]
    order = sorted(range(height * width), key=lambda pixel: (-float(saliency.flatten()[pixel]), draw[pixel]))
    both = []
    for start, finish in ((source, np.zeros_like(source)), (blurred, source)):
        now, scores, done = start.copy(), [], 0
        for _ in range((height * width + 8 * width - 1) // (8 * width) + 1):
            logits = network(torch.from_numpy(now)[None])[0]
            scores.append(float(logits.softmax(0)[target]))
            for pixel in order[done : done + 8 * width]:
                now[:, pixel // width, pixel % width] = finish[:, pixel // width, pixel % width]
            done += 8 * width
        both.append((sum(scores) - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1))
    return both[0], both[1]


@pytest.mark.parametrize("ties", ["random", "first"])
@pytest.mark.parametrize(("height", "width"), [(40, 56), (21, 9)])
def test_rise_by_the_book(height: int, width: int, ties: str) -> None:
    network = small(height, width)
    x, saliency, targets = batch(3, height, width)
    saliency[1] = saliency[1].round()  # many pixels of equal value
    profile = replace(PROFILES["rise"], ties=ties, seed=3)
    deletion, insertion = (auc(scores).tolist() for scores in curves(network, x, saliency, targets, profile))
    network.double()
    draw = list(range(height * width))
    if ties == "random":
        for place, pixel in enumerate(torch.randperm(height * width, generator=torch.Generator().manual_seed(3))):
            draw[pixel] = place
    for index in range(3):
        expected = rise_by_the_book(network, x[index], saliency[index], int(targets[index]), draw)
        assert (deletion[index], insertion[index]) == pytest.approx(expected, abs=2e-6)


def test_all_pictures_of_an_image_at_once_give_the_same() -> None:
    network = small(43, 56)
    x, saliency, targets = batch(2, 43, 56)
    for mine, other in zip(
        curves(network, x, saliency, targets), rise_aucs(network, x, saliency, targets), strict=True
    ):
        torch.testing.assert_close(auc(mine), other, rtol=0, atol=1e-6)
    line = torch.tensor(PROFILES["rise"].insertion.make.line)  # type: ignore[attr-defined]
    torch.testing.assert_close(line.outer(line), rise_kernel())


@pytest.mark.parametrize("profile", PROFILES)
def test_batches_and_parts(profile: str) -> None:
    x, saliency, targets = batch(3, 40, 56)
    network = small(40, 56)
    deletion, insertion = curves(network, x, saliency, targets, profile)
    assert deletion.shape == insertion.shape == (3, len(PROFILES[profile].counts(40, 56)))
    for size in (1, 7, 1000):
        for a, b in zip(curves(network, x, saliency, targets, profile, size), (deletion, insertion), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    for i in range(3):
        single = curves(network, x[i : i + 1], saliency[i : i + 1], targets[i : i + 1], profile)
        for a, b in zip(single, (deletion, insertion), strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=0, atol=1e-6)
    torch.testing.assert_close(deletion_curve(network, x, saliency, targets, profile), deletion, rtol=0, atol=1e-6)
    torch.testing.assert_close(insertion_curve(network, x, saliency, targets, profile), insertion, rtol=0, atol=1e-6)
    torch.testing.assert_close(deletion[:, 0], insertion[:, -1])


@pytest.mark.parametrize(
    ("profile", "once"), [("rise", 6 + 5), ("group_cam", 6 + 5), ("xplique", 11 + 9), ("degradation", 100 + 98)]
)
def test_no_pass_too_many(profile: str, once: int) -> None:
    x, saliency, targets = batch(3, 40, 56)
    network = Counting(small(40, 56))
    curves(network, x, saliency, targets, profile, batch_size=16)
    full, left = divmod(3 * once, 16)
    assert network.sizes == [16] * full + [left] * (left > 0)
    network.sizes = []
    deletion_curve(network, x, saliency, targets, profile, batch_size=16)
    assert sum(network.sizes) == 3 * len(PROFILES[profile].counts(40, 56))


def test_only_the_order_counts() -> None:
    x, saliency, targets = batch(2, 24, 24)
    saliency = saliency.mul(3).round()  # exact in all of these
    network = small(24, 24)
    expected = curves(network, x, saliency, targets)
    for same in (saliency * 2 - 7, saliency**3, saliency.double().exp(), saliency.half()):
        for a, b in zip(curves(network, x, same, targets), expected, strict=True):
            assert torch.equal(a, b)


def test_a_constant_map_goes_from_the_top_if_asked_for() -> None:
    first = replace(PROFILES["rise"], ties="first")
    x, _, targets = batch(2, 40, 56)
    rows = torch.arange(40 * 56, 0, -1).view(1, 40, 56).expand(2, -1, -1)
    network = small(40, 56)
    for a, b in zip(
        curves(network, x, torch.zeros(2, 40, 56), targets, first), curves(network, x, rows, targets), strict=True
    ):
        assert torch.equal(a, b)
    ones = torch.ones(1, 3, 40, 40)
    ones[:, :, :8] = 0
    flat = torch.full((1, 40, 40), 3.0)
    deletion = deletion_curve(brightness, ones, flat, torch.tensor([0]), first)
    torch.testing.assert_close(deletion[0], torch.tensor([0.8, 0.8, 0.6, 0.4, 0.2, 0.0]))
    # At random each step takes what is there of everywhere.
    deletion = deletion_curve(brightness, ones, flat, torch.tensor([0]))
    torch.testing.assert_close(deletion[0], torch.linspace(0.8, 0, 6), rtol=0, atol=0.02)


def test_best_and_worst_order_enclose_any() -> None:
    x, saliency, targets = torch.rand(1, 3, 32, 32), torch.rand(1, 32, 32), torch.tensor([0])
    best, some, worst = (
        float(auc(deletion_curve(brightness, x, m, targets))) for m in (x.mean(1), saliency, -x.mean(1))
    )
    assert best < some < worst


@pytest.mark.parametrize(("height", "width"), [(224, 224), (40, 56), (41, 7), (5, 9)])
def test_counts(height: int, width: int) -> None:
    counts = PROFILES["rise"].counts(height, width).tolist()
    assert counts == [min(8 * width * i, height * width) for i in range(-(-height // 8) + 1)]
    assert PROFILES["xplique"].counts(height, width).tolist() == [
        int(v) for v in np.linspace(0, height * width, 11, dtype=np.int32)
    ]
    tiles = PROFILES["degradation"].counts(height, width)
    assert (len(tiles), int(tiles[0]), int(tiles[-1])) == (100, 0, -(-height // 8) * -(-width // 8))


def test_tiles_are_changed_as_a_whole() -> None:
    seen: list[Tensor] = []

    def watching(x: Tensor) -> Tensor:
        seen.append(x[:, 0].clone())
        return brightness(x)

    x = torch.rand(1, 3, 20, 11)
    profile = Profile("tiles", "here", deletion=ZERO, insertion=ZERO, steps=6, tile=8, ties="first")
    saliency = torch.zeros(1, 20, 11)
    saliency[0, 17, 9], saliency[0, 0, 0] = 2, 5  # 2 in a tile of 12 pixels is more than 5 in one of 64
    deletion_curve(watching, x, saliency, torch.tensor([0]), profile)
    gone = torch.cat(seen) == 0
    assert gone.flatten(1).sum(1).tolist() == [0, 12, 76, 100, 164, 188, 220]
    assert gone[1, 16:, 8:].all()
    assert gone[2, :8, :8].all()


def test_insertion_backwards_is_deletion_of_the_least_relevant() -> None:
    x, saliency, targets = batch(1, 24, 24)
    network = small(24, 24)
    profile = replace(PROFILES["degradation"], relative=False, steps=9)
    insertion = insertion_curve(network, x, saliency, targets, profile)
    least_first = deletion_curve(network, x, -saliency, targets, profile)
    torch.testing.assert_close(insertion.flip(1), least_first)


def test_relative_to_the_clean_image() -> None:
    x, saliency, targets = batch(2, 24, 24)
    network = small(24, 24)
    plain = curves(network, x, saliency, targets)
    relative = curves(network, x, saliency, targets, replace(PROFILES["rise"], relative=True))
    for a, b in zip(relative, plain, strict=True):
        torch.testing.assert_close(a, b / plain[0][:, :1])


def test_substrates() -> None:
    image = torch.randn(3, 30, 26)
    assert torch.equal(ZERO.make(image), torch.zeros(3, 30, 26))
    assert torch.equal(OWN_MEAN.make(image)[:, 7, 5], image.mean((1, 2)))
    for substrate in (RISE_BLUR, STRONG_BLUR):
        inner = substrate.make(torch.ones(3, 60, 60))[:, 29, 30]
        torch.testing.assert_close(inner, torch.ones(3))
    # At a corner the zero padding takes what a mirror gives.
    assert float(RISE_BLUR.make(torch.ones(3, 60, 60))[0, 0, 0]) == pytest.approx((6 / 11) ** 2, abs=0.02)
    weights = torch.exp(-(torch.arange(-25, 26) ** 2) / 5000)
    weights = weights.outer(weights)
    padded = nn.functional.pad(image, (25, 25, 25, 25), mode="reflect")
    expected = nn.functional.conv2d(padded[:, None], (weights / weights.sum())[None, None])[:, 0]
    torch.testing.assert_close(STRONG_BLUR.make(image), expected)
    assert STRONG_BLUR.make(image[:, :1, :3]).isfinite().all()


def test_the_given_tensors_are_left_alone() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Plain.forward(plain, x.mul_(2))

    torch.manual_seed(0)
    plain = Plain()
    x, saliency, targets = batch(2, 8, 8)
    x, targets = x.contiguous(memory_format=torch.channels_last).requires_grad_(), targets % 4
    before = x.detach().clone()
    layouts = []
    plain.conv1.register_forward_pre_hook(
        lambda _, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    deletion, insertion = curves(InPlace(), x, saliency.requires_grad_(), targets)
    assert torch.equal(x, before)
    assert not deletion.requires_grad
    assert not insertion.requires_grad
    assert all(layouts)


def test_half_precision() -> None:
    x, saliency, targets = batch(2, 24, 24)
    network = small(24, 24)
    exact = curves(network, x, saliency, targets)
    network.bfloat16()
    for a, b in zip(curves(network, x.bfloat16(), saliency, targets), exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=0.02)


def test_auc() -> None:
    assert auc(torch.tensor([[1.0, 0.5, 0.0], [1, 0, 0]])).tolist() == [0.5, 0.25]
    assert auc(torch.tensor([[1.0, 0.5, 0.0]]), replace(PLAIN_ZERO, area="mean")).tolist() == [0.5]
    assert auc(torch.tensor([[1.0, 0, 0, 0]]), replace(PLAIN_ZERO, area="mean")).tolist() == [0.25]


def test_descriptions() -> None:
    for name, profile in PROFILES.items():
        assert profile.name == name
        assert pickle.loads(pickle.dumps(profile)) == profile
    described = PROFILES["rise"].describe()
    assert described["step"] == "8 W of the H W pixels, 3.6 % of an image of 224 by 224"
    assert described["kernel"].startswith("11 by 11 of scipy's Gaussian filter, sigma 5")
    assert described["deletion substrate"] == "zero in normalized space"
    assert described["normalization"] == "(sum - first/2 - last/2)/(n - 1) over n scores"
    assert described["ties"] == "in an order drawn at random, seed 0"
    assert replace(PROFILES["rise"], ties="first").describe()["ties"] == "those at the top left first, row by row"
    assert PROFILES["xplique"].describe()["kernel"] == "none"
    assert PROFILES["degradation"].describe()["step"] == "1/99 of the tiles of 8 by 8 pixels"
    assert "divided by that of the clean image" in PROFILES["degradation"].describe()["score"]


def test_errors() -> None:
    x, saliency, targets = batch(2, 24, 24)
    network = small(24, 24)
    with pytest.raises(InputError, match=r"Expected saliency to be \(2,24,24\), but got \(2,24,23\)"):
        curves(network, x, saliency[:, :, 1:], targets)
    with pytest.raises(InputError, match=r"Expected saliency without NaN and infinity, but got some in 1 of 2: \[1\]"):
        curves(network, x, saliency.index_fill(0, torch.tensor(1), torch.nan), targets)
    with pytest.raises(InputError, match=r"Expected targets to be \(2,\) integers, but got \(1,\)"):
        curves(network, x, saliency, targets[:1])
    with pytest.raises(InputError, match="float32"):
        curves(network, x, saliency, targets.float())
    with pytest.raises(InputError, match="Expected targets from 0 to 4, but got 0 to 5"):
        curves(network, x, saliency, torch.tensor([0, 5]), batch_size=2)
    with pytest.raises(InputError, match=r"Expected x to be normalized images \(B,3,H,W\), but got \(3,24,24\)"):
        curves(network, x[0], saliency, targets)
    with pytest.raises(InputError, match="Expected batch_size to be at least 1, but got 0"):
        curves(network, x, saliency, targets, batch_size=0)
    with pytest.raises(InputError, match=r"Expected logits to be \(8,K\), but got \(8,\)"):
        curves(lambda x: network(x)[:, 0], x, saliency, targets, batch_size=8)
    with pytest.raises(InputError, match=r"Expected profile to be one of rise, .*, but got 'rize'\. Nearest: rise"):
        find_profile("rize")
    with pytest.raises(InputError, match=r"Expected scores to be \(B,S\) with S > 1, but got \(5,\)"):
        auc(torch.ones(5))
    with pytest.raises(InputError, match="Expected either rows or steps"):
        Profile("a", "b", ZERO, ZERO)
    with pytest.raises(InputError, match="Expected steps to be at least 1, but got 0"):
        Profile("a", "b", ZERO, ZERO, steps=0)
    with pytest.raises(InputError, match="Expected steps for tiles"):
        Profile("a", "b", ZERO, ZERO, rows=8, tile=2)
    with pytest.raises(InputError, match="Expected ties to be one of random, first, but got 'last'"):
        Profile("a", "b", ZERO, ZERO, rows=8, ties="last")
    with pytest.raises(InputError, match="Expected area to be one of trapezoid, mean, but got 'sum'"):
        Profile("a", "b", ZERO, ZERO, rows=8, area="sum")
