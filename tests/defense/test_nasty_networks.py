"""Networks that hide their nonlinearities: gated all the same, or refused by name."""

from __future__ import annotations

import gc
import operator
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toy_networks import Plain, Spelled

from fgvis_lightning import DefendedCNN, InputError
from fgvis_lightning.defense.checks import UngatedActivationError
from fgvis_lightning.defense.coverage import Coverage
from fgvis_lightning.networks.classifier import freeze

Function = Callable[[Tensor], Tensor]


def images(shape: tuple[int, ...] = (2, 3, 8, 8)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, x * torch.rand(shape, generator=generator, dtype=torch.float64)


def gradient(network: nn.Module, e: Tensor) -> Tensor:
    e = e.detach().clone().requires_grad_()
    return torch.autograd.grad(network(e)[:, 1].sum(), e)[0]


def spelled(activation: Function) -> nn.Module:
    torch.manual_seed(0)
    return Spelled(activation).double().eval()


def gated_gradient(network: nn.Module, **options: Any) -> Tensor:
    x, e = images()
    defended = DefendedCNN(network, **options)
    defended.record(x)
    assert torch.equal(gradient(defended, x), gradient(network, x))
    return gradient(defended, e)


class Swish(nn.Module):
    """An activation written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class SwishFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradients[0] * (s + x * s * (1 - s))


class Mul(SwishFunction):
    """Its node in autograd's graph is called as that of a product."""


class CustomSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = SwishFunction.apply(x)
        return output


class Norm(nn.Module):
    """A layer norm written by hand, with a clamp in it."""

    def forward(self, x: Tensor) -> Tensor:
        variance = (x - x.mean(1, keepdim=True)).pow(2).mean(1, keepdim=True)
        return (x - x.mean(1, keepdim=True)) / variance.clamp(min=1e-6).sqrt()


def changed(x: Tensor, change: Function) -> Tensor:
    h = x.clone()
    change(h)
    return h


def swish_of_a_part(h: Tensor) -> Tensor:
    h[:, :2] *= torch.sigmoid(h[:, :2])
    return h


def in_a_thread(x: Tensor) -> Tensor:
    results = []
    thread = threading.Thread(target=lambda: results.append(torch.relu(x)))
    thread.start()
    thread.join()
    return results[0]


def survives_an_error(x: Tensor) -> Tensor:
    with suppress(TypeError):
        torch.relu(None)  # type: ignore[arg-type]
    return torch.relu(x)


def without_interception(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return torch.relu(x)


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (without_interception, r"1 of relu"),
        (in_a_thread, r"1 of relu"),
        (lambda x: x * torch.sigmoid(x), "1 of mul of a tensor with a function of itself"),
        (lambda x: x * F.relu6(x + 3) / 6, "1 of mul of a tensor with a function of itself"),
        (lambda x: x * x, "1 of mul of a tensor with a function of itself"),
        (lambda x: x**2, "1 of pow"),
        (lambda x: x.abs(), "1 of abs"),
        (lambda x: torch.maximum(x, 0.1 * x), "1 of maximum"),
        (lambda x: torch.where(x > 0, x, 0.1 * x), "1 of gt|1 of where"),
        (lambda x: x * (x > 0), "1 of gt"),
        (lambda x: x / (1 + x.mean((1, 2, 3), keepdim=True)), "1 of div by values that depend on the image"),
        (torch.erf, "1 of erf"),
        (lambda x: SwishFunction.apply(x), "custom autograd function .*SwishFunction"),
        (lambda x: Mul.apply(x), "custom autograd function .*Mul"),
        (lambda x: checkpoint(torch.relu, x, use_reentrant=True), "a reentrant checkpoint"),
        (Norm(), "(pow|sqrt|div)"),
        # in place, on a part
        (lambda x: changed(x, lambda h: h[:, :2].abs_()), "1 of abs"),
        (lambda x: changed(x, lambda h: h.view(-1).pow_(2)), "1 of pow"),
        (lambda x: changed(x, lambda h: h.flatten(1).exp_()), "1 of exp"),
        (lambda x: changed(x, lambda h: operator.ipow(h[:, :2], 2)), "1 of pow"),
        (lambda x: changed(x, lambda h: operator.imod(h[:, :2], 1)), "1 of remainder"),
        (lambda x: changed(x, lambda h: operator.itruediv(h[:, :2], 2 + h.mean())), "1 of div by values that depend"),
        (lambda x: changed(x, lambda h: operator.imul(h[:, :2], h[:, :2])), "1 of mul of a tensor with a function"),
        (lambda x: changed(x, swish_of_a_part), "1 of mul of a tensor with a function of itself"),
        (lambda x: torch.cat([x.split(2, 1)[0] * x.split(2, 1)[0].sigmoid()] * 2, 1), "1 of mul of a tensor with a"),
        # by values that autograd takes for constants
        (lambda x: x * (x.detach() > 0), "1 of gt"),
        (lambda x: x * (x.data > 0), "1 of gt"),
        (lambda x: x.masked_fill(x.detach() * 2 < 0, 0), "1 of lt"),
        (lambda x: x + (x.sign() - x).detach(), "1 of sign"),
        (lambda x: x + (x.detach().round() - x.detach()), "1 of round"),
        (lambda x: x * x.int(), "1 of _to_copy"),
        # in other shapes
        (lambda x: x * x.flatten(1).sigmoid().view(x.shape), "1 of mul of a tensor with a function of itself"),
        (lambda x: torch.addcmul(torch.zeros(()).double(), x, x), "1 of mul of a tensor with a function of itself"),
        (lambda x: torch.einsum("bchw,bchw->bchw", x, x), "1 of mul of a tensor with a function of itself"),
    ],
)
def test_what_cannot_be_gated_is_refused_by_name(activation: Function, message: str) -> None:
    network = spelled(activation)
    defended = DefendedCNN(network)
    with pytest.raises(UngatedActivationError, match=message):
        defended.record(images()[0])
    with pytest.raises(RuntimeError, match=r"Expected a reference pass before"):
        defended(images()[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h[:, :2].add_(1),
        lambda h: h[:, :2].mul_(2).sub_(1),
        lambda h: h.view(-1).copy_(2 * h.view(-1)),
        lambda h: h[:, 1:].relu_(),
        lambda h: h[:, 1:].zero_(),
        lambda h: h[:, :1].squeeze_(1).unsqueeze_(1).mul_(2),
        lambda h: h[:, :2].transpose_(2, 3).mul_(2),
    ],
)
def test_linear_changes_of_a_part_are_no_nonlinearities(change: Function) -> None:
    gated_gradient(spelled(lambda x: torch.relu(changed(x, change))))


