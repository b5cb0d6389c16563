from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
import torchvision
from PIL import Image
from torch import nn
from toy_networks import Tiny

from fgvis_lightning import DefendedCNN, InputError, explain
from fgvis_lightning.data.images import load_image
from fgvis_lightning.networks.classifier import Classifier, freeze
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.networks.preprocessing import IMAGENET_MEAN, Preprocessing


def test_frozen_copy_has_no_parameters_and_stays_as_it_is() -> None:
    network = Tiny().train()
    frozen = freeze(network)
    assert not list(frozen.named_parameters())
    assert not frozen.state_dict()
    assert not any(module.training for module in frozen.modules())
    assert all(module.training for module in network.modules())
    x = torch.rand(2, 3, 8, 8)
    before = frozen(x)
    assert torch.equal(before, network.eval()(x))
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.zero_()
    assert torch.equal(frozen(x), before)
    frozen.double()
    assert network.head.weight.dtype == torch.float32


class AsksForParameters(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = next(self.parameters())
        return super().forward(x.to(first.device, first.dtype))


def test_a_network_may_ask_for_its_parameters() -> None:
    network = AsksForParameters().eval()
    frozen = copy.deepcopy(freeze(network))
    assert torch.equal(frozen(torch.ones(1, 3, 8, 8)), network(torch.ones(1, 3, 8, 8)))
    assert [tensor.shape for tensor in frozen.parameters()] == [tensor.shape for tensor in network.parameters()]
    assert next(iter(frozen.double().parameters())).dtype == torch.float64
    assert not list(DefendedCNN(frozen).parameters())
    assert explain(network, torch.rand(2, 3, 16, 16), iterations=3, seeds=1).mask.shape == (2, 3, 16, 16)


class InPlace(nn.Module):
    """Normalizes its input in place, as a network with its own preprocessing does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.sub_(0.5).mul_(3))


@pytest.mark.parametrize("game", ["preservation", "deletion"])
def test_a_network_that_changes_its_input_is_explained_like_any_other(game: Any) -> None:
    torch.manual_seed(0)
    inner = Tiny().eval()
    outside = nn.Sequential(Shifted(), inner).eval()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"game": game, "iterations": 10, "seeds": 2, "normalize": ((0,) * 3, (1,) * 3)}
    one, other = (explain(network, images, **options) for network in (InPlace(inner), outside))
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.score_explanation, other.score_explanation)
    scores = outside(images * one.mask).softmax(1).gather(1, one.targets[:, None])[:, 0]
    assert torch.allclose(one.score_explanation, scores, atol=1e-4)


class Shifted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.5) * 3


class Returns(Tiny):
    """Keeps something frozen in training, and forgets to return itself."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (Tiny, "Pass an instance"),
        (None, "Pass its name"),
        (len, "Pass a module"),
    ],
)
def test_what_cannot_be_frozen(network: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        freeze(network)


def test_a_scripted_part() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted: Any = torch.jit.script(nn.ReLU())
    with pytest.raises(InputError, match="but 1 is scripted, traced or exported"):
        freeze(nn.Sequential(nn.Conv2d(3, 3, 1), scripted))


def test_an_exported_network() -> None:
    exported = torch.export.export(Tiny().eval(), (torch.rand(1, 3, 16, 16),))
    with pytest.raises(InputError, match=r"but got 'exported program'\. Pass the original module"):
        freeze(exported)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is scripted, traced or exported"):
        freeze(exported.module())


def test_a_mode_without_a_result() -> None:
    assert isinstance(freeze(Returns()), Returns)


def test_network_that_cannot_be_copied() -> None:
    network = Tiny()
    network.stream = (i for i in range(3))  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"Expected a network that copy\.deepcopy can copy, but Tiny cannot be"):
        freeze(network)


