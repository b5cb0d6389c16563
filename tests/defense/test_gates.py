"""ReLU and ReLU6 with their gate, against the activation, a gate by booleans, and autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toy_networks import Residual

from fgvis_lightning import DefendedCNN
from fgvis_lightning.defense.gates import LIMITS, Ceiling, GatedReLU
from fgvis_lightning.method.gates import RULES

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "relu6": F.relu6}


def slow(rule: str, name: str, image: Tensor, e: Tensor, incoming: Tensor) -> Tensor:
    """The gradient at the activation's input, by its definition."""
    act = ACTIVATIONS[name]
    x = e.clone().requires_grad_()
    h = act(x)
    closed = h.detach() > act(image)
    if rule == "restoring":
        closed &= incoming < 0
    (gradient,) = torch.autograd.grad(h, x, torch.where(closed, 0, incoming))
    return gradient


def fast(
    rule: str, name: str, image: Tensor, e: Tensor, incoming: Tensor, in_place: bool = False, dense: bool = True
) -> Tensor:
    h = ACTIVATIONS[name](image)
    if not dense:
        h = torch.stack([h, h], -1)[..., 0]
    ceiling = Ceiling(h, LIMITS[name])
    assert ceiling.by_bits == (dense and h.element_size() == 2)
    x = e.clone().requires_grad_()
    h = GatedReLU.apply(x * 1, ceiling, in_place, rule)
    assert torch.equal(h, ACTIVATIONS[name](e))
    (gradient,) = torch.autograd.grad(h, x, incoming)
    return gradient


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def numbers(dtype: torch.dtype) -> Tensor:
    """Every kind of number at which something could go wrong, and their neighbors."""
    some = [0.0, 1e-3, 0.3, 1.0, 1.9921875, 2.0, 3.7, 5.96875, 6.0, 7.0, 1024.0]
    if dtype != torch.float16:
        some += [1e-18, 1e18]
    exact = torch.tensor(some, dtype=dtype)
    near = [torch.nextafter(exact, torch.full_like(exact, end)) for end in (torch.inf, -torch.inf)]
    all_of_them = torch.cat([exact, *near, -exact, torch.tensor([torch.inf, -torch.inf], dtype=dtype)])
    normal = (all_of_them == 0) | (all_of_them.abs() >= torch.finfo(dtype).smallest_normal)
    return all_of_them[normal]


def gradients(dtype: torch.dtype) -> Tensor:
    """Every kind of number that a gradient can be, with both signs."""
    kind = torch.finfo(dtype)
    tiny, not_a_number = kind.smallest_normal * kind.eps, torch.nan
    some = torch.tensor([0.0, tiny, kind.smallest_normal, 1.0, kind.max, torch.inf, not_a_number], dtype=dtype)
    return torch.cat([some, torch.copysign(some, -torch.ones_like(some))])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("in_place", "dense"), [(False, True), (True, True), (False, False)])
def test_every_pair_of_nasty_numbers(rule: str, name: str, dtype: torch.dtype, in_place: bool, dense: bool) -> None:
    finite = numbers(dtype)[numbers(dtype) < torch.inf]
    image, e, incoming = torch.meshgrid(finite, numbers(dtype), gradients(dtype), indexing="ij")
    assert_same(fast(rule, name, image, e, incoming, in_place, dense), slow(rule, name, image, e, incoming))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("rule", RULES)
def test_every_gradient_of_16_bits(rule: str, name: str, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    pairs = torch.tensor([[1, 0], [1, 0.5], [1, 1], [1, 2], [0, 1], [7, 6], [7, 5]], dtype=dtype)
    image, e = (part[:, None].expand(-1, len(every)).contiguous() for part in pairs.unbind(1))
    incoming = every.expand_as(e)
    assert_same(fast(rule, name, image, e, incoming), slow(rule, name, image, e, incoming))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(DTYPES), name=st.sampled_from(sorted(ACTIVATIONS)))
@pytest.mark.parametrize("rule", RULES)
def test_random_numbers_in_every_layout(rule: str, seed: int, dtype: torch.dtype, name: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, e, incoming = (torch.randn(2, 5, 4, 3, generator=generator).mul(4).to(dtype) for _ in range(3))
    image = torch.where(torch.rand(image.shape, generator=generator) < 0.5, e, image)  # many that are equal
    expected = slow(rule, name, image, e, incoming)
    last = torch.channels_last
    for like in (
        (image, e, incoming),
        (image.contiguous(memory_format=last), e.contiguous(memory_format=last), incoming),
        (image, e, incoming.contiguous(memory_format=last)),
        (image, e, incoming[:1, :, :1, :1].expand_as(e)),
    ):
        assert torch.equal(fast(rule, name, *like), expected if like[2].stride(0) else slow(rule, name, *like))
    assert torch.equal(fast(rule, name, image, e, incoming, dense=False), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_closed_gates_are_counted_alike(name: str, dtype: torch.dtype) -> None:
    """Where the image has reached the activation's limit its gate is open, although nothing passes."""
    image, e = (ACTIVATIONS[name](part) for part in torch.meshgrid(numbers(dtype), numbers(dtype), indexing="ij"))
    ceiling = Ceiling(image, LIMITS[name])
    closed = e > image
    if name == "relu6":  # the number just below the limit is the ceiling of both
        closed &= ~((e == 6) & (image == torch.nextafter(e, torch.zeros_like(e))))
    assert torch.equal(ceiling.closed(e), closed)


def chain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU6()),
        *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make", [chain, lambda: Residual(size=24)], ids=["chain", "residual"])
@pytest.mark.parametrize("rule", RULES)
def test_a_network_has_the_same_gradients_with_and_without(
    rule: str, make: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    network = make().eval().requires_grad_(False).to(dtype).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 24, 24).to(dtype).contiguous(memory_format=torch.channels_last)
    found: list[tuple[Tensor, ...]] = []
    for fused in (True, False):
        defended = DefendedCNN(network, gate=rule, fused=fused)
        defended.record(x)
        e = (x * torch.rand(x.shape).round().to(dtype) if not found else found[0][0]).detach().requires_grad_()
        logits = defended(e)
        assert defended.coverage.gated.total() == 3
        logits[:, 1].sum().backward()
        assert e.grad is not None
        shares = defended.closed(e)
        assert shares.any()
        found.append((e.detach(), logits.detach(), e.grad, shares))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
