from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import pytest
import torch
from test_metrics_curves import batch, small
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics import (
    PROFILES,
    ROAD,
    AdversarialRate,
    AverageDrop,
    AverageIncrease,
    ClassKept,
    Conciseness,
    Connectedness,
    DeletionAUC,
    Discrimination,
    EnergyPointingGame,
    Infidelity,
    InsertionAUC,
    MaxSensitivity,
    NewEdges,
    PointingGame,
    RankCorrelation,
    ScorePreserved,
    SensitivityN,
    Sparsity,
    auc,
    curves,
)
from fgvis_lightning.metrics.discrimination import summarize

NETWORK = small(24, 24)


def contrast(x: Tensor, targets: Tensor) -> Tensor:
    """A map that depends on the image."""
    return x.square().mean(1)


MADE: dict[str, Callable[[], Metric]] = {
    "DeletionAUC": lambda: DeletionAUC(NETWORK),
    "InsertionAUC": lambda: InsertionAUC(NETWORK, "xplique", batch_size=5),
    "SensitivityN": lambda: SensitivityN(NETWORK, (0.1, 0.5), subsets=6, batch_size=5),
    "Infidelity": lambda: Infidelity(NETWORK, samples=6, batch_size=4),
    "MaxSensitivity": lambda: MaxSensitivity(contrast, samples=3),
    "ROAD": lambda: ROAD(NETWORK, (0.2, 0.7), batch_size=5),
    "PointingGame": lambda: PointingGame(5, tolerance=6),
    **{
        kind.__name__: kind
        for kind in (
            AdversarialRate,
            AverageDrop,
            AverageIncrease,
            ClassKept,
            Conciseness,
            Connectedness,
            Discrimination,
            EnergyPointingGame,
            NewEdges,
            RankCorrelation,
            ScorePreserved,
            Sparsity,
        )
    },
}


def inputs(name: str, count: int = 7) -> tuple[Any, ...]:
    """What `update` takes for some images; each is a tensor or a list over them."""
    generator = torch.Generator().manual_seed(0)
    x, saliency, targets = batch(count, 24, 24)
    scores = torch.rand(2, count, generator=generator)
    masks = torch.rand(count, 24, 24, generator=generator) < 0.01
    logits = torch.randn(count, 5, generator=generator)
    dots = masks[:, None].float().repeat(1, 3, 1, 1)
    remaining = [torch.rand(size, size, generator=generator) for size in (2, 3, 2, 4, 2, 3, 2)][:count]
    if name in ("DeletionAUC", "InsertionAUC", "ROAD", "SensitivityN", "Infidelity"):
        return x, saliency, targets
    if name == "MaxSensitivity":
        return x, targets
    if name in ("ScorePreserved", "AverageDrop", "AverageIncrease"):
        return tuple(scores)
    return {
        "ClassKept": (logits, targets),
        "AdversarialRate": (logits, targets),
        "Conciseness": (*scores, x * masks[:, None], x),
        "Sparsity": (torch.rand(count, 3, 24, 24, generator=generator),),
        "Connectedness": (saliency.clamp(min=0),),
        "PointingGame": (saliency, masks, targets),
        "EnergyPointingGame": (saliency, masks),
        "NewEdges": (dots, dots.flip(3)),
        "RankCorrelation": (saliency, x[:, 0]),
        "Discrimination": (remaining,),
    }[name]


def part(values: tuple[Any, ...], start: int, stop: int) -> tuple[Any, ...]:
    return tuple(value[start:stop] for value in values)


def numbers(metric: Metric) -> Tensor:
    value = metric.compute()
    return torch.stack(list(value.values())) if isinstance(value, dict) else value


@pytest.mark.parametrize("name", MADE)
def test_parts_make_the_whole(name: str) -> None:
    values = inputs(name)
    whole, steps, first, second = (MADE[name]() for _ in range(4))
    whole.update(*values)
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        steps.update(*part(values, start, stop))
    first.update(*part(values, 0, 5))
    second.update(*part(values, 5, 7))
    torch.testing.assert_close(numbers(steps), numbers(whole))
    first.merge_state(second)
    torch.testing.assert_close(numbers(first), numbers(whole))
    whole.reset()
    whole.update(*part(values, 5, 7))
    torch.testing.assert_close(numbers(whole), numbers(second))


@pytest.mark.parametrize("name", MADE)
def test_two_processes_make_the_whole(name: str) -> None:
    values = inputs(name)
    whole, other = MADE[name](), MADE[name]()
    whole.update(*values)
    other.update(*part(values, 5, 7))
    mine = MADE[name]()
    states = list(mine._reductions)
    gathered = iter(states)
    # What torchmetrics asks the other processes for, one state after the other.
    mine.dist_sync_fn = lambda state, group=None: [state, getattr(other, next(gathered))]
    mine.distributed_available_fn = lambda: True
    mine.update(*part(values, 0, 5))
    torch.testing.assert_close(numbers(mine), numbers(whole))
    mine.distributed_available_fn = lambda: False
    mine.update(*part(values, 5, 7))
    torch.testing.assert_close(numbers(mine), numbers(whole), msg="its own state is as before")


@pytest.mark.parametrize("name", MADE)
def test_flags(name: str) -> None:
    metric = MADE[name]()
    lower = name in ("DeletionAUC", "AverageDrop", "AdversarialRate", "NewEdges", "Infidelity", "MaxSensitivity")
    assert metric.higher_is_better is not lower
    assert metric.is_differentiable is False
    assert metric.full_state_update is False
    assert not list(metric.children())
    assert not list(metric.parameters())
    assert not metric.state_dict()
    values = inputs(name)
    metric.update(*values)
    for same in (pickle.loads(pickle.dumps(metric)), metric.clone()):
        torch.testing.assert_close(numbers(same), numbers(metric))