def test_packaged_network_is_itself() -> None:
    classifier = load_classifier("packaged_efficientnet_lite0")
    assert classifier.preprocessing.mean == classifier.preprocessing.std == (0.5, 0.5, 0.5)
    assert (classifier.preprocessing.size, classifier.preprocessing.resize) == ((224, 224), 256)
    assert len(classifier.classes) == 1000
    assert classifier.class_index("School Bus") == 779
    assert classifier.fingerprint() == load_classifier("packaged_efficientnet_lite0").fingerprint()


def test_fingerprint_follows_every_weight() -> None:
    network = Tiny()
    before = load_classifier(network).fingerprint()
    with torch.no_grad():
        network.head.bias[2] += 1e-7
    assert load_classifier(network).fingerprint() != before


def test_torchvision_entry_gives_preprocessing_and_classes() -> None:
    entry = torchvision.models.Inception_V3_Weights.IMAGENET1K_V1
    classifier = load_classifier(Tiny(1000), weights=str(entry))
    assert (classifier.preprocessing.size, classifier.preprocessing.resize) == ((299, 299), 342)
    assert classifier.classes[779] == "school bus"
    with pytest.raises(InputError, match=r"Expected weights as .* but got 'Resnet_Weights\.V1'"):
        load_classifier(Tiny(), weights="Resnet_Weights.V1")


@pytest.mark.parametrize("shape", [(300, 451), (640, 427), (256, 256)])
def test_preprocessing_equals_the_libraries(shape: tuple[int, int], tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    image.save(tmp_path / "a.png")
    entry = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    ours = load_classifier(Tiny(), weights=str(entry)).preprocessing
    loaded = load_image(str(tmp_path / "a.png"), ours) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (ours.mean, ours.std))
    assert torch.equal((loaded - mean) / std, entry.transforms()(image))
    network = timm.create_model("tf_efficientnet_lite0")
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(network), normalize=False)
    assert torch.equal(load_image(str(tmp_path / "a.png"), load_classifier(network).preprocessing), theirs(image))


