"""Networks of several labels, of one output, and of probabilities, whose evidence is known by construction."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fgvis_lightning import InputError, explain
from fgvis_lightning.baselines.base import scores
from fgvis_lightning.cli import main
from fgvis_lightning.method.tasks import TASKS
from fgvis_lightning.metrics import deletion_curve
from fgvis_lightning.networks.load import load_classifier

NORMALIZE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class Quadrants(nn.Module):
    """Output k is 40 times the mean green in quarter k of the image, minus a bias; then what ``end`` makes of it."""

    def __init__(self, count: int = 4, end: nn.Module | None = None, bias: float = 12.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(4, count)
        self.end = end if end is not None else nn.Identity()
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
            self.conv.bias.fill_(0)  # type: ignore[union-attr]
            self.head.weight.copy_(40 * torch.eye(count, 4))
            self.head.bias.fill_(-bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(self.pool(torch.relu(self.conv(x))).flatten(1)))


class Scaled(nn.Module):
    """Probabilities of which no function of torch tells that they are some."""

    def forward(self, z: Tensor) -> Tensor:
        return 0.9999 * z.sigmoid()


class Flat(nn.Module):
    """(B,1) as (B,)."""

    def forward(self, z: Tensor) -> Tensor:
        return z.squeeze(1)


class Called(nn.Module):
    """A module that applies a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z)


@pytest.fixture
def images() -> Tensor:
    """Gray noise, with green in the first two quarters (2,3,16,16)."""
    images = 0.1 * torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images[:, 1, :8] = 0.5
    return images