@pytest.mark.parametrize("name", ["Sparsity", "PointingGame", "Discrimination"])
def test_plot(name: str) -> None:
    mpl.use("agg")
    from matplotlib import pyplot as plt

    metric = MADE[name]()
    metric.update(*inputs(name))
    figure, _ = metric.plot()
    assert figure.axes
    plt.close("all")


def test_curves_of_a_profile() -> None:
    x, saliency, targets = batch(3, 24, 24)
    for profile in ("rise", PROFILES["degradation"]):
        expected = [auc(scores, profile).mean() for scores in curves(NETWORK, x, saliency, targets, profile)]
        found = DeletionAUC(NETWORK, profile), InsertionAUC(NETWORK, profile)
        for metric, value in zip(found, expected, strict=True):
            assert float(metric(x, saliency, targets)) == pytest.approx(float(value), rel=1e-6)
    assert DeletionAUC(NETWORK).profile.describe()["profile"] == "rise"


def test_numbers_by_hand() -> None:
    explanation, image = torch.tensor([0.5, 0.9]), torch.tensor([1.0, 0.6])
    assert ScorePreserved()(explanation, image).item() == pytest.approx(1.0)
    assert AverageDrop()(explanation, image).item() == 0.25
    assert AverageIncrease()(explanation, image).item() == 0.5
    logits = torch.tensor([[0.0, 1], [1, 0], [1, 0], [0, 1]])
    assert ClassKept()(logits, torch.tensor([1, 0, 0, 0])).item() == 0.75
    assert AdversarialRate()(logits, torch.tensor([0, 1, 1, 1])).item() == 0.25
    assert Sparsity()(torch.full((2, 3, 4, 4), 0.25)).item() == 0.75
    assert Connectedness()(torch.tensor([[[1.0, 0, 1, 1]]])).item() == pytest.approx(2 / 3)
    maps = torch.tensor([[[1.0, 2, 3]], [[1, 2, 3]], [[1, 1, 1]]])
    assert RankCorrelation()(maps, torch.tensor([[[1.0, 2, 3]], [[3, 2, 1]], [[1, 2, 3]]])).item() == pytest.approx(0)
    assert EnergyPointingGame()(maps[:1], torch.tensor([[[False, False, True]]])).item() == 0.5


def test_pointing_game_is_the_mean_over_classes() -> None:
    saliency = torch.eye(4)[:, None]  # the maximum is at pixel i
    masks = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]).bool()[:, None]
    metric = PointingGame(3, tolerance=1)
    assert metric(saliency, masks, torch.tensor([0, 0, 0, 2])).item() == pytest.approx((2 / 3 + 0) / 2)
    with pytest.raises(InputError, match="Expected targets from 0 to 2"):
        metric.update(saliency, masks, torch.tensor([0, 0, 0, 3]))


def test_discrimination_is_the_experiments() -> None:
    (remaining,) = inputs("Discrimination")
    remaining[0] = torch.tensor([[0.0, 0.5], [1, 0.5]])  # a score that is gone
    metric = Discrimination()
    metric.update(remaining[0])
    metric.update(remaining[1:])
    assert list(metric.compute()) == ["own", "others", "told_apart"]
    assert numbers(metric).tolist() == pytest.approx(summarize(remaining), rel=1e-4)
    with pytest.raises(InputError, match=r"Expected the remaining scores to be \(T,T\) with T > 1, but got \(1,1\)"):
        metric.update(torch.ones(1, 1))


def test_in_a_collection() -> None:
    x, saliency, targets = batch(2, 24, 24)
    collection = MetricCollection([DeletionAUC(NETWORK), InsertionAUC(NETWORK)])
    collection.update(x, saliency, targets)
    expected = [auc(scores).mean() for scores in curves(NETWORK, x, saliency, targets)]
    assert [float(value) for value in collection.compute().values()] == pytest.approx([float(v) for v in expected])


def test_unknown_profile() -> None:
    with pytest.raises(InputError, match=r"but got 'xpliqe'\. Nearest: xplique"):
        InsertionAUC(NETWORK, "xpliqe")


@pytest.mark.parametrize("kind", [DeletionAUC, InsertionAUC, ROAD, Infidelity, SensitivityN])
def test_a_network_in_training_mode_is_refused(kind: Any) -> None:
    """It would be judged by the statistics of the pictures, and change its own."""
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(192, 3))
    x, saliency, targets = torch.randn(2, 3, 8, 8), torch.rand(2, 8, 8), torch.tensor([0, 1])
    with pytest.raises(InputError, match=r"Expected Sequential in eval mode, but 0 \(BatchNorm2d\)"):
        kind(network).update(x, saliency, targets)
    kind(network.eval()).update(x, saliency, targets)
    with pytest.raises(InputError, match="Expected a network that takes normalized images, but got None"):
        kind(None).update(x, saliency, targets)


@pytest.mark.parametrize(("place", "name"), [(0, "x"), (1, "saliency"), (2, "targets")])
def test_what_is_not_a_tensor_is_named(place: int, name: str) -> None:
    given: list[Any] = [*batch(2, 24, 24)]
    given[place] = given[place].tolist()
    with pytest.raises(InputError, match=f"Expected {name} to be a tensor, but got list"):
        DeletionAUC(NETWORK).update(*given)


@pytest.mark.parametrize("evidence", [torch.full((2, 8, 8), 1.1), torch.full((2, 3, 8, 8), 200).byte()])
def test_sparsity_is_that_of_evidence_from_0_to_1(evidence: Tensor) -> None:
    with pytest.raises(InputError, match=r"Expected evidence in \[0,1\], but got values from"):
        Sparsity().update(evidence)
