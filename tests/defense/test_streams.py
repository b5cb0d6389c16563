"""Residual streams: where a layer would touch no gate, sums, normalizations and attention are gated, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from references import RULES, gated
from torch import Tensor, nn

from fgvis_lightning import DefendedCNN, explain
from fgvis_lightning.defense.graph import BARE

Point = Callable[[str, Tensor], Tensor]


def as_it_is(name: str, h: Tensor) -> Tensor:
    return h


class Stream(nn.Module):
    """Stem, two residual blocks with a layer norm and a GELU, layer norm, head: a path of sums leads past the GELUs.

    ``point`` is called with each tensor that a gate belongs to, written out by hand.
    """

    def __init__(self, way: str = "add") -> None:
        super().__init__()
        self.way = way
        self.stem = nn.Conv2d(3, 6, 2, stride=2)
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(3))
        self.into = nn.ModuleList(nn.Linear(6, 12) for _ in range(2))
        self.out_of = nn.ModuleList(nn.Linear(12, 6) for _ in range(2))
        self.scale = nn.Parameter(torch.randn(6))
        self.head = nn.Linear(6, 4)
        self.point: Point = as_it_is

    def mixed(self, x: Tensor) -> Tensor:
        """The tokens that enter the blocks."""
        return x

    def sum(self, x: Tensor, h: Tensor) -> Tensor:
        """In one of several notations."""
        ways = {
            "add": lambda: x + self.scale * h,
            "sub": lambda: x - -self.scale * h,
            "addcmul": lambda: torch.addcmul(x, self.scale, h),
            "in place": lambda: x.clone().sub_(-self.scale * h),
            "stack": lambda: torch.stack([x, self.scale * h]).sum(0),
            "mean": lambda: torch.mean(torch.stack([2 * x, 2 * self.scale * h], -1), -1),
            "cat": lambda: torch.cat([x, self.scale * h], -1).unflatten(-1, (2, 6)).sum(axis=2),
            "weighted": lambda: (torch.stack([x, h]) * torch.stack([torch.ones(6), self.scale])[:, None, None]).sum(0),
            "cat in the batch": lambda: torch.cat([x[None], self.scale * h[None]]).sum((0,)),
        }
        return ways[self.way]()

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixed(self.stem(x).flatten(2).transpose(1, 2))
        for norm, into, out_of in zip(self.norms, self.into, self.out_of, strict=False):
            h = out_of(self.point("gelu", F.gelu(into(self.point("normalization", norm(x))))))
            x = self.point("residual", self.sum(x, h))
        return self.head(self.point("normalization", self.norms[-1](x)).mean(1))


class Attending(Stream):
    """The same with an attention between the stem and the blocks, in one of several notations."""

    def __init__(self, notation: str) -> None:
        super().__init__()
        self.notation = notation
        self.project = nn.Linear(6, 18)
        self.first = nn.LayerNorm(6)

    def mixed(self, x: Tensor) -> Tensor:
        q, k, v = self.project(self.point("normalization", self.first(x))).chunk(3, 2)
        return self.point("residual", x + self.attend(q, k, v))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.notation == "fused":
            return self.point("attention", F.scaled_dot_product_attention(q, k, v))
        if self.notation == "keywords":
            return self.point("attention", F.scaled_dot_product_attention(query=q, key=k, value=v))
        if self.notation == "baddbmm":
            weights = self.point("attention", torch.baddbmm(q.new_zeros(()), q, k.mT, beta=0)) / 6**0.5
        else:
            weights = self.point("attention", torch.einsum("bnc,bmc->bnm", q, k)) / 6**0.5
        return self.point("attention", weights.softmax(2) @ v)


def twin_gradient(network: Stream, x: Tensor, e: Tensor, rule: str, ungated: frozenset[str]) -> Tensor:
    """The gated gradient by the definition, neuron by neuron, at the points that are written out in the network."""
    references: list[Tensor] = []
    network.point = lambda name, h: references.append(h.detach()) or h  # type: ignore[func-returns-value]
    network(x)
    left = iter(references)

    def gate(name: str, h: Tensor) -> Tensor:
        reference, known = next(left), h.detach()
        if name not in ungated:
            h.register_hook(lambda gradient: gated(gradient, known, reference, rule))
        return h

    network.point = gate
    e = e.detach().requires_grad_()
    (found,) = torch.autograd.grad(network(e)[:, 1].sum(), e)
    network.point = as_it_is
    return found


@pytest.mark.parametrize("ungated", [frozenset(), frozenset({"residual"}), frozenset({"normalization"})], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_gradient_equals_slow_twin(rule: str, ungated: frozenset[str]) -> None:
    torch.manual_seed(0)
    network = Stream().double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    e = (x * torch.rand_like(x)).requires_grad_()
    defended = DefendedCNN(network, gate=rule, exempt=ungated)
    assert torch.equal(defended.record(x), network(x))
    (ours,) = torch.autograd.grad(defended(e)[:, 1].sum(), e)
    torch.testing.assert_close(ours, twin_gradient(network, x, e, rule, ungated), rtol=1e-9, atol=1e-12)
    assert not torch.equal(ours, torch.autograd.grad(network(e)[:, 1].sum(), e)[0])
    expected = {"gelu": 2, "residual": 2, "normalization": 3}
    assert defended.coverage.gated == {name: n for name, n in expected.items() if name not in ungated}
    assert torch.equal(defended(e), network(e))
    with torch.no_grad():
        assert torch.equal(defended(e), network(e))


@pytest.mark.parametrize("way", ["sub", "addcmul", "in place", "stack", "mean", "weighted", "cat", "cat in the batch"])
def test_sums_are_gated_in_any_notation(way: str) -> None:
    torch.manual_seed(0)
    network = Stream(way).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    e = (x * torch.rand_like(x)).requires_grad_()
    defended = DefendedCNN(network)
    defended.record(x)
    (ours,) = torch.autograd.grad(defended(e)[:, 1].sum(), e)
    torch.testing.assert_close(ours, twin_gradient(network, x, e, "strict", frozenset()), rtol=1e-9, atol=1e-12)
    assert defended.coverage.gated["residual"] == 2


@pytest.mark.parametrize(("notation", "count"), [("fused", 1), ("keywords", 1), ("products", 2), ("baddbmm", 2)])
@pytest.mark.parametrize("ungated", [frozenset(), frozenset({"attention"})], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_attention_is_gated_like_its_slow_twin(rule: str, ungated: frozenset[str], notation: str, count: int) -> None:
    torch.manual_seed(0)
    network = Attending(notation).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    e = (x * torch.rand_like(x)).requires_grad_()
    defended = DefendedCNN(network, gate=rule, exempt=ungated)
    assert torch.equal(defended.record(x), network(x.clone().requires_grad_()))  # other kernels without gradients
    (ours,) = torch.autograd.grad(defended(e)[:, 1].sum(), e)
    torch.testing.assert_close(ours, twin_gradient(network, x, e, rule, ungated), rtol=1e-9, atol=1e-12)
    assert defended.coverage.gated["attention"] == (0 if ungated else count)


class Swap(nn.Module):
    """Tokens before channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_torchs_own_attention_is_gated_at_its_output() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), Swap(), layer, nn.Flatten(), nn.Linear(32, 3)).eval()
    defended = DefendedCNN(network)
    x = torch.randn(1, 3, 8, 8)
    defended.record(x)
    assert defended.coverage.gated == {"attention": 1, "residual": 2, "normalization": 2, "relu": 1}


