"""Layers drawn anew, other seeds, smoothed maps and complexity, beside slow statements of them and Quantus."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from methods import Center, Drawn
from torch import nn
from toy_networks import Tiny

from fgvis_lightning.baselines import RISE, FGVisMethod, Gradient, OtherClass
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.randomization import (
    APART,
    Smoothed,
    another_photo,
    complexity,
    layers,
    output_entropy,
    randomized,
    reseeded,
)
from fgvis_lightning.experiments.sanity_measures import State, Trained, rises, says
from fgvis_lightning.method.tasks import TASKS
from fgvis_lightning.networks.classifier import freeze

X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 3, 1])


@pytest.mark.parametrize("order", ["top_down", "bottom_up"])
def test_layers_are_drawn_anew_in_order(order: Any) -> None:
    network = freeze(Tiny())
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    assert len(layers(network)) == 4  # convolution, batch normalization, convolution, linear layer
    copies = list(randomized(network, 4, 0, order))
    assert [count for count, _ in copies] == [1, 2, 3, 4]
    for count, copy in copies:
        for place, (trained, random) in enumerate(zip(layers(network), layers(copy), strict=True)):
            same = torch.equal(trained.weight, random.weight)  # type: ignore[arg-type]
            assert same == (place < 4 - count if order == "top_down" else place >= count)
    # One more each time: what was random stays as it was drawn.
    first = -1 if order == "top_down" else 0
    assert torch.equal(*(layers(copies[step][1])[first].weight for step in (0, 3)))  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.named_buffers())


def test_drawn_weights_have_the_spread_of_the_trained() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(200, 200)).eval()
    with torch.no_grad():
        network[0].weight.normal_(0.5, 3.0, generator=torch.Generator().manual_seed(0))  # type: ignore[operator]
    ((_, random),) = randomized(network, 1, seed=1)
    weight = random[0].weight.detach()  # type: ignore[index]
    assert float(weight.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(weight.std()) == pytest.approx(3.0, rel=0.02)


class Unusual(nn.Module):
    """Weights under other names than weight and bias, and a buffer that is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.register_buffer("masked", torch.zeros(3, 3), persistent=False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.normed(self.attention(x, x, x, attn_mask=self.masked)[0])


@pytest.mark.parametrize("frozen", [False, True])
def test_all_weights_are_drawn(frozen: bool) -> None:
    torch.manual_seed(0)
    unusual = Unusual().eval()
    with torch.no_grad():  # equal numbers have no spread
        for bias in (unusual.attention.in_proj_bias, unusual.attention.out_proj.bias):
            bias.uniform_(-0.1, 0.1)
    network = freeze(unusual) if frozen else unusual
    (*_, (_, random)) = randomized(network, 3, 0)
    names = dict(unusual.named_parameters())
    drawn = {**dict(random.named_parameters()), **dict(random.named_buffers())}
    assert len(names) == 8
    assert not any(torch.equal(parameter, drawn[name]) for name, parameter in names.items())
    assert torch.equal(drawn["masked"], torch.zeros(3, 3))


def test_initial_weights_are_those_before_training() -> None:
    network, state = Tiny().eval(), torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ((_, random),) = randomized(freeze(network), 1, 3, "bottom_up", "initial")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    for module, drawn in zip(layers(network), layers(random), strict=True):
        module.reset_parameters()  # type: ignore[operator]
        for name, tensor in module.named_parameters():
            assert torch.equal(tensor, getattr(drawn, name))
    norm: Any = random.features[1]  # type: ignore[index]
    assert torch.equal(norm.running_var, torch.ones(8))  # statistics as before training
    torch.set_rng_state(state)
    network.load_state_dict(before)
    partly = list(randomized(freeze(network), 4, 3, "bottom_up", "initial"))
    assert torch.equal(layers(partly[0][1])[0].weight, layers(random)[0].weight)  # type: ignore[arg-type]
    assert torch.equal(layers(partly[2][1])[3].weight, network.head.weight)  # type: ignore[arg-type]


def test_another_seed() -> None:
    assert reseeded(Gradient()) is None
    assert reseeded(Center()) is None
    assert reseeded(RISE(masks=7, seed=3)) == RISE(masks=7, seed=3 + APART)
    assert reseeded(Smoothed(Gradient(), 4)) == Smoothed(Gradient(), 4, seed=APART)
    assert reseeded(OtherClass(Gradient())) is None
    assert reseeded(OtherClass(RISE())) == OtherClass(RISE(seed=APART))
    assert reseeded(Smoothed(RISE(), 4, seed=1)) == Smoothed(RISE(seed=APART), 4, seed=1 + APART)


def test_runs_of_two_seeds_have_no_random_numbers_in_common() -> None:
    """FGVis's runs count on from their seed: by the next seed, all but one would be the same runs."""
    with pytest.raises(InputError, match="1 to 1000"):
        FGVisMethod(seeds=APART + 1, iterations=2)(Tiny().eval(), X[:1], Y[:1])


def test_smoothed_maps_are_means_of_maps_of_noisy_images() -> None:
    network, x = freeze(Tiny()), X.clone()
    state = torch.get_rng_state()
    found = Smoothed(Gradient(), samples=4, noise=0.3, seed=5)(network, x, Y)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, X)
    generator = torch.Generator().manual_seed(5)
    draws = [torch.zeros(3, 16, 16), *(torch.randn(3, 16, 16, generator=generator) for _ in range(3))]
    for image, target, one in zip(X, Y, found, strict=True):
        noisy = [image + 0.3 * (image.max() - image.min()) * draw for draw in draws]
        maps = [Gradient()(network, each[None], target[None])[0].double() for each in noisy]
        torch.testing.assert_close(one.double(), sum(maps) / 4, rtol=1e-4, atol=1e-6)
    alone = Smoothed(Gradient(), samples=4, noise=0.3, seed=5)(network, X[1:2], Y[1:2])
    torch.testing.assert_close(alone, found[1:2], rtol=1e-4, atol=1e-6)
    assert torch.equal(Smoothed(Gradient(), 1)(network, X, Y), Gradient()(network, X, Y))
    with pytest.raises(InputError, match="samples to be 1 or more"):
        Smoothed(Gradient(), 0)
    with pytest.raises(InputError, match="noise to be 0 or more"):
        Smoothed(Gradient(), noise=-1)


