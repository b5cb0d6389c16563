"""The method's claims on a real ImageNet network and real photos, which the demo's packages carry."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from torch import Tensor

from fgvis_lightning import DefendedCNN, explain, load_explanations
from fgvis_lightning.cli import main
from fgvis_lightning.data.images import load_image
from fgvis_lightning.data.photos import packaged
from fgvis_lightning.experiments.adversarial import SignSGD
from fgvis_lightning.method.storage import STORAGE
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.networks.preprocessing import Preprocessing

NAME = "packaged_efficientnet_lite0"
PHOTOS = ["coffee.png", "chelsea.png", "rocket.jpg"]
ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
COMMANDS = {path: re.findall(r"python train\.py (\w+) --config", path.read_text())[0] for path in CONFIGS}
COMPARISONS = [path for path in CONFIGS if COMMANDS[path] == "compare"]
COFFEE = "package:skimage/data/coffee.png"
NINE = {
    *("gradient", "guided backprop", "excitation backprop", "Grad-CAM", "occlusion", "meaningful perturbation"),
    *("RISE", "LIME", "FGVis"),
}
QUICK = {"RISE": {"masks": 64}, "LIME": {"samples": 64}, "occlusion": {"stride": 64.0}}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lite0() -> Classifier:
    return load_classifier(NAME)


@pytest.fixture(scope="module")
def photos(lite0: Classifier) -> Tensor:
    paths = [packaged(f"skimage/data/{name}") for name in PHOTOS]
    return torch.stack([load_image(path, lite0.preprocessing) for path in paths]) / 255


def test_every_nonlinearity_is_gated(lite0: Classifier, photos: Tensor) -> None:
    defended = DefendedCNN(lite0.network)
    x = ((photos - 0.5) / 0.5).requires_grad_()
    logits = defended.record(x)
    assert str(defended.coverage).splitlines()[0] == "33 of 33 nonlinearity calls gated: 33 relu6"
    gradients = [torch.autograd.grad(network(x)[:, 0].sum(), x)[0] for network in (defended, lite0.network)]
    assert torch.equal(*gradients)
    assert [lite0.class_name(int(k)) for k in logits.argmax(1)] == ["espresso", "tiger cat", "missile"]


def test_the_least_likely_class_is_out_of_reach_with_the_defense_alone(photos: Tensor) -> None:
    with torch.no_grad():
        least = load_classifier(NAME).network((photos - 0.5) / 0.5).argmin(1)
    options: dict[str, Any] = {"game": "generation", "lam": 0.0, "iterations": 60}
    undefended = explain(NAME, photos, least, defended=False, **options)
    defended = explain(NAME, photos, least, **options)
    assert (undefended.score_explanation > 0.5).all()  # 0.94 to 1.00, as rounding will have it
    assert (defended.score_explanation < 0.01).all()


def test_published_deletion_lowers_the_score(photos: Tensor) -> None:
    """To a half or less on one machine and a little more on another; far from where a rounding error could take it."""
    faster = partial(torch.optim.SGD, lr=1.0)
    explanation = explain(NAME, photos, game="deletion", lam=0.0, iterations=100, noise=0.1, optimizer=faster)
    assert (explanation.score_explanation < 0.8 * explanation.score_image).all()
    assert (explanation.sparsity > 0.8).all()


@pytest.mark.parametrize("game", ["preservation", "deletion", "generation", "repression"])
def test_every_game_finds_small_evidence_that_reaches_its_level(game: Any, photos: Tensor) -> None:
    explanation = explain(NAME, photos, game=game, seeds=1, iterations=30)
    assert explanation.feasible is not None
    assert explanation.feasible.all()
    assert (explanation.sparsity > 0.4).all()
    assert explanation.ranking is not None
    assert explanation.ranking.flatten(1).unique(dim=1).shape[1] > 1000, "most pixels have a place of their own"


def test_no_first_step_goes_through_the_open_gates_of_the_image(photos: Tensor) -> None:
    """One sign step of 3 % along the ordinary gradient leaves the classes a tenth of their scores; no game takes it."""
    one_step: dict[str, Any] = {"lam": 0.0, "iterations": 1, "optimizer": SignSGD, "noise": 0.0}
    for game in ("deletion", "preservation"):
        explanation = explain(NAME, photos, game=game, **one_step)
        assert (explanation.score_explanation / explanation.score_image).mean() > 0.6  # 0.78
        assert 0.005 < 1 - explanation.sparsity.mean() < 0.05 if game == "deletion" else True
    network = load_classifier(NAME).network
    x = ((photos - 0.5) / 0.5).requires_grad_()
    log_p, targets = network(x).log_softmax(1).max(1)
    (gradient,) = torch.autograd.grad(log_p.sum(), x)
    mask = (1 - 0.03 * (gradient * x).sign()).clamp(0, 1)
    with torch.no_grad():
        hole = network(mask * x).softmax(1).gather(1, targets[:, None])[:, 0]
    assert (hole / log_p.exp()).mean() < 0.25  # 0.10


@pytest.mark.parametrize("options", [{"lam": "auto"}, {"lam": 1e-7, "noise": 0.1}])
def test_two_runs_with_one_seed_are_equal_bit_for_bit(options: dict[str, Any], photos: Tensor) -> None:
    runs = [explain(NAME, photos, game="preservation", iterations=8, seeds=2, seed=3, **options) for _ in range(2)]
    assert torch.equal(runs[0].mask, runs[1].mask)
    assert torch.equal(runs[0].score_explanation, runs[1].score_explanation)
    assert runs[0].mask.std() > 0


@pytest.mark.parametrize(("game", "level"), [("preservation", 1.0), ("deletion", 0.1)])
def test_auto_reaches_its_level_as_the_plain_network_sees_the_stored_file(
    game: str, level: float, lite0: Classifier, tmp_path: Path
) -> None:
    paths = [f"package:skimage/data/{name}" for name in PHOTOS]
    main(
        [
            *("fit", "--output", str(tmp_path), "--data.images", json.dumps(paths), "--trainer.accelerator", "cpu"),
            *("--model.game", game, "--model.seeds", "2", "--model.iterations", "30", "--data.batch_size", "2"),
        ]
    )
    explanations = load_explanations(tmp_path)
    assert len(explanations) == 3
    for explanation in explanations:
        settings = json.loads(explanation.metadata["settings"])
        assert (settings["resize"], settings["mean"]) == (256, [0.5, 0.5, 0.5])
        x = load_image(explanation.metadata["image"], lite0.preprocessing)[None].float() / 255 * 2 - 1
        with torch.no_grad():
            score_image, score = (
                lite0.network(e).softmax(1)[0, explanation.targets[0]] for e in (x, explanation.mask * x)
            )
        assert score.item() == pytest.approx(explanation.score_explanation.item(), rel=1e-4, abs=1e-6)
        assert score_image.item() == pytest.approx(explanation.score_image.item(), rel=1e-4, abs=1e-6)
        assert (score >= level * score_image) if game == "preservation" else (score <= level * score_image)
        assert explanation.feasible is not None
        assert explanation.feasible.all()
        assert explanation.sparsity.item() > 0.2


def test_storage_type_is_fine_enough(lite0: Classifier, photos: Tensor) -> None:
    """What is said of `STORAGE`: the score of a rounded mask is that of the mask within 0.001."""
    x = (photos - 0.5) / 0.5
    generator = torch.Generator().manual_seed(0)
    for low in (0.0, 0.5, 0.9):
        mask = low + (1 - low) * torch.rand(x.shape, generator=generator)
        with torch.no_grad():
            exact, rounded = (
                lite0.network(m * x).softmax(1).max(1).values for m in (mask, mask.to(STORAGE).to(mask.dtype))
            )
        assert (exact - rounded).abs().max() < 1e-3


@pytest.mark.parametrize("config", [path for path in CONFIGS if COMMANDS[path] == "fit"], ids=lambda path: path.stem)
def test_every_configuration_runs(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--model.iterations", "3", "--trainer.accelerator", "cpu", "--output", str(tmp_path / "out")]
    main(["fit", "--config", str(config), *short])
    assert len(load_explanations(tmp_path / "out")) >= 1
    assert "items explained" in capsys.readouterr().out


@pytest.mark.parametrize("config", COMPARISONS, ids=lambda path: path.stem)
def test_every_comparison_runs(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, but for the number of passes and of photos."""
    monkeypatch.chdir(ROOT)
    settings = yaml.safe_load(config.read_text())
    images = settings["data"]["images"]
    if isinstance(images, list):
        settings["data"]["images"] = images[:1]
    else:  # one photo with its two classes
        few = tmp_path / "few.csv"
        few.write_text("".join(Path(images).read_text().splitlines(keepends=True)[:3]))
        settings["data"]["images"] = str(few)
    for name, method in settings["methods"].items():
        method["init_args"] = method.get("init_args", {}) | QUICK.get(name, {})
        if "FGVis" in name or name == "meaningful perturbation":
            method["init_args"]["iterations"] = 5
        if "FGVis" in name:
            method["init_args"]["seeds"] = 2
    short = tmp_path / "short.yaml"
    short.write_text(yaml.safe_dump(settings, sort_keys=False))
    main(["compare", "--config", str(short), "--trainer.accelerator", "cpu", "--output", str(tmp_path / "out")])
    bar = {"masked gradient"} if config.stem == "faithfulness" else set()
    assert {name.partition(" (")[0] for name in settings["methods"]} == NINE | bar
    with (tmp_path / "out" / "costs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(settings["methods"])
    assert (tmp_path / "out" / "comparison.pdf").exists()
    assert (tmp_path / "out" / "discrimination.pdf").exists() == (config.stem == "discrimination")


def test_adversarial_and_sanity_run(tmp_path: Path) -> None:
    """With one photo and few iterations."""
    assert sorted({*COMMANDS.values()}) == ["adversarial", "benchmark", "bias", "compare", "fit", "sanity"]
    output = ["--output", str(tmp_path / "a")]
    short = ["--data.images", COFFEE, "--data.targets", "absent1", "--iterations", "2", "--trainer.accelerator", "cpu"]
    main(["adversarial", "--config", str(ROOT / "configs" / "adversarial.yaml"), *output, *short])
    with (tmp_path / "a" / "adversarial.csv").open() as file:
        assert [row["pairs"] for row in csv.DictReader(file)] == ["1"] * 8
    settings = yaml.safe_load((ROOT / "configs" / "sanity.yaml").read_text())
    settings["methods"]["FGVis"]["init_args"]["iterations"] = 2
    (tmp_path / "sanity.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    short = ["--images", COFFEE, "--steps", "2", "--device", "cpu", "--output", str(tmp_path / "s")]
    main(["sanity", "--config", str(tmp_path / "sanity.yaml"), *short])
    with (tmp_path / "s" / "sanity.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5 * 3


def test_bias_runs(tmp_path: Path) -> None:
    """With two iterations; the configuration for VGG16 is in tests/bias/test_bias.py."""
    config = ROOT / "configs" / "color_bias.yaml"
    assert [path.stem for path in CONFIGS if COMMANDS[path] == "bias"] == ["color_bias", "color_bias_vgg16"]
    short = ["--explainer.iterations", "2", "--trainer.accelerator", "cpu", "--output", str(tmp_path / "b")]
    main(["bias", "--config", str(config), *short])
    for pair in ("color", "position"):
        with (tmp_path / "b" / f"{pair}_ranking.csv").open() as file:
            ranking = list(csv.DictReader(file))
        assert sorted(row["class"] for row in ranking) == ["espresso", "missile", "moped", "tiger cat"]
        assert {row["explanations from"] for row in ranking} == {"undefined"}  # of one image


def test_other_networks_of_timm_and_own_size(tmp_path: Path, photo: Callable[..., Path]) -> None:
    network = timm.create_model("regnetz_005", num_classes=6)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    image = torch.from_numpy(np.array(Image.open(photo("a.png", 96, 96)))).permute(2, 0, 1)[None] / 255
    explanation = explain(network, image, iterations=2, game="preservation")
    assert explanation.mask.shape == (1, 3, 96, 96)
    assert load_classifier(network, size=(96, 96)).preprocessing != Preprocessing()