def test_relu_networks_keep_the_gates_of_the_paper() -> None:
    for name in ("resnet18", "vgg11", "densenet121", "mobilenetv2_050", "tf_efficientnet_lite0", "inception_v3"):
        torch.manual_seed(0)
        defended = DefendedCNN(timm.create_model(name, num_classes=5).eval())
        defended.record(torch.randn(1, 3, 96, 96))
        assert set(defended.coverage.gated) <= {"relu", "relu6"}
        assert not defended.coverage.gate_free


FAMILIES: dict[str, dict[str, Any]] = {
    "convnext_atto": {"depths": (1, 1, 2, 1)},
    "convnextv2_atto": {"depths": (1, 1, 2, 1)},
    "vit_tiny_patch16_224": {"depth": 2, "img_size": 64},
    "deit_tiny_distilled_patch16_224": {"depth": 2, "img_size": 64},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "img_size": 64},
    "poolformer_s12": {},
    "efficientformer_l1": {"img_size": 224},
    "coatnet_0_224": {"img_size": 224},
    "edgenext_xx_small": {},
    "mobilevit_xxs": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_no_layer_of_these_networks_is_without_a_gate(name: str) -> None:
    torch.manual_seed(0)
    options = FAMILIES[name]
    network = timm.create_model(name, num_classes=5, **{k: v for k, v in options.items() if v != 224})
    network.eval().requires_grad_(False)
    side = options.get("img_size", 64)
    x = torch.randn(1, 3, side, side)
    defended = DefendedCNN(network, gate="restoring")
    assert torch.equal(defended.record(x), network(x.clone().requires_grad_()))  # other kernels without gradients
    assert not defended.coverage.gate_free
    assert defended.coverage.gated["residual"] > 1
    assert "residual" in str(defended.coverage)
    defended.verify(x)


