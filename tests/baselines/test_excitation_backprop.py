from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy_networks import Plain, Residual, Spelled

from fgvis_lightning.baselines.excitation_backprop import ExcitationBackprop, _Pathways
from fgvis_lightning.baselines.propagation import differentiable
from fgvis_lightning.errors import InputError

# --- a slow version: every linear map as a matrix, every neuron's probability on its own ---


def matrix(f: Callable[[Tensor], Tensor], shape: torch.Size) -> Tensor:
    """``f(x) - f(0)`` of one image (1,...) as a matrix, from what it does to each basis vector."""
    basis = torch.eye(shape.numel(), dtype=torch.float64).reshape(-1, 1, *shape[1:])
    with torch.no_grad():
        zero = f(torch.zeros(shape, dtype=torch.float64)).flatten()
        return torch.stack([f(vector).flatten() - zero for vector in basis], dim=1)


def shared(w: Tensor, a: Tensor, p: Tensor) -> Tensor:
    """``P_j = Σ_i P_i a_j w⁺_ij / Σ_k a_k w⁺_ik``."""
    below = torch.zeros(a.numel(), dtype=torch.float64)
    for row, probability in zip(w, p.flatten(), strict=True):
        excitation = a.flatten().clamp(min=0) * row.clamp(min=0)
        if excitation.sum() > 0:
            below += probability * excitation / excitation.sum()
    return below.reshape(a.shape)


def winners(size: int, a: Tensor, p: Tensor) -> Tensor:
    below = torch.zeros_like(a)
    for channel in range(p.shape[1]):
        for i in range(p.shape[2]):
            for j in range(p.shape[3]):
                window = a[0, channel, size * i : size * (i + 1), size * j : size * (j + 1)]
                at = int(window.argmax())
                below[0, channel, size * i + at // size, size * j + at % size] += p[0, channel, i, j]
    return below


def top(f: Callable[[Tensor], Tensor], a: Tensor, target: int, contrastive: bool) -> Tensor:
    """P below the topmost layer."""
    w = matrix(f, a.shape)
    p = F.one_hot(torch.tensor(target), len(w)).double()
    return shared(w, a, p) - shared(-w, a, p) if contrastive else shared(w, a, p)


def slow_chain(network: nn.Sequential, x: Tensor, target: int, contrastive: bool) -> dict[str, Tensor]:
    """P at the outputs of a chain of layers, by index."""
    steps: list[tuple[str, nn.Module]] = []
    for name, module in network.named_children():
        if isinstance(module, nn.BatchNorm2d):  # belongs to the layer before
            below, before = steps.pop()
            steps.append((f"{below} {name}", nn.Sequential(before, module)))
        else:
            steps.append((name, module))
    activations = [x]
    for _, module in steps:
        activations.append(module(activations[-1]).detach())
    p = top(steps[-1][1], activations[-2], target, contrastive)
    found = {}
    for (names, module), a in list(zip(steps, activations[:-1], strict=True))[-2::-1]:
        for name in names.split():
            found[name] = p
        if isinstance(module, nn.MaxPool2d):
            p = winners(2, a, p)
        elif isinstance(module, nn.ReLU | nn.Identity | nn.Flatten):
            p = p.reshape(a.shape)
        else:
            p = shared(matrix(module, a.shape), a, p)
    return found


def slow_residual(network: Residual, x: Tensor, target: int, contrastive: bool, signed: bool) -> dict[str, Tensor]:
    with torch.no_grad():
        skip = network.conv1(x).clamp(min=0)
        middle = network.conv2(skip).clamp(min=0)
        branch = network.conv3(middle)
        last = (branch + skip).clamp(min=0)
    at_last = top(lambda a: network.head(a.flatten(1)), last, target, contrastive)
    ratio = torch.zeros_like(branch).flatten()
    for place, (a, b) in enumerate(zip(branch.flatten().tolist(), skip.flatten().tolist(), strict=True)):
        if signed and a + b > 0:
            ratio[place] = a / (a + b)
        elif not signed and max(a, 0) + max(b, 0) > 0:
            ratio[place] = max(a, 0) / (max(a, 0) + max(b, 0))
    at_branch = at_last * ratio.reshape(branch.shape)
    at_middle = shared(matrix(network.conv3, middle.shape), middle, at_branch)
    at_skip = at_last - at_branch + shared(matrix(network.conv2, skip.shape), skip, at_middle)
    return {"relu": at_last, "conv3": at_branch, "conv2": at_middle, "conv1": at_skip}


def chain(*layers: nn.Module, features: int) -> nn.Sequential:
    return nn.Sequential(nn.Identity(), *layers, nn.Flatten(), nn.Linear(features, 4))


def normalized() -> nn.Sequential:
    network = chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), features=64)
    norm = network[2]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean):
            values.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2)
        norm.weight[0] = -1
    return network