def test_products_of_two_parts_are_no_activations() -> None:
    """A gated linear unit, in two spellings."""
    sliced = gated_gradient(spelled(lambda x: torch.cat([x[:, :2] * x[:, 2:].sigmoid()] * 2, 1)))
    split = gated_gradient(spelled(lambda x: torch.cat([x.split(2, 1)[0] * x.split(2, 1)[1].sigmoid()] * 2, 1)))
    assert torch.equal(sliced, split)


class Compares(nn.Module):
    """Compares its weights, and constants of the image's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x)) * (torch.ones_like(x[:, :1, 2:, 2:]).cumsum(3) > 2)
        return (h * (self.conv.weight.mean((1, 2, 3)) > -1)[:, None, None]).mean((2, 3)) * (h.new_ones(4) > 0)


def test_comparisons_of_constants_are_no_nonlinearities() -> None:
    DefendedCNN(freeze(Compares())).record(torch.rand(1, 3, 8, 8))


class Forks(nn.Module):
    """Takes another path for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return (h.abs() if x.mean() > 0 else torch.relu(h)).mean((2, 3))


def test_each_path_through_the_network_is_checked() -> None:
    defended = DefendedCNN(Forks().eval())
    defended.record(-torch.ones(1, 3, 8, 8))
    with pytest.raises(UngatedActivationError, match="1 of abs"):
        defended.record(torch.ones(1, 3, 8, 8))


