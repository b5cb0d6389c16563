from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from references import ACTIVATIONS, RULES, gated, plain_gradient, residual_gradient
from torch import Tensor, nn
from toy_networks import Plain, Residual, Spelled

from fgvis_lightning import DefendedCNN, InputError
from fgvis_lightning.defense.checks import UngatedActivationError
from fgvis_lightning.defense.gates import Range, gate
from fgvis_lightning.method import gates

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
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_equals_slow_reference(activation: str, rule: str, seed: int) -> None:
    torch.manual_seed(seed)
    network = Plain(copy.deepcopy(ACTIVATIONS[activation][0])).double().eval()
    x, e = images(seed)
    defended = DefendedCNN(network, gate=rule)
    defended.record(x)
    ours = gradient(defended, e)
    torch.testing.assert_close(ours, plain_gradient(network, activation, x, e, 1, rule), rtol=1e-9, atol=1e-12)
    assert not torch.equal(ours, gradient(network, e)), "no gate was closed: the test shows nothing"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_gates_of_a_kept_graph_work_again(activation: str, rule: str) -> None:
    """Only the last pass may overwrite what a gate has kept for it."""
    torch.manual_seed(0)
    network = Plain(copy.deepcopy(ACTIVATIONS[activation][0])).double().eval()
    x, e = images(0)
    defended = DefendedCNN(network, gate=rule)
    defended.record(x)
    e.requires_grad_()
    logits = defended(e)
    passes = [torch.autograd.grad(logits[:, 1].sum(), e, retain_graph=kept)[0] for kept in (True, True, False)]
    once = gradient(defended, e)
    assert all(torch.equal(found, once) for found in passes)
    assert not torch.equal(once, gradient(network, e)), "no gate was closed: the test shows nothing"


@pytest.mark.parametrize("rule", RULES)
def test_passes_for_several_classes_at_once(rule: str) -> None:
    torch.manual_seed(0)
    network = Plain(nn.GELU()).double().eval()
    x, e = images(0)
    defended = DefendedCNN(network, gate=rule)
    defended.record(x)
    e.requires_grad_()
    logits = defended(e)
    classes = torch.eye(logits.shape[1], dtype=e.dtype)[:, None].expand(-1, *logits.shape)
    (together,) = torch.autograd.grad(logits, e, classes, is_grads_batched=True)
    torch.testing.assert_close(together, torch.stack([gradient(defended, e, k) for k in range(len(classes))]))