CHAINS: dict[str, Callable[[], nn.Sequential]] = {
    "plain": lambda: chain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True), features=80),
    "normalized": normalized,
    "average": lambda: chain(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        features=6,
    ),
    "maximum": lambda: chain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), features=36),
    "grouped": lambda: chain(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding="same", dilation=2),
        nn.ReLU(),
        features=64,
    ),
}


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().double().eval()


def images(number: int = 1, size: int = 8, seed: int = 1) -> Tensor:
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(
    network: nn.Module, x: Tensor, *names: str, target: int = 2, contrastive: bool = False, signed: bool = False
) -> dict[str, Tensor]:
    targets = torch.full((len(x),), target)
    with differentiable(network, x):
        return {name: _Pathways(network, x, signed).probability(targets, name, contrastive) for name in names}


@pytest.mark.parametrize("contrastive", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_chain_equals_slow_version(name: str, contrastive: bool) -> None:
    network = made(CHAINS[name])
    assert isinstance(network, nn.Sequential)
    slow = slow_chain(network, images(), 2, contrastive)
    ours = at(network, images(), *slow, contrastive=contrastive)
    assert len(slow) == len(network) - 1
    for layer, p in slow.items():
        torch.testing.assert_close(ours[layer], p, rtol=1e-10, atol=1e-12)
        assert p.abs().sum() > 0.1, "nothing arrives: the test shows nothing"
        if not contrastive:
            assert p.sum().item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("contrastive", [False, True])
def test_residual_equals_slow_version(contrastive: bool, signed: bool) -> None:
    network = made(lambda: Residual(size=6))
    assert isinstance(network, Residual)
    slow = slow_residual(network, images(size=6), 2, contrastive, signed)
    ours = at(network, images(size=6), *slow, contrastive=contrastive, signed=signed)
    for layer, p in slow.items():
        torch.testing.assert_close(ours[layer], p, rtol=1e-10, atol=1e-12)
    if not contrastive:
        assert [p.sum().item() for p in (slow["relu"], slow["conv1"])] == pytest.approx([1, 1])


def ignored(x: Tensor) -> Tensor:
    F.relu_(x)
    return x


def of_views(x: Tensor) -> Tensor:
    x[:, :2].relu_()
    x[:, 2:] *= 2
    return x.relu()


def squeezed(x: Tensor) -> Tensor:
    return torch.sigmoid(x.mean((2, 3), keepdim=True) + 1)


scale = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64).reshape(1, 4, 1, 1)


@pytest.mark.parametrize(
    "spelling",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        F.relu,
        torch.relu_,
        lambda x: x.relu(),
        lambda x: x.clamp(min=0),
        ignored,
        of_views,
        nn.SiLU(inplace=True),
        nn.PReLU(),
        nn.GroupNorm(2, 4),
        lambda x: F.layer_norm(x.permute(0, 2, 3, 1), [4]).permute(0, 3, 1, 2),
        nn.Dropout(),
        lambda x: 0.1 - x / 2 + 1,
        lambda x: (x - 0.1) * scale,
        lambda x: x * squeezed(x),
        lambda x: squeezed(x) * x,
        lambda x: x.mul_(squeezed(x)),
        lambda x: x * squeezed(x).expand_as(x),
        lambda x: squeezed(x).expand_as(x) * x,
        lambda x: (F.relu6(10 * squeezed(x)) / 6).expand_as(x) * x,
        lambda x: x * x.sigmoid(),
        lambda x: x.sigmoid().mul_(x),
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: F.glu(torch.cat([x, x], 1), 1),
        lambda x: x + x,
        lambda x: x - x.mean((2, 3), keepdim=True),
        lambda x: x / x.square().mean((1, 2, 3), keepdim=True).sqrt(),
        lambda x: torch.cat([x[:, :1], x[:, 1:]], 1),
    ],
)
def test_one_to_one_passes_the_probability_on(spelling: Callable[[Tensor], Tensor]) -> None:
    network = made(lambda: Spelled(spelling))
    assert isinstance(network, Spelled)
    with torch.no_grad():
        a = spelling(network.conv(images()))
    expected = top(lambda a: network.head(a.flatten(1)), a, 2, False)
    torch.testing.assert_close(at(network, images(), "conv")["conv"], expected, rtol=1e-10, atol=1e-12)