def test_batch_statistics_are_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten())
    with pytest.raises(InputError, match=r"1 \(BatchNorm2d\) of Sequential uses statistics of the batch"):
        DefendedCNN(network.eval()).record(torch.rand(2, 3, 8, 8))


def test_weights_that_train_do_not_count_as_depending_on_the_image() -> None:
    """The same gates whether the network is frozen or not, and its weights stay trainable."""
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=4, img_size=32).eval()
    x = torch.rand(2, 3, 32, 32)
    found = []
    for own in (network, freeze(network)):
        defended = DefendedCNN(own)
        defended.record(x)
        found.append((defended.coverage.gated, gradient(defended, 0.5 * x)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_part_of_a_network_without_autocast() -> None:
    class Exact(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.conv2(self.act(self.conv1(x))))
            with torch.autocast("cpu", enabled=False):
                return self.head(x.float().flatten(1))

    network = freeze(Exact(size=8))
    defended, x = DefendedCNN(network), torch.rand(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(defended.record(x), network(x))


def test_closed_gates_of_tokens_before_images() -> None:
    """A sequence first, as nn.TransformerEncoder takes it: shares are not those of other images."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.head = nn.Linear(3, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.into(x.flatten(2).permute(2, 0, 1))).mean(0))

    torch.manual_seed(0)
    defended, x = DefendedCNN(Tokens().eval()), torch.rand(4, 3, 4, 4)
    defended.record(x)
    e = x.clone()
    e[1] *= 2
    assert (defended.closed(e) == defended.closed(e)[0]).all(), "they cannot be told apart, so all have their mean"
    assert 0 < defended.closed(e)[0] < 0.25


def test_an_activation_of_a_single_number() -> None:
    defended, x = DefendedCNN(spelled(lambda x: torch.relu(x) * torch.sigmoid(x.mean()))), images()[0]
    defended.record(x)
    assert defended.closed(0.5 * x).shape == (2, 2)


def test_modules_and_functions_called_by_keyword() -> None:
    """As without keywords."""

    class Named(nn.Module):
        def __init__(self, named: bool) -> None:
            super().__init__()
            self.swish, self.named = Swish(), named

        def forward(self, x: Tensor) -> Tensor:
            h = self.swish(x=x) if self.named else self.swish(x)
            part = h.clone()
            torch.relu_(input=part[:, 1:]) if self.named else torch.relu_(part[:, 1:])
            return part

    named, plain = (gated_gradient(spelled(Named(flag)), gated=[Swish]) for flag in (True, False))
    assert torch.equal(named, plain)


def test_scripted_code_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Sigmoid()))
    with pytest.raises(InputError, match="Expected a Python module, but activation is scripted, traced or exported"):
        DefendedCNN(spelled(scripted))
    for _ in range(3):  # from the third call on it runs as one node of autograd's graph
        with pytest.raises(InputError, match="Expected every nonlinearity of Spelled to be gated"):
            DefendedCNN(spelled(lambda x: scripted(x))).record(images()[0])


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_code_is_gated_or_refused(whole: bool) -> None:
    expected = gated_gradient(spelled(nn.ReLU()))
    network = spelled(nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        if whole:
            network = torch.compile(network, backend="aot_eager")  # type: ignore[assignment]
        else:
            network = spelled(torch.compile(nn.ReLU(), backend="aot_eager"))
        # Whether the compiler sees the interceptor and steps back is its own affair.
        try:
            ours = gated_gradient(network)
        except UngatedActivationError:
            return
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("activation", "same"),
    [
        (nn.Sequential(nn.Identity(), nn.ReLU()), torch.relu),
        (lambda x: checkpoint(torch.relu, x, use_reentrant=False), torch.relu),
        (lambda x: torch.cat([F.relu(half) for half in x.chunk(2, 1)], 1), torch.relu),
        (lambda x: F.relu_(x.view(-1)).view(x.shape), torch.relu),
        (lambda x: F.silu(x).add_(x), lambda x: F.silu(x) + x),
        (nn.Sequential(*[nn.ReLU()] * 5), torch.relu),
        (survives_an_error, torch.relu),
    ],
)
def test_every_way_to_call_an_activation_is_gated_alike(activation: Function, same: Function) -> None:
    torch.testing.assert_close(gated_gradient(spelled(activation)), gated_gradient(spelled(same)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("module", [Swish(), CustomSwish()])
def test_module_listed_as_gated_is_one_activation(module: nn.Module) -> None:
    name = f"{__name__}.{type(module).__name__}"
    network = spelled(module)
    torch.testing.assert_close(
        gated_gradient(network, gated=[name]), gated_gradient(spelled(F.silu)), rtol=1e-12, atol=1e-14
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    defended = DefendedCNN(network, gated=[name])
    defended.record(images()[0])
    assert defended.coverage.calls == {type(module).__name__: 1}


def test_module_listed_as_gated_may_return_a_mapping() -> None:
    class Named(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            output: Any = self.inner(x)
            return output["h"]

    class Activation(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"h": F.silu(x)}

    named = gated_gradient(spelled(Named(Activation())), gated=[Activation])
    assert torch.equal(named, gated_gradient(spelled(F.silu)))


def test_function_listed_as_gated_is_an_activation() -> None:
    _, e = images()
    network = spelled(torch.abs)
    assert not torch.equal(gated_gradient(network, gated=["abs"]), gradient(network, e))


def test_exempt_has_the_ordinary_gradient() -> None:
    _, e = images()
    for activation, exempt in (
        (Swish(), ["mul", "sigmoid"]),
        (torch.erf, ["erf"]),
        (Norm(), [f"{__name__}.Norm"]),
        (CustomSwish(), [SwishFunction]),
    ):
        network = spelled(activation)
        assert torch.equal(gated_gradient(network, exempt=exempt), gradient(network, e))


@pytest.mark.parametrize("entry", ["no_such_function", "no.such.module", "collections.OrderedDict"])
@pytest.mark.parametrize("option", ["exempt", "gated"])
def test_entries_that_name_nothing_are_refused(entry: str, option: str) -> None:
    with pytest.raises(InputError, match=f"Expected {option} to name .* but got"):
        DefendedCNN(Plain(), **{option: [entry]})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nothing in common"):
        DefendedCNN(Plain(), exempt=["relu"], gated=["relu"])


def test_hook_that_replaces_outputs_is_part_of_the_network() -> None:
    network, same = spelled(nn.ReLU()), spelled(lambda x: torch.tanh(F.relu(x)))
    calls = network.activation.register_forward_hook(lambda module, inputs, output: torch.tanh(output))  # type: ignore
    assert torch.equal(gated_gradient(network), gated_gradient(same))
    calls.remove()
    network.activation.register_full_backward_hook(lambda module, before, after: None)  # type: ignore[union-attr]
    assert torch.equal(gated_gradient(network), gated_gradient(spelled(F.relu)))


def test_two_threads_explain_one_network() -> None:
    torch.manual_seed(0)
    network = Plain(nn.SiLU()).double().eval()
    expected, results = gated_gradient(network), []
    threads = [threading.Thread(target=lambda: results.append(gated_gradient(network))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_channels_last(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Plain(nn.GELU()).eval().to(memory_format=torch.channels_last)
    x = images()[0].float().contiguous(memory_format=torch.channels_last)
    defended = DefendedCNN(network)
    with torch.autocast("cpu", dtype=dtype):
        defended.record(x)
        defended.verify(x)
        assert torch.equal(gradient(defended, x), gradient(network, x))
        with pytest.raises(InputError, match=r"Expected every gate to be open on the image itself.*memory format"):
            defended.verify(x + 1e-2 * x.abs())


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), r"activation.1 \(Dropout\) is in training mode"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), r"activation.1 \(BatchNorm2d\) is in training mode"),
        (lambda x: F.dropout(F.relu(x), 0.5), "draws random numbers: 1 of (bernoulli|native_dropout)"),
        (lambda x: F.relu(x) * torch.rand(len(x), 1, 1, 1, dtype=x.dtype), "draws random numbers: 1 of rand"),
    ],
)
def test_networks_that_are_not_deterministic_are_refused(activation: Function, message: str) -> None:
    network = spelled(activation).train()
    with pytest.raises(InputError, match=message):
        DefendedCNN(network).record(images()[0])


def test_state_in_the_network_is_refused() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return F.relu(x + 0.1 * self.calls)

    with pytest.raises(
        InputError, match=r"1 of 1 layers have closed gates, first relu in activation \(.* does not compute"
    ):
        DefendedCNN(spelled(Counting())).record(images()[0])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_record_where_gradients_are_off(mode: Callable[[], Any]) -> None:
    x, e = images()
    network = spelled(F.relu)
    defended = DefendedCNN(network)
    with mode():
        logits = defended.record(x)
        assert torch.equal(logits, network(x))
        assert torch.equal(defended(e), network(e))
    assert torch.equal(gradient(defended, e), gated_gradient(network))


def test_network_that_detaches_is_refused() -> None:
    with pytest.raises(InputError, match="to depend on the image through operators that have a gradient"):
        DefendedCNN(spelled(lambda x: F.relu(x).detach())).record(images()[0])


class Outputs(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


class ModelOutput(OrderedDict[str, Tensor]):
    """As HuggingFace's: a mapping with attributes."""


class WithAttributes:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda y: Outputs(y, y[:1]), None),
        (lambda y: {"aux": y[:1], "logits": y}, None),
        (lambda y: ModelOutput(logits=y), None),
        (WithAttributes, None),
        (lambda y: (y[:1], y), 1),
        (lambda y: [y, y[:1]], 0),
        (lambda y: {"out": y}, "out"),
    ],
)
def test_logits_among_several_outputs(wrap: Callable[[Tensor], Any], output: str | int | None) -> None:
    class Several(Plain):
        def forward(self, x: Tensor) -> Any:
            return wrap(super().forward(x))

    x, e = images()
    several, plain = Several().double().eval(), Plain().double().eval()
    several.load_state_dict(plain.state_dict())
    ours, theirs = DefendedCNN(several, output=output), DefendedCNN(plain)
    assert torch.equal(ours.record(x), theirs.record(x))
    assert torch.equal(gradient(ours, e), gradient(theirs, e))
    with pytest.raises(InputError, match=r"Expected the logits of Several in its output 'nowhere', .*Choose"):
        DefendedCNN(several, output="nowhere").record(x)
    with pytest.raises(InputError, match="but it has one tensor"):
        DefendedCNN(plain, output=0).record(x)