def slow_complexity(values: list[float], bins: int) -> float:
    low, high = min(values), max(values)
    counts = [0] * bins
    for value in values:
        place = next(k for k in range(bins) if k == bins - 1 or value < low + (k + 1) * (high - low) / bins)
        counts[place] += 1
    return -sum(count / len(values) * math.log(count / len(values)) for count in counts if count)


def test_complexity_is_the_entropy_of_the_histogram() -> None:
    maps = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(1)).double() ** 3
    found = complexity(maps, 10)
    assert found.tolist() == pytest.approx([slow_complexity(one.flatten().tolist(), 10) for one in maps])
    assert torch.allclose(complexity(7 * maps - 3, 10), found)
    assert complexity(torch.ones(1, 4, 4)).item() == 0
    even = torch.arange(100.0).reshape(1, 10, 10)
    assert complexity(even, 100).item() == pytest.approx(math.log(100))
    spike = torch.zeros(1, 10, 10)
    spike[0, 3, 3] = 1
    assert complexity(spike).item() == pytest.approx(-0.99 * math.log(0.99) - 0.01 * math.log(0.01))


def test_entropy_of_outputs() -> None:
    logits = torch.tensor([[0.0, 0, 0, 0], [50.0, 0, 0, 0]])
    assert output_entropy(logits, TASKS["multiclass"]).tolist() == pytest.approx([math.log(4), 0], abs=1e-12)
    labels = output_entropy(logits, TASKS["multilabel"])
    assert labels.tolist() == pytest.approx([4 * math.log(2), 3 * math.log(2)])
    both = output_entropy(torch.tensor([[3.0, 3.0], [-1.5, 1.5]]), TASKS["binary"])  # two classes, of which one applies
    p = 1 / (1 + math.exp(-3))
    assert both.tolist() == pytest.approx([math.log(2), -p * math.log(p) - (1 - p) * math.log(1 - p)])


def test_each_item_is_paired_with_one_of_another_photo() -> None:
    assert another_photo(["a", "b", "c"]) == [1, 2, 0]
    assert another_photo(["a", "a", "b", "b"]) == [2, 2, 0, 0]
    assert another_photo(["a"]) == another_photo(["a", "a"]) == another_photo([]) == []