def test_two_maps_are_joined() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(144, 4)
            self.join: Callable[[Tensor, Tensor], Tensor] = torch.sub

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.join(self.a(x), self.b(x)).flatten(1))

    network = made(Two)
    assert isinstance(network, Two)
    assert at(network, images(), "b")["b"].count_nonzero() == 0
    with torch.no_grad():
        a, b = network.a(images()), network.b(images())
    for join, scale in ((lambda a, b: torch.add(a, b, alpha=2), 2), (lambda a, b: b.add_(a), 1)):
        network.join = join
        p = top(lambda a: network.head(a.flatten(1)), a + scale * b, 2, False)
        excitation = a.clamp(min=0) + scale * b.clamp(min=0)
        ours = at(network, images(), "a", "b")
        torch.testing.assert_close(ours["a"], (p * a.clamp(min=0) / excitation).nan_to_num(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ours["b"], (p * scale * b.clamp(min=0) / excitation).nan_to_num())
    network.join = torch.maximum
    ours = at(network, images(), "a", "b")
    assert (ours["a"][a < b] == 0).all()
    assert (ours["b"][a > b] == 0).all()
    network.join = torch.mul
    with pytest.raises(InputError, match="Two also has Mul between"):
        at(network, images(), "a")


def test_a_normalization_by_hand_equals_the_module() -> None:
    class Frozen(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            mean, variance = (getattr(self.norm, f"running_{name}")[:, None, None] for name in ("mean", "var"))
            factor = self.norm.weight[:, None, None] * (variance + 1e-5).rsqrt()  # type: ignore[index]
            return x * factor + (self.norm.bias[:, None, None] - mean * factor)  # type: ignore[index]

    network = made(normalized)
    assert isinstance(network, nn.Sequential)
    by_hand = copy.deepcopy(network)
    by_hand[2] = Frozen(by_hand[2])
    ours = at(by_hand, images(), "0", "1", "2")
    for name, p in at(network, images(), "0", "1", "2").items():
        torch.testing.assert_close(ours[name], p, rtol=1e-10, atol=1e-12)


def test_a_factor_of_one_use_leaves_the_others_alone() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.conv, self.head = nn.Identity(), nn.Conv2d(3, 4, 3), nn.Linear(144, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(self.image(x))
            return self.head((x + -1 * x.clamp(min=-0.1)).relu().flatten(1) + (-2 * x).relu().flatten(1))

    network = made(PreActivation)
    assert isinstance(network, PreActivation)
    ours = at(network, images(), "conv", "image")
    expected = shared(matrix(network.conv, images().shape), images(), ours["conv"])
    torch.testing.assert_close(ours["image"], expected, rtol=1e-10, atol=1e-12)


def test_sums_into_views() -> None:
    def into_views(x: Tensor) -> Tensor:
        x[:, 2:] += x[:, :2]
        return x

    def apart(x: Tensor) -> Tensor:
        return torch.cat([x[:, :2], x[:, 2:] + x[:, :2]], 1)

    networks = made(lambda: Spelled(into_views)), made(lambda: Spelled(apart))
    torch.testing.assert_close(*[at(network, images(), "conv")["conv"] for network in networks])


@pytest.mark.parametrize("make", [*CHAINS.values(), Residual, Plain])
def test_batch_equals_singles_in_any_mode(make: Callable[[], nn.Module]) -> None:
    network = made(make)
    x, targets = images(3), torch.tensor([0, 3, 1])
    method = ExcitationBackprop()
    maps = method(network, x, targets)
    assert maps.shape == (3, 8, 8)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert (maps >= 0).all()
    assert maps.amax() > 0
    for one, image, target in zip(maps, x, targets, strict=True):
        torch.testing.assert_close(method(network, image[None], target[None])[0], one)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            assert torch.equal(method(network, x, targets), maps)


def test_map_is_the_truncated_sum_over_channels() -> None:
    network = made(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)))
    p = at(network, images(), "1", contrastive=True)["1"].sum(1, keepdim=True)
    assert p.min() < 0 < p.max()
    expected = F.interpolate(p.clamp(min=0), (8, 8), mode="bilinear", align_corners=False)[:, 0].float()
    torch.testing.assert_close(ExcitationBackprop()(network, images(), torch.tensor([2])), expected)
    torch.testing.assert_close(ExcitationBackprop("1")(network, images(), torch.tensor([2])), expected)


def test_layer_is_one_that_all_paths_share() -> None:
    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.narrow = nn.Conv2d(3, 4, 16, stride=16), nn.Conv2d(4, 4, 1)
            self.wide, self.shortcut = nn.Conv2d(4, 4, 1, stride=2), nn.Conv2d(4, 4, 1, stride=2)
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.head(F.relu(self.wide(self.narrow(x)) + self.shortcut(x)).flatten(1))

    network, x, target = made(Bottleneck), images(size=32), torch.tensor([2])
    maps = ExcitationBackprop(contrastive=False)(network, x, target)
    assert torch.equal(maps, ExcitationBackprop("stem", contrastive=False)(network, x, target))
    assert not torch.equal(maps, ExcitationBackprop("narrow", contrastive=False)(network, x, target))


def test_half_precision_is_close() -> None:
    network = made(CHAINS["normalized"]).float()
    x = images().float()
    expected = at(network, x, "0")["0"]
    ours = at(network.bfloat16(), x.bfloat16(), "0")["0"]
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), expected, rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("make", [*CHAINS.values(), Residual])
def test_network_is_left_as_it_was(make: Callable[[], nn.Module], broken: bool) -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError

    network = made(make)
    inner = nn.Sequential(network, Raises()) if broken else nn.Sequential(network)
    next(inner.parameters()).requires_grad_(False)
    before = copy.deepcopy(inner)
    x = images()
    try:
        ExcitationBackprop()(inner, x, torch.tensor([1]))
        assert not broken
    except KeyError:
        assert broken
    assert torch.equal(x, images())
    for module, same in zip(inner.modules(), before.modules(), strict=True):
        assert vars(module).keys() == vars(same).keys()
        assert module.training == same.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for (name, value), same_value in zip(inner.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(value, same_value), name
    for parameter, same_parameter in zip(inner.parameters(), before.parameters(), strict=True):
        assert parameter.requires_grad == same_parameter.requires_grad
        assert parameter.grad is None
    assert torch.relu(torch.ones(1, requires_grad=True)).grad_fn.name() == "ReluBackward0"  # type: ignore[union-attr]


def test_errors_say_what_to_do() -> None:
    network, target = made(Plain), torch.tensor([1])
    with pytest.raises(InputError, match=r"Expected layer .* but got 'conf1'. Nearest: conv1"):
        ExcitationBackprop("conf1")(network, images(), target)
    with pytest.raises(InputError, match=r"maps \(B,C,H,W\), but 'head' returns \(1, 4\)"):
        ExcitationBackprop("head")(network, images(), target)
    network.add_module("unused", nn.ReLU())
    with pytest.raises(InputError, match=r"but 'unused' does not"):
        ExcitationBackprop("unused")(network, images(), target)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()
    with pytest.raises(InputError, match="at least 1×1, but it has none"):
        ExcitationBackprop()(linear, images(), target)
    for spelling, operator in (
        (lambda x: x.flatten(2).softmax(2), "Softmax"),
        (lambda x: F.scaled_dot_product_attention(x, x, x), "ScaledDotProduct"),
        (lambda x: -x, "Neg"),
    ):
        with pytest.raises(InputError, match=f"Expected a CNN .* also has {operator}"):
            ExcitationBackprop()(made(lambda s=spelling: Spelled(s)), images(), target)  # type: ignore[misc]
    with pytest.raises(InputError, match="there is no path between them"):
        ExcitationBackprop()(made(lambda: Spelled(torch.Tensor.detach)), images(), target)