def test_own_preprocessing_and_classes(tmp_path: Path) -> None:
    plain = load_classifier(Tiny())
    assert plain.preprocessing == Preprocessing()
    assert plain.preprocessing.mean == IMAGENET_MEAN
    assert plain.class_name(3) == "class 3"
    (tmp_path / "names.txt").write_text("cat\ndog\nbus\nbus\ncar\n")
    own = load_classifier(
        Tiny(), mean=(0.1, 0.2, 0.3), size=(20, 24), interpolation="bicubic", classes=tmp_path / "names.txt"
    )
    assert own.preprocessing.mean == (0.1, 0.2, 0.3)
    assert (own.preprocessing.size, own.preprocessing.resize) == ((20, 24), 20)
    assert own.class_index("dog") == 1
    with pytest.raises(InputError, match=r"Expected the name of one class, but 'bus' names \[2, 3\]. Use the index"):
        own.class_index("bus")
    with pytest.raises(InputError, match=r"Expected the name of one of 5 classes, but got 'dogg'\. Nearest: dog"):
        own.class_index("dogg")
    with pytest.raises(InputError, match=r"Use the index"):
        plain.class_index("dog")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": (1.0, 0.0, 1.0)}, "std > 0, but got"),
        ({"mean": (0.5,)}, "a value for each channel"),
        ({"interpolation": "cubic"}, "Expected interpolation to be one of .* but got 'cubic'"),
        ({"size": (32, 32), "resize": 30}, r"resize at least as large, but got \(32, 32\) and 30"),
        ({"classes": "nowhere.txt"}, "nowhere.txt: No such file"),
        ({"checkpoint": "nowhere.pth"}, "nowhere.pth: No such file"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_classifier(Tiny(), **options)


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(InputError, match=r"a timm model, but got 'resnet19'\. Nearest: resnet1"):
        load_classifier("resnet19")


def test_timm_network_with_own_checkpoint(tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", num_classes=1000)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    classifier = load_classifier("resnet10t", checkpoint=tmp_path / "w.pth")
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(classifier.network(x), network.eval()(x))
    assert classifier.name == "resnet10t (w.pth)"
    assert load_classifier(timm.create_model("resnet10t", num_classes=7)).classes == ()


def _wrapped(state: dict[str, torch.Tensor]) -> object:
    return {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}


@pytest.mark.parametrize("wrap", [dict, _wrapped], ids=["bare", "checkpoint of a parallel run"])
def test_checkpoint_leaves_the_callers_network(wrap: Callable[..., object], tmp_path: Path) -> None:
    network, other = Tiny(seed=0), Tiny(seed=1)
    torch.save(wrap(other.state_dict()), tmp_path / "w.pth")
    before = copy.deepcopy(network.state_dict())
    classifier = load_classifier(network, checkpoint=tmp_path / "w.pth")
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(classifier.network(x), other.eval()(x))
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_checkpoint_that_does_not_fit_names_the_first_mismatches(tmp_path: Path) -> None:
    state = Tiny(classes=7).state_dict()
    del state["features.0.weight"]
    state["extra"] = torch.zeros(2)
    torch.save(state, tmp_path / "w.pth")
    message = (
        r"features\.0\.weight is missing, extra is unknown, head\.weight is \(7, 8\) instead of \(5, 8\), and 1 more"
    )
    with pytest.raises(InputError, match=message):
        load_classifier(Tiny(), checkpoint=tmp_path / "w.pth")


def test_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    torch.save(Tiny(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"weights_only=True.* Save only the network's state_dict"):
        load_classifier(Tiny(), checkpoint=tmp_path / "w.pth")
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"Expected a state_dict \(names to tensors\)"):
        load_classifier(Tiny(), checkpoint=tmp_path / "w.pth")


def test_classifier_names_classes() -> None:
    classifier = Classifier(nn.Identity(), Preprocessing(), ("a", "b"), "net")
    assert [classifier.class_name(index) for index in (0, 1, 2)] == ["a", "b", "class 2"]


def test_wrappers_are_taken_off() -> None:
    network = Tiny(seed=1)
    x = torch.rand(2, 3, 16, 16)
    compiled: Any = torch.compile(network)
    for wrapped in (compiled, nn.DataParallel(network), nn.DataParallel(compiled)):
        classifier = load_classifier(wrapped)
        assert type(classifier.network) is Tiny
        assert classifier.name == "Tiny"
        assert torch.equal(classifier.network(x), network.eval()(x))


def test_compiled_parts_of_a_network_are_taken_as_they_were_before() -> None:
    network, part = nn.Sequential(Tiny(seed=1)), Tiny(seed=1)
    network[0] = torch.compile(part, backend="aot_eager")  # type: ignore[assignment]
    image = torch.rand(1, 3, 16, 16)
    quick: Any = {"iterations": 2, "seeds": 1, "accelerator": "cpu"}
    assert torch.equal(explain(network, image, **quick).mask, explain(part, image, **quick).mask)
    assert network[0]._orig_mod is part, "the caller's network is not changed"


class NoForward(nn.Module):
    """Has weights, and nothing to do with them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)


class TwoInputs(NoForward):
    """Takes images and something else."""

    def forward(self, x: torch.Tensor, age: torch.Tensor) -> torch.Tensor:
        return self.layer(x.mean((2, 3))) + age


class Broken(NoForward):
    """Fails for a reason of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the moon is full")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (NoForward(), "Expected NoForward to have a forward method"),
        (TwoInputs(), "Expected TwoInputs to take only images, but it has further inputs .*'age'"),
        (Broken(), r"16×16 pixels, but it does not \(the moon is full\)\.$"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), r"Expected images of shape \(B,1,H,W\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), r"Use images of the network's size"),
        (Tiny().double(), r"Expected Tiny in torch\.float32, but its weights are torch\.float64"),
    ],
)
def test_networks_that_do_not_run_say_why(network: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain(network.eval(), torch.rand(1, 3, 16, 16), iterations=2, accelerator="cpu")