def test_coverage_names_layers_and_measures_closed_gates() -> None:
    x, e = images()
    network = Plain().double().eval()
    defended = DefendedCNN(network)
    defended.record(x)
    assert [(layer.name, layer.module) for layer in defended.coverage.layers] == [("relu", "act"), ("relu", "act")]
    closed = defended.closed(e)
    first = torch.relu(network.conv1(x)), torch.relu(network.conv1(e))
    assert closed[:, 0].tolist() == pytest.approx((first[1] > first[0]).double().mean((1, 2, 3)).tolist())
    assert "closed gates: act" in str(defended.coverage)
    again = Coverage.from_json(defended.coverage.to_json(1))
    assert again.layers == defended.coverage.layers
    assert again.closed is not None
    torch.testing.assert_close(again.closed[0], closed[1].float(), rtol=0, atol=1e-6)


def test_nothing_is_left_behind() -> None:
    """200 rounds, every second of which raises: no memory, no hooks."""
    x, e = (image.float() for image in images((2, 3, 32, 32)))
    torch.manual_seed(0)

    class Moody(Plain):
        angry = False

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.conv1(x))
            if self.angry:
                raise KeyError
            return self.head(self.act(self.conv2(x)).flatten(1))

    network = Moody(Swish(), size=32).eval()

    def count() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    defended = DefendedCNN(network, gated=[f"{__name__}.Swish"])
    before = 0
    for number in range(200):
        network.angry = bool(number % 2)
        try:
            defended.record(x)
            gradient(defended, e)
        except KeyError:
            assert network.angry
        if number == 19:
            before = count()
    assert count() <= before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
