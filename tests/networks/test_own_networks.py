"""Networks as their users have them: LightningModules with their checkpoints, HuggingFace's."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from toy_networks import Tiny
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from fgvis_lightning import InputError, explain
from fgvis_lightning.cli import main
from fgvis_lightning.networks.huggingface import preprocessing_of
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.networks.outputs import select


class Lit(pl.LightningModule):
    """A training: its network, a loss with weights, and hyperparameters that it cannot do without."""

    def __init__(self, classes: int, width: int, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, classes),
        )
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False, accelerator="cpu")
    model = Lit(3, width=5)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_a_lightning_module_is_built_by_its_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    network = load_classifier("lightning:test_own_networks.Lit", checkpoint=checkpoint, size=(16, 16)).network
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(network(x), Lit.load_from_checkpoint(checkpoint, map_location="cpu").eval()(x))
    Image.effect_noise((20, 20), 90).convert("RGB").save(tmp_path / "a.png")
    given = ["--model.network", "lightning:test_own_networks.Lit", "--model.classifier.checkpoint", str(checkpoint)]
    given += ["--model.classifier.size", "[16, 16]", "--model.iterations", "2", "--model.seeds", "1"]
    main(["fit", *given, "--data.images", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")])
    assert len(list((tmp_path / "out" / "explanations").iterdir())) == 1
    plain = Lit(3, width=5).net
    assert (
        "removed the prefix 'net.' from the names of the weights, ignored 1 other weights: loss.weight"
        in load_classifier(plain, checkpoint=checkpoint, size=(16, 16)).note
    )


def test_checkpoints_that_build_nothing(checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "bare.ckpt")
    with pytest.raises(InputError, match=r"Expected hyper_parameters for Lit in .*bare\.ckpt, but got none"):
        load_classifier("lightning:test_own_networks.Lit", checkpoint=tmp_path / "bare.ckpt")
    with pytest.raises(InputError, match=r"Expected the checkpoint of test_own_networks\.Lit, but got none"):
        load_classifier("lightning:test_own_networks.Lit")
    with pytest.raises(InputError, match="class_path of a LightningModule, but got"):
        load_classifier("lightning:toy_networks.Tiny", checkpoint=checkpoint)
    torch.save({"hyper_parameters": {"classes": 3}, "state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"to build Lit, but its constructor raised TypeError.*width"):
        load_classifier("lightning:test_own_networks.Lit", checkpoint=tmp_path / "other.ckpt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8],
        depths=[1, 1],
        id2label={0: "cat", 1: "dog", 2: "fox"},
        layer_type="basic",
    )
    ResNetForImageClassification(config).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 64}, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(
        folder
    )
    return folder


def test_huggingface_networks_bring_everything(folder: Path, tmp_path: Path) -> None:
    classifier = load_classifier(f"hf:{folder}")
    assert classifier.classes == ("cat", "dog", "fox")
    preprocessing = classifier.preprocessing
    assert (preprocessing.size, preprocessing.resize) == ((64, 64), int(64 / 0.875))
    assert (preprocessing.mean, preprocessing.std) == ((0.5,) * 3, (0.25,) * 3)
    network = ResNetForImageClassification.from_pretrained(folder).eval()
    images = torch.rand(1, 3, 64, 64)
    found = explain(network, images, "dog", normalize=((0.5,) * 3, (0.25,) * 3), iterations=2, seeds=1)
    own = network((images - 0.5) / 0.25).logits.softmax(1)[0, 1]
    assert torch.allclose(found.score_image[0], own, atol=1e-5)
    assert repr(found).startswith("dog ")
    Image.effect_noise((80, 80), 90).convert("RGB").save(tmp_path / "a.png")
    given = [
        "--model.network",
        f"hf:{folder}",
        "--model.iterations",
        "2",
        "--model.seeds",
        "1",
        "--data.targets",
        "fox",
    ]
    main(["fit", *given, "--data.images", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out" / "explanations").iterdir()] == ["a@fox.safetensors"]


def test_several_labels_of_huggingface(folder: Path, tmp_path: Path) -> None:
    network = ResNetForImageClassification.from_pretrained(folder)
    network.config.problem_type = "multi_label_classification"
    network.save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    assert load_classifier(f"hf:{tmp_path}").task.name == "multilabel"


def test_the_task_of_a_huggingface_module() -> None:
    """Also of one in memory, which would otherwise be explained by a softmax."""
    small: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    kinds: list[dict[str, Any]] = [
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        {"num_labels": 1, "problem_type": "regression"},
    ]
    several, amount = (ResNetForImageClassification(ResNetConfig(**small, **kind)) for kind in kinds)
    assert load_classifier(several, size=(32, 32)).task.name == "multilabel"
    with pytest.raises(InputError, match="An amount is not a probability"):
        load_classifier(amount, size=(32, 32))
    assert load_classifier(amount, size=(32, 32), task="binary").task.name == "binary"


@pytest.mark.parametrize(
    ("processor", "size", "resize"),
    [
        (ViTImageProcessor(), (224, 224), (224, 224)),
        (ConvNextImageProcessor(size={"shortest_edge": 384}), (384, 384), (384, 384)),
        (ViTImageProcessor(do_normalize=False, size={"height": 48, "width": 64}), (48, 64), (48, 64)),
    ],
)
def test_what_image_processors_do(processor: Any, size: tuple[int, int], resize: Any, tmp_path: Path) -> None:
    preprocessing = preprocessing_of(processor)
    assert (preprocessing.size, preprocessing.resize) == (size, resize)
    image = Image.effect_noise((500, 500), 90).convert("RGB")
    from fgvis_lightning.data.images import prepare

    ours = preprocessing.normalize(prepare(image, preprocessing, "image", upscale=True) / 255)
    theirs = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])
    assert (ours - theirs).abs().mean() < 0.01


def test_networks_of_huggingface_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"Expected transformers to load an image classifier from .*, but it could not"
    ):
        load_classifier(f"hf:{tmp_path}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"Expected the package transformers.*fgvis-lightning\[huggingface\]"):
        load_classifier(f"hf:{tmp_path}")


def test_folders_of_timm(tmp_path: Path) -> None:
    save_for_hf = getattr(timm.models, "save_for_hf", None)
    if save_for_hf is None:
        pytest.skip("this timm reads no folders")
    network = timm.create_model("resnet10t", num_classes=3)
    save_for_hf(network, tmp_path)
    loaded = load_classifier(f"local-dir:{tmp_path}").network
    x = torch.rand(1, 3, 64, 64)
    assert torch.allclose(loaded(x), network.eval()(x), atol=1e-5)


def test_tiny_needs_nothing() -> None:
    assert load_classifier(Tiny(), size=(16, 16)).task.name == "multiclass"


class Recurrent(nn.Module):
    """Convolution, recurrent layer over the rows, linear."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.layer = layer(8, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.conv(x).relu().mean(3).transpose(1, 2))[0][:, -1])


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_left_out_or_gated_as_a_whole(layer: type[nn.LSTM] | type[nn.GRU]) -> None:
    torch.manual_seed(0)
    network, images = Recurrent(layer).eval(), torch.rand(1, 3, 12, 12)
    quick: dict[str, Any] = {"iterations": 3, "seeds": 1}
    with pytest.raises(InputError, match="or in exempt"):
        explain(network, images, 0, **quick)
    for option, gated in (("exempt", {"relu"}), ("gated", {"relu", layer.__name__})):
        given: dict[str, Any] = {option: [f"torch.nn.{layer.__name__}"]}
        found = explain(network, images, 0, **quick, **given)
        assert found.coverage is not None
        assert {name for name, count in found.coverage.gated.items() if count} == gated


@pytest.mark.filterwarnings("ignore")
def test_quantized_layers_are_refused_by_name() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    quantized = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    with pytest.raises(InputError, match=r"layers have gradients, but 4 \(Linear\) is quantized"):
        explain(quantized, torch.rand(1, 3, 12, 12), 0)


@dataclass(slots=True)
class Slots:
    """Outputs without a ``__dict__``."""

    logits: Tensor
    features: Tensor | None = None


def test_dataclasses_with_slots_are_outputs() -> None:
    logits, features = torch.rand(2, 3), torch.rand(2, 5)
    assert select(Slots(logits, features), None, "") is logits
    assert select(Slots(logits, features), "features", "") is features
    assert select(Slots(logits), None, "") is logits