def test_what_a_correlation_says() -> None:
    ceiling, floor, unknown = (0.8, 0.7, 0.9), (0.1, 0.0, 0.2), (math.nan,) * 3
    assert says((0.4, 0.3, 0.5), ceiling, floor) == "below the ceiling, above the floor"
    assert says((0.4, 0.15, 0.5), ceiling, floor) == "below the ceiling, not above the floor"
    assert says((0.7, 0.6, 0.71), ceiling, floor) == "not below the ceiling, above the floor"
    assert says((0.4, 0.3, 0.5), ceiling, unknown) == "below the ceiling"
    assert says((1 - 1e-8,) * 3, (1.0, 1.0, 1.0), floor) == "not below the ceiling, above the floor"
    assert says(unknown, ceiling, floor) == "no ranks: a map is constant"
    assert says((0.4, math.nan, math.nan), (1.0, 1.0, 1.0), unknown) == "no verdict from a single image"
    assert says((0.4, 0.3, 0.5), unknown, floor) == "the ceiling is unknown"


# --- Quantus ---


def explained(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> Any:
    maps = Gradient()(model, torch.as_tensor(inputs).float(), torch.as_tensor(targets))
    return maps[:, None].numpy()


@pytest.mark.filterwarnings("ignore")
def test_efficient_mprt_agrees_with_quantus() -> None:
    """On Quantus's random networks, whose layers are reset to their initial distribution."""
    quantus: Any = pytest.importorskip("quantus")
    from quantus.helpers.model.pytorch_model import PyTorchModel

    network = Tiny().eval()
    metric = quantus.EfficientMPRT(
        complexity_func_kwargs={"n_bins": 100}, skip_layers=False, compute_extra_scores=True, disable_warnings=True
    )
    theirs = metric(network, X.numpy(), Y.numpy(), explain_func=explained, device="cpu", channel_first=True)
    follows = metric.scores_extra["scores_correlation_model_vs_explanation_complexity"]

    def states() -> Iterator[State]:
        drawn = PyTorchModel(network, channel_first=True, softmax=True, device="cpu")
        for name, random in drawn.get_random_layer_generator("bottom_up", metric.seed):
            yield State(name, "", name, random.eval(), Y)

    table = rises({"gradient": Gradient()}, Trained(network, X, Y, Y, ["a", "b", "c"]), states, 100)
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["relative rise"] == pytest.approx(np.mean(theirs), rel=1e-5)
    assert row["correlation with the outputs' entropy"] == pytest.approx(np.mean(follows), abs=1e-6)
    assert row["by another seed"] == 0  # there is no seed
    values = quantus.complexity_func.discrete_entropy(X[0, 0].numpy(), X[0].numpy(), n_bins=37)
    assert complexity(X[:1, 0], 37).item() == pytest.approx(float(values), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_smoothed_maps_agree_with_quantus(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same draws. Quantus's Smooth MPRT takes `quantus.explain` whatever ``explain_func`` it is given."""
    quantus: Any = pytest.importorskip("quantus")
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Any:
        return torch.randn(shape[1:], generator=generator)[None].numpy()

    monkeypatch.setattr(np.random, "randn", draw)
    monkeypatch.setattr(quantus, "explain", explained)
    metric = quantus.SmoothMPRT(nr_samples=5, noise_magnitude=0.2, disable_warnings=True, normalise=False, abs=False)
    network = freeze(Tiny())
    theirs = metric.explain_smooth_batch(network, X[:1].numpy(), Y[:1].numpy())
    ours = Smoothed(Gradient(), 5, 0.2, seed=7)(network, X[:1], Y[:1])
    np.testing.assert_allclose(theirs[:, 0], ours.numpy(), rtol=1e-4, atol=1e-6)


def test_maps_by_one_seed_are_alike_whatever_the_network_and_so_are_not_compared() -> None:
    draws = Drawn(seed=0)
    other = reseeded(draws)
    assert other is not None
    network = Tiny().eval()
    assert torch.equal(draws(network, X, Y), draws(Tiny(seed=1).eval(), X, Y))
    assert not torch.equal(draws(network, X, Y), other(network, X, Y))
