from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Plain, Residual, Spelled
from references import ACTIVATIONS, gated, plain_gradient, residual_gradient
from torch import Tensor, nn

from fgvis_lightning import DefendedCNN
from fgvis_lightning.defense import UngatedActivationError
from fgvis_lightning.gates import gate, slack

SHAPE = (2, 3, 8, 8)
seeds = st.integers(0, 2**31)


def images(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images x and explanations e = m x with a random mask."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator, dtype=dtype)
    return x, x * torch.rand(SHAPE, generator=generator, dtype=dtype)


def gradient(network: nn.Module, e: Tensor, target: int = 1) -> Tensor:
    e = e.detach().requires_grad_()
    return torch.autograd.grad(network(e)[:, target].sum(), e)[0]


@settings(max_examples=8, deadline=None)
@given(seed=seeds)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_equals_slow_reference(activation: str, seed: int) -> None:
    torch.manual_seed(seed)
    network = Plain(copy.deepcopy(ACTIVATIONS[activation][0])).double().eval()
    x, e = images(seed)
    defended = DefendedCNN(network)
    defended.record(x)
    ours = gradient(defended, e)
    torch.testing.assert_close(ours, plain_gradient(network, activation, x, e, 1), rtol=1e-9, atol=1e-12)
    assert not torch.equal(ours, gradient(network, e)), "no gate was closed: the test shows nothing"


@settings(max_examples=8, deadline=None)
@given(seed=seeds)
def test_reused_in_place_activation_equals_slow_reference(seed: int) -> None:
    torch.manual_seed(seed)
    network = Residual().double().eval()
    x, e = images(seed)
    defended = DefendedCNN(network)
    defended.record(x)
    torch.testing.assert_close(gradient(defended, e), residual_gradient(network, x, e, 1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("network", [Plain(), Plain(nn.SiLU()), Residual()], ids=["relu", "silu", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_image_the_gradient_is_the_ordinary_one(network: nn.Module, dtype: torch.dtype) -> None:
    network = network.to(dtype).eval()
    x, _ = images(0, dtype)
    defended = DefendedCNN(network)
    logits = defended.record(x)
    assert torch.equal(defended(x), logits)
    assert torch.equal(gradient(defended, x), gradient(network, x))


@pytest.mark.parametrize("flush", [True, False])
def test_gates_do_not_depend_on_subnormal_numbers(flush: bool) -> None:
    torch.manual_seed(0)
    network = Plain().eval()
    x, e = images(0, torch.float32)
    defended = DefendedCNN(network)
    try:
        torch.set_flush_denormal(flush)
        defended.record(x)
        assert torch.equal(gradient(defended, x), gradient(network, x))
        at_e = gradient(defended, e)
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(at_e, gradient(defended, e))


def test_gradient_equals_finite_differences_where_no_gate_is_closed() -> None:
    torch.manual_seed(0)
    network = Plain(nn.Tanh()).double().eval()
    x, _ = images(0)
    defended = DefendedCNN(network)
    defended.record(x)
    ours, step = gradient(defended, x), 1e-6
    for place in [(0, 0, 0, 0), (0, 2, 7, 7), (1, 1, 3, 4)]:
        nudge = torch.zeros_like(x)
        nudge[place] = step
        with torch.no_grad():
            slope = (network(x + nudge) - network(x - nudge))[:, 1].sum() / (2 * step)
        assert ours[place].item() == pytest.approx(slope.item(), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
@pytest.mark.parametrize("make", [Plain, lambda: Plain(nn.GELU()), Residual], ids=["relu", "gelu", "residual"])
def test_undefended_equals_plain_autograd(make: Callable[[], nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    network = make().double().eval()
    x, e = images(seed)
    defended = DefendedCNN(network)
    defended.record(x)
    with defended.undefended():
        assert torch.equal(gradient(defended, e), gradient(network, e))
        assert defended.coverage.gated.total() == 0
    assert not torch.equal(gradient(defended, e), gradient(network, e))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(width=32, allow_nan=False)] * 2, st.floats(width=32) | st.just(float("inf"))),
        min_size=1,
        max_size=40,
    )
)
def test_gate_selects_and_never_makes_nan(triples: list[tuple[float, float, float]]) -> None:
    h, reference, incoming = torch.tensor(triples).unbind(1)
    leaf = h.clone().requires_grad_()
    output = leaf.clone()
    gate(output, reference)
    output.backward(incoming)
    assert leaf.grad is not None
    expected = gated(incoming, h, reference).float()
    assert torch.equal(leaf.grad.nan_to_num(123), expected.nan_to_num(123))
    closed = (h > reference.clamp(min=0)) | (h < reference.clamp(max=0))
    assert (leaf.grad[closed] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_bit_above_the_reference_closes_the_gate(dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    reference = torch.tensor([0.0, smallest, 1.0, 1024.0], dtype=dtype)
    above = torch.nextafter(reference, torch.full_like(reference, 2048.0))
    for h, opened in ((reference, True), (above, False)):
        output = h.clone().requires_grad_()
        gated_output = output * 1
        gate(gated_output, reference, nonnegative=True)
        gated_output.sum().backward()
        assert output.grad is not None
        assert (output.grad != 0).tolist() == [opened] * 4, (h, slack(h, reference, nonnegative=True))


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (F.relu, "relu"),
        (F.relu_, "relu"),
        (torch.relu, "relu"),
        (torch.relu_, "relu"),
        (lambda x: x.relu(), "relu"),
        (lambda x: x.relu_(), "relu"),
        (lambda x: F.relu(x, inplace=True), "relu"),
        (nn.ReLU6(), "relu6"),
        (F.relu6, "relu6"),
        (nn.Hardtanh(), "hardtanh"),
        (lambda x: x.clamp(min=0), "clamp"),
        (lambda x: torch.clamp_min(x, 0), "clamp_min"),
        (nn.LeakyReLU(inplace=True), "leaky_relu"),
        (nn.PReLU(), "prelu"),
        (nn.ELU(), "elu"),
        (nn.SELU(), "selu"),
        (nn.CELU(), "celu"),
        (nn.SiLU(inplace=True), "silu"),
        (nn.GELU(), "gelu"),
        (nn.Mish(), "mish"),
        (nn.Sigmoid(), "sigmoid"),
        (torch.special.expit, "sigmoid"),
        (nn.Hardsigmoid(), "hardsigmoid"),
        (nn.Hardswish(), "hardswish"),
        (torch.tanh, "tanh"),
        (nn.Softplus(), "softplus"),
        (nn.Softsign(), "softsign"),
        (nn.LogSigmoid(), "logsigmoid"),
        (nn.Threshold(0.1, 0.0), "threshold"),
    ],
)
def test_every_spelling_is_gated_and_alike(spelling: nn.Module, name: str) -> None:
    torch.manual_seed(0)
    network = Spelled(spelling).double().eval()
    x, e = images(1)
    defended = DefendedCNN(network)
    defended.record(x)
    ours = gradient(defended, e)
    assert dict(defended.coverage.gated) == {name: 1}
    with torch.no_grad():
        h, reference = spelling(network.conv(e)), spelling(network.conv(x))
    z = network.conv(e).detach().requires_grad_()
    head = network.head.weight.detach()[1].reshape(1, 4, 8, 8).expand_as(h)
    at_z = torch.autograd.grad((spelling(z * 1) * gated(head, h, reference)).sum(), z)[0]
    expected = F.conv_transpose2d(at_z, network.conv.weight.detach(), padding=1)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-13)
    assert not torch.equal(ours, gradient(network, e))


def test_result_of_in_place_activation_may_be_ignored() -> None:
    def ignore(x: Tensor) -> Tensor:
        F.relu_(x)
        return x

    def of_a_view(x: Tensor) -> Tensor:
        x[:, :2].relu_()
        x[:, 2:].relu_()
        return x

    torch.manual_seed(0)
    plain = Spelled(F.relu).double().eval()
    x, e = images(2)
    gradients = []
    for activation in (F.relu, ignore, of_a_view):
        plain.activation = activation
        defended = DefendedCNN(plain)
        defended.record(x)
        gradients.append(gradient(defended, e))
    assert torch.equal(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-12, atol=0)


def test_exempt_activation_keeps_the_ordinary_gradient() -> None:
    network = Plain(nn.SiLU()).double().eval()
    x, e = images(0)
    defended = DefendedCNN(network, exempt=["silu"])
    defended.record(x)
    assert torch.equal(gradient(defended, e), gradient(network, e))
    first, exempt, way = str(defended.coverage).splitlines()
    assert first == "0 of 2 nonlinearity calls gated: 2 silu (0 gated)"
    assert exempt == "without a gate: 2 exempt"
    assert "meets no gate" in way


def test_coverage_counts_calls() -> None:
    defended = DefendedCNN(Residual().double().eval())
    defended.record(images(0)[0])
    assert defended.coverage.calls == {"relu": 3}
    assert str(defended.coverage) == "3 of 3 nonlinearity calls gated: 3 relu"


def test_activation_that_cannot_be_intercepted_is_named() -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                return torch.relu(x)

    network = Spelled(Hidden()).double().eval()
    with pytest.raises(UngatedActivationError, match="cannot be: 1 of relu in activation"):
        DefendedCNN(network).record(images(0)[0])
    DefendedCNN(network, exempt=["relu"]).record(images(0)[0])


def test_misuse_is_explained() -> None:
    x, e = images(0)
    defended = DefendedCNN(Plain().double().eval())
    with pytest.raises(RuntimeError, match=r"Expected record\(x\) before the gated pass"):
        defended(e)
    defended.record(x)
    with pytest.raises(RuntimeError, match="same batch size"):
        defended(e[:1])
    defended.to(torch.float32)
    with pytest.raises(RuntimeError, match=r"Expected record\(x\)"):
        defended(e.float())
    with pytest.raises(ValueError, match=r"Expected exempt to name functions .* but got 'softmacks'"):
        DefendedCNN(Plain(), exempt=["softmacks"])


@pytest.mark.parametrize("more", [True, False])
def test_another_path_than_the_reference_pass_raises(more: bool) -> None:
    class Branching(nn.Module):
        calls = 1

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.calls):
                x = F.relu(x)
            return x.flatten(1)

    network = Branching()
    x, e = images(0)
    defended = DefendedCNN(network)
    network.calls = 1 if more else 2
    defended.record(x)
    network.calls = 2 if more else 1
    with pytest.raises(RuntimeError, match=r"takes? (the same|another) path"):
        defended(e)


def test_undefended_is_left_after_an_exception() -> None:
    defended = DefendedCNN(Plain().double().eval())
    with pytest.raises(KeyError), defended.undefended():
        raise KeyError
    assert defended.defended