@settings(max_examples=8, deadline=None)
@given(seed=seeds)
@pytest.mark.parametrize("rule", RULES)
def test_reused_in_place_activation_equals_slow_reference(rule: str, seed: int) -> None:
    torch.manual_seed(seed)
    network = Residual().double().eval()
    x, e = images(seed)
    defended = DefendedCNN(network, gate=rule)
    defended.record(x)
    torch.testing.assert_close(gradient(defended, e), residual_gradient(network, x, e, 1, rule), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("network", [Plain(), Plain(nn.SiLU()), Residual()], ids=["relu", "silu", "residual"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_at_the_image_the_gradient_is_the_ordinary_one(network: nn.Module, dtype: torch.dtype, rule: str) -> None:
    network = network.to(dtype).eval()
    x, _ = images(0, dtype)
    defended = DefendedCNN(network, gate=rule)
    logits = defended.record(x)
    assert torch.equal(defended(x), logits)
    assert torch.equal(gradient(defended, x), gradient(network, x))


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()], ids=["relu", "tanh"])
def test_gates_do_not_depend_on_subnormal_numbers(activation: nn.Module, rule: str, flush: bool) -> None:
    torch.manual_seed(0)
    network = Plain(activation).eval()
    x, e = images(0, torch.float32)
    defended = DefendedCNN(network, gate=rule)
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


def through_gate(gradient: Tensor, h: Tensor, reference: Tensor, rule: str, nonnegative: bool) -> Tensor:
    leaf = h.clone().requires_grad_()
    output = leaf.clone()
    gate(output, reference if nonnegative else Range(reference), rule)
    output.backward(gradient)
    assert leaf.grad is not None
    return leaf.grad


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(width=32, allow_nan=False)] * 2, st.floats(width=32) | st.just(float("inf"))),
        min_size=1,
        max_size=40,
    )
)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("nonnegative", [False, True])
def test_gate_selects_and_never_makes_nan(
    nonnegative: bool, rule: str, triples: list[tuple[float, float, float]]
) -> None:
    h, reference, incoming = torch.tensor(triples).unbind(1)
    if nonnegative:
        h, reference = h.abs(), reference.abs()
    passed = through_gate(incoming, h, reference, rule, nonnegative)
    assert_same(passed, gated(incoming, h, reference, rule).float())
    assert_same(passed, gates.RULES[rule](incoming, h, reference))
    assert not (passed.isnan() & ~incoming.isnan()).any()
    excess = gates.excess(h, reference)
    assert ((excess == 0) == ((h <= reference.clamp(min=0)) & (h >= reference.clamp(max=0)))).all()
    if rule == "strict":
        assert (passed[excess != 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sign", [1, -1])
def test_one_bit_outside_the_range_closes_the_gate(sign: int, rule: str, dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    within = torch.tensor([0.0, smallest, 1.0, 1024.0], dtype=dtype)
    outside = torch.nextafter(within, torch.full_like(within, 2048.0))
    reference, further = sign * within, -sign * torch.ones_like(within)
    for nonnegative in {False, sign > 0}:
        for h, gradient, passes in (
            (reference, further, True),
            (sign * outside, further, False),
            (sign * outside, further * smallest, False),
            (sign * outside, -further, rule == "restoring"),
            (sign * outside, -further * smallest, rule == "restoring"),
        ):
            assert_same(through_gate(gradient, h, reference, rule, nonnegative), gradient * passes)


def test_strict_is_the_indicator_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    h, reference, incoming = torch.randn(3, 1000, generator=generator)
    indicator = (h <= torch.maximum(torch.tensor(0), reference)) & (h >= torch.minimum(torch.tensor(0), reference))
    assert torch.equal(gates.strict(incoming, h, reference), incoming * indicator)


@pytest.mark.parametrize(
    ("activation", "sign", "slope"),
    [(nn.ReLU(), 1, 1.0), (nn.ReLU6(), 1, 1.0), (nn.LeakyReLU(0.5), 1, 1.0), (nn.LeakyReLU(0.5), -1, 0.5)],
)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("back", [True, False])
def test_only_a_restoring_gate_lets_a_neuron_come_back(
    back: bool, rule: str, fused: bool, activation: nn.Module, sign: int, slope: float
) -> None:
    """Two steps: the first neuron is outside its range, the second inside. In these numbers nothing is rounded."""
    head = nn.Linear(2, 1, bias=False)
    head.weight = nn.Parameter(sign * torch.tensor([[1.0 if back else -1.0, -1.0]]))
    network = nn.Sequential(activation, head)
    x, e = sign * torch.tensor([[1.0, 2.0]]), sign * torch.tensor([[3.0, 1.0]])
    defended = DefendedCNN(network, gate=rule, fused=fused)
    defended.record(x)
    for _ in range(2):
        e = e - gradient(defended, e, target=0)  # minimizes the logit
    came_back = 2 * slope if back and rule == "restoring" else 0
    assert (sign * e).flatten().tolist() == [3 - came_back, 1 + 2 * slope]


def test_unknown_gate_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"one of strict, restoring, but got 'restore'\. Nearest: restoring"):
        DefendedCNN(Plain(), gate="restore")
    with pytest.raises(InputError, match=r"but got 'Strickt'\. Nearest: strict"):
        DefendedCNN(Plain(), gate="Strickt")


def test_strict_is_the_default() -> None:
    assert DefendedCNN(Plain()).gate == "strict"


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
@pytest.mark.parametrize("rule", RULES)
def test_every_spelling_is_gated_and_alike(spelling: nn.Module, name: str, rule: str) -> None:
    torch.manual_seed(0)
    network = Spelled(spelling).double().eval()
    x, e = images(1)
    defended = DefendedCNN(network, gate=rule)
    defended.record(x)
    ours = gradient(defended, e)
    assert dict(defended.coverage.gated) == {name: 1}
    with torch.no_grad():
        h, reference = spelling(network.conv(e)), spelling(network.conv(x))
    z = network.conv(e).detach().requires_grad_()
    head = network.head.weight.detach()[1].reshape(1, 4, 8, 8).expand_as(h)
    at_z = torch.autograd.grad((spelling(z * 1) * gated(head, h, reference, rule)).sum(), z)[0]
    expected = F.conv_transpose2d(at_z, network.conv.weight.detach(), padding=1)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-13)
    assert not torch.equal(ours, gradient(network, e))


@pytest.mark.parametrize("rule", RULES)
def test_result_of_in_place_activation_may_be_ignored(rule: str) -> None:
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
        defended = DefendedCNN(plain, gate=rule)
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
    assert "has no gate" in way


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
    with pytest.raises(RuntimeError, match=r"Expected a reference pass before the gated pass"):
        defended(e)
    defended.record(x)
    with pytest.raises(RuntimeError, match="same batch size"):
        defended(e[:1])
    defended.to(torch.float32)
    with pytest.raises(RuntimeError, match="Expected a reference pass"):
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
    with pytest.raises(RuntimeError, match=r"the same path|different paths"):
        defended(e)


def test_undefended_is_left_after_an_exception() -> None:
    defended = DefendedCNN(Plain().double().eval())
    with pytest.raises(KeyError), defended.undefended():
        raise KeyError
    assert defended.defended


def test_another_memory_format_is_converted_and_another_type_refused() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()
    defended = DefendedCNN(network)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for before, after in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
        defended.record(x.contiguous(memory_format=before))
        e = x.contiguous(memory_format=after).requires_grad_()
        (gradient,) = torch.autograd.grad(defended(e)[:, 0].sum(), e)
        (plain,) = torch.autograd.grad(network(e)[:, 0].sum(), e)
        torch.testing.assert_close(gradient, plain)  # on the image itself all gates are open
    with pytest.raises(InputError, match=r"torch\.float32 on cpu, autocast off, but got torch\.float64 on"):
        defended(x.double())
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(InputError, match=r"autocast off, but got torch\.float32 on cpu, autocast torch\.bfloat16"),
    ):
        defended(x)