def quarter(evidence: Tensor, number: int) -> Tensor:
    """Share of the evidence (B,3,H,W) that is in the green of a quarter (B,)."""
    top, left = 8 * (number // 2), 8 * (number % 2)
    return evidence[:, 1, top : top + 8, left : left + 8].sum((1, 2)) / evidence.sum((1, 2, 3))


def run(network: nn.Module, images: Tensor, *targets: Any, **options: Any) -> Any:
    return explain(network, images, *targets, normalize=NORMALIZE, **{"iterations": 40, "seeds": 1, **options})


@pytest.mark.parametrize("game", ["preservation", "deletion", "generation", "repression"])
@pytest.mark.parametrize("label", [0, 1])
def test_each_label_has_evidence_of_its_own(images: Tensor, game: str, label: int) -> None:
    network = Quadrants()
    found = run(network, images, label, game=game, task="multilabel")
    assert found.feasible.all()
    assert quarter(found.evidence, label).min() > 0.97
    own = network(images).sigmoid()
    assert torch.allclose(found.score_image, own[:, label])
    e = images * found.mask
    assert torch.allclose(found.score_explanation, network(e)[:, label].sigmoid(), atol=1e-6)
    assert run(network, images, task="multilabel").targets.tolist() == [0, 0], "unless named, the most probable label"


@pytest.mark.parametrize("options", [{}, {"task": "multilabel"}])
@pytest.mark.parametrize("end", [nn.Sigmoid(), Scaled()])
def test_several_sigmoids_are_labels(images: Tensor, end: nn.Module, options: dict[str, Any]) -> None:
    plain = run(Quadrants(12), images, 1, task="multilabel")
    if isinstance(end, Scaled) and not options:
        with pytest.raises(InputError, match=r"all 12 lie between 0 and 1, .* Set --model\.outputs"):
            run(Quadrants(12, end), images, 1)
        options = {"outputs": "probabilities"}
    ended = run(Quadrants(12, end), images, 1, **options)
    assert torch.allclose(plain.score_image, ended.score_image, atol=1e-3)
    if isinstance(end, nn.Sigmoid):
        assert torch.equal(plain.mask, ended.mask), "what comes last is left out"
    assert quarter(ended.evidence, 1).min() > 0.9


def test_a_saturated_sigmoid_hides_nothing(images: Tensor) -> None:
    network = Quadrants(end=nn.Sigmoid(), bias=-20.0)
    assert network(images)[0, 0] == 1, "in float32 there is no gradient left"
    network.head.bias.data.fill_(1.0)
    network.head.weight.data *= 3
    assert network(images)[0, 0] == 1
    found = run(network, images, 0, level=0.9)
    assert found.feasible.all()
    assert quarter(found.evidence, 0).min() > 0.95


@pytest.mark.parametrize("end", [None, nn.Sigmoid(), Flat(), nn.Sequential(Flat(), nn.Sigmoid())])
@pytest.mark.parametrize("options", [{}, {"task": "binary"}])
def test_one_output_is_two_classes(images: Tensor, end: nn.Module | None, options: dict[str, Any]) -> None:
    network = Quadrants(1, end)
    own = Quadrants(1)(images).sigmoid().squeeze(1)
    found = run(network, images, **options)
    assert found.targets.tolist() == [1, 1]
    assert torch.allclose(found.score_image, own)
    assert quarter(found.evidence, 0).min() > 0.97
    other = run(network, images, 0, **options)
    assert torch.allclose(other.score_image, 1 - own, atol=1e-6)
    assert torch.equal(found.mask, run(Quadrants(1), images, **options).mask)
    named = load_classifier(network, size=(16, 16), classes=["pneumonia"], **options)
    assert named.classes == ("no pneumonia", "pneumonia")
    assert "task: binary, sigmoid of the one output" in named.described


@pytest.mark.parametrize(
    "end",
    [
        lambda z: z.sigmoid().squeeze(1),
        lambda z: z.sigmoid().squeeze(),
        lambda z: z.squeeze(),
        lambda z: z.sigmoid()[:, 0],
        lambda z: z.sigmoid().view(-1),
        lambda z: z.sigmoid_(),
        lambda z: z.sigmoid().double().float(),
        lambda z: z.sigmoid().clamp(1e-7, 1 - 1e-7),
        lambda z: torch.cat([0 * z, z], 1).softmax(1)[:, 1],
    ],
)
def test_one_probability_in_any_shape_is_two_classes(images: Tensor, end: Callable[[Tensor], Tensor]) -> None:
    own = Quadrants(1)(images).sigmoid().squeeze(1)
    for some in (images, images[:1]):  # squeeze() also drops a batch of one image
        found = run(Quadrants(1, Called(end)), some, 1)
        assert torch.allclose(found.score_image, own[: len(some)], atol=1e-5)
        assert quarter(found.evidence, 0).min() > 0.97


@pytest.mark.parametrize(
    "end",
    [
        lambda z: torch.cat([part.sigmoid() for part in z.split(1, 1)], 1),
        lambda z: z.sigmoid().view(-1, 2, 2).flatten(1),
        lambda z: z[:, :, None].repeat(1, 1, 3).sigmoid().amax(2),
        nn.functional.logsigmoid,
    ],
)
def test_probabilities_of_labels_in_any_shape(images: Tensor, end: Callable[[Tensor], Tensor]) -> None:
    own = Quadrants()(images).sigmoid()[:, 1]
    for options in ({}, {"task": "multilabel"}):
        found = run(Quadrants(4, Called(end)), images, 1, **options)
        assert torch.allclose(found.score_image, own, atol=1e-5)


def test_a_network_that_squeezes_explains_one_image(images: Tensor) -> None:
    squeezing = Quadrants(4, Called(torch.squeeze))
    found = run(squeezing, images[:1], iterations=8, seeds=2)
    assert torch.allclose(found.score_image, Quadrants()(images[:1]).softmax(1).amax(1))
    labels = Quadrants(1, Called(torch.squeeze))
    one = run(labels, images[:1], 0, task="multilabel", iterations=4)
    assert torch.allclose(one.score_image, Quadrants(1)(images[:1]).sigmoid()[:, 0])


def test_a_softmax_at_the_end_is_left_out(images: Tensor) -> None:
    plain, ended = (run(Quadrants(end=end), images) for end in (None, nn.Softmax(1)))
    assert torch.equal(plain.mask, ended.mask)
    assert torch.allclose(plain.score_image, Quadrants()(images).softmax(1).amax(1))
    said = load_classifier(Quadrants(end=nn.Softmax(dim=1)), size=(16, 16)).described
    assert "multiclass, softmax over the classes; the network's outputs are probabilities (softmax)" in said


def test_the_user_has_the_last_word(images: Tensor) -> None:
    network = Quadrants(end=nn.Sigmoid())
    as_logits = run(network, images, 0, outputs="logits")
    assert torch.allclose(as_logits.score_image, network(images).softmax(1)[:, 0])
    tenth = nn.Sequential(Quadrants(2), nn.Hardtanh(0.2, 0.8))  # from 0 to 1, but few
    assert "outputs from 0 to 1 treated as logits" in load_classifier(tenth, size=(16, 16)).described
    assert "probabilities" not in load_classifier(tenth, size=(16, 16), outputs="logits").described
    rectified = nn.Sequential(Quadrants(8), nn.Hardtanh(0, 1))  # many, but zeros are a ReLU's, as in SqueezeNet
    assert "multiclass, softmax over the classes; outputs from" in load_classifier(rectified, size=(16, 16)).described
    said = load_classifier(tenth, size=(16, 16), outputs="probabilities").described
    assert "multilabel, sigmoid of each label; the network's outputs are probabilities (sigmoid)" in said


def test_what_has_no_explanation_is_said() -> None:
    with pytest.raises(
        InputError, match=r"Expected task to be one of multiclass, binary, multilabel, but got 'regress"
    ):
        load_classifier(Quadrants(1), task="regression")
    with pytest.raises(InputError, match=r"one or two outputs for task binary, but got 4. Set multiclass"):
        load_classifier(Quadrants(), size=(16, 16), task="binary")
    with pytest.raises(InputError, match=r"Expected threshold between 0 and 1, but got 1\.5"):
        load_classifier(Quadrants(), size=(16, 16), threshold=1.5)


def test_methods_and_metrics_follow_the_task(images: Tensor) -> None:
    classifier = load_classifier(Quadrants(end=nn.Sigmoid()), size=(16, 16), mean=NORMALIZE[0], std=NORMALIZE[1])
    assert classifier.task.name == "multilabel"
    targets = torch.tensor([1, 1])
    own = Quadrants()(images)[:, 1].sigmoid()
    assert torch.allclose(scores(classifier.network, images, targets), own)
    curve = deletion_curve(classifier.network, images, images.mean(1), targets)
    assert torch.allclose(curve[:, 0], own)


def test_every_measure_predicts_labels_above_the_threshold(images: Tensor) -> None:
    classifier = load_classifier(Quadrants(bias=20.6), size=(16, 16), task="multilabel", threshold=0.3)
    logits, targets = classifier.network(images), torch.tensor([1, 1])
    assert ((logits[:, 1].sigmoid() > 0.3) & (logits[:, 1] < 0)).all(), "between 0.3 and 0.5"
    assert classifier.task.present(logits, targets).all()
    assert not classifier.task.same_decision(logits, logits - 1, targets).any()
    assert not TASKS["multilabel"].present(logits, targets).any(), "by default, it is 0.5"


def test_all_labels_above_the_threshold_are_predicted(
    images: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for number, image in enumerate((255 * images).byte()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"")
    network = ["--model.network", "test_tasks.Quadrants", "--model.classifier.size", "[16, 16]"]
    network += ["--model.classifier.classes", "[north west, north east, south west, south east]"]
    network += ["--model.classifier.mean", "[0, 0, 0]", "--model.classifier.std", "[1, 1, 1]"]
    network += ["--model.task", "multilabel", "--data.images", str(tmp_path / "photos"), "--trainer.accelerator", "cpu"]
    short = ["--model.iterations", "3", "--model.seeds", "1"]
    with pytest.raises(SystemExit):  # for the broken one
        main(["fit", *network, *short, "--output", str(tmp_path / "out")])
    assert "task: multilabel, sigmoid of each label" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == [f"{n}@north_{side}" for n in "01" for side in ("east", "west")]
    with pytest.raises(SystemExit):
        main(["fit", *network, *short, "--output", str(tmp_path / "none"), "--model.threshold", "0.9999999"])
    (tmp_path / "photos" / "broken.png").unlink()
    with pytest.raises(SystemExit):
        main(["fit", *network, *short, "--output", str(tmp_path / "none"), "--model.threshold", "0.9999999"])
    assert "with a probability above 0.9999999, but none of 2 images has one" in capsys.readouterr().err