def test_streams_can_be_left_out_and_asked_for() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8)
    defended = DefendedCNN(Stream().eval(), exempt=["residual", "normalization", "attention"])
    defended.record(x)
    assert defended.coverage.gated == {"gelu": 2}
    assert defended.coverage.gate_free
    assert "has no gate" in str(defended.coverage)
    network = timm.create_model("resnet18", num_classes=5).eval()
    x = torch.randn(1, 3, 64, 64)
    assert DefendedCNN(network).record(x).equal(network(x))
    asked = DefendedCNN(network, gated=["residual"])
    asked.record(x)
    assert asked.coverage.gated == {"relu": 17, "residual": 8}


@pytest.mark.parametrize(
    ("mixed", "count"),
    [
        (lambda x, f, w: torch.stack([x, f, w]).sum(0), 1),
        (lambda x, f, w: torch.stack([x, f], 1).mean((1, 3), keepdim=True).sum(1), 1),
        (lambda x, f, w: torch.stack([x, f]).mean() + w, 1),
        (lambda x, f, w: (torch.stack([x, f]) * torch.stack([f, x])).sum(0), 0),
        (lambda x, f, w: torch.stack([x, w]).sum(0), 0),
        (lambda x, f, w: torch.stack([x, f], 1).sum(2).flatten(1), 0),
        (lambda x, f, w: torch.cat([x, f], 1).sum(1, keepdim=True), 0),
        (lambda x, f, w: torch.cat([x, f], 1).view(2, 4, 2, 8, 8).sum(2), 0),
        (lambda x, f, w: torch.cat([x, f], 1).mean((2, 3), keepdim=True), 0),
        (lambda x, f, w: torch.cat([x, w], 1).view(2, 2, 4, 8, 8).sum(1), 0),
    ],
)
def test_only_sums_over_branches_are_residual(mixed: Callable[..., Tensor], count: int) -> None:
    """Neither those within a branch, as in pooling, nor those with constants."""

    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return mixed(self.one(x).relu(), self.other(x).relu(), torch.ones(2, 4, 8, 8)).flatten(1)

    for kinds, expected in (((), 0), (("residual",), count)):
        defended = DefendedCNN(Mixes().eval(), gated=kinds)
        defended.record(torch.rand(2, 3, 8, 8))
        assert defended.coverage.gated["residual"] == expected


@pytest.mark.parametrize("count", [BARE, BARE + 1])
def test_layers_in_a_row_are_counted(count: int) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 3, 1)
            self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(count))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            for layer in self.layers:
                x = layer(x)
            return x.relu().mean((2, 3))

    defended = DefendedCNN(Rows().eval())
    defended.record(torch.randn(1, 3, 8, 8))
    assert defended.coverage.gate_free == (count > BARE)


@pytest.mark.parametrize("game", ["preservation", "deletion", "generation", "repression"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_every_game_is_played_on_them(name: str, game: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5, **FAMILIES[name]).eval()
    found = explain(network, torch.rand(2, 3, 64, 64), game=game, iterations=4, seeds=2)  # type: ignore[arg-type]
    assert found.coverage is not None
    assert not found.coverage.gate_free
