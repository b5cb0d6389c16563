"""Calls of `explain`, `Explanation` and `DefendedCNN` as researchers write them in their own training code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader
from toy_networks import Tiny

from fgvis_lightning import DefendedCNN, Explanation, FGVis, InputError, draw, explain, load_explanation

QUICK: dict[str, Any] = {"iterations": 3, "seeds": 1, "accelerator": "cpu"}


def images(count: int = 2, size: int = 12) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3))


class Outputs(nn.Module):
    """A network whose logits are passed to a function."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.change = Tiny(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.network(x))


def test_the_callers_autocast_changes_nothing() -> None:
    """As in the steps of a Lightning module that is trained with bf16-mixed."""
    outside = explain(Tiny(), images(), **QUICK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert explain(Tiny(), images(), **QUICK) == outside


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_the_image_itself_reaches_its_level_in_low_precision(precision: str) -> None:
    found = explain(Tiny(), images(8), precision=precision, **QUICK)
    assert found.reached is not None
    assert found.reached.tolist() == [0] * 8


def test_the_image_itself_reaches_its_level_with_logits_in_float64() -> None:
    found = explain(Outputs(Tensor.double), images(8), **QUICK)
    assert found.reached is not None
    assert found.reached.tolist() == [0] * 8


def test_mean_and_std_are_options_too() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.3, 0.3, 0.2)
    assert explain(Tiny(), images(), mean=mean, std=std, **QUICK) == explain(
        Tiny(), images(), normalize=(mean, std), **QUICK
    )
    with pytest.raises(InputError, match="Expected either normalize or mean and std, but got normalize and mean"):
        explain(Tiny(), images(), mean=mean, std=std, normalize=(mean, std), **QUICK)


@pytest.mark.parametrize("change", [lambda y: (y,), lambda y: {"scores": y}, lambda y: [y, None]])
def test_the_only_output_needs_no_name(change: Callable[[Tensor], Any]) -> None:
    assert torch.equal(explain(Outputs(change), images(), **QUICK).mask, explain(Tiny(), images(), **QUICK).mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": "logit"}, "Expected outputs to be one of logits, probabilities, but got 'logit'"),
        ({"size": "16"}, r"Expected size to be a height and a width .*, but got \('1', '6'\)"),
        ({"optimizer": "adam"}, "Expected optimizer to be a function of the parameters, .* but got 'adam'"),
        ({"exempt": "softmacks"}, "Expected exempt to name functions .*, but got 'softmacks'"),
        ({"network": None}, "Expected a network as a torch.nn.Module, but got None. Pass its name"),
        ({"network": Tiny}, "but got <class 'toy_networks.Tiny'>. Pass an instance"),
        ({"network": lambda x: x}, "Expected a network as a torch.nn.Module, but got <function"),
        ({"network": nn.Sequential(nn.LazyConv2d(3, 3))}, r"but 0 \(LazyConv2d\) has none yet. Run the network on"),
        ({"network": Outputs(Tensor.sum)}, r"to return logits of shape \(2, classes\), but got \(\)"),
        ({"images": images().to(torch.complex64)}, "Expected images as a dense tensor of real numbers"),
        ({"images": images().to_sparse()}, "Expected images as a dense tensor .* torch.sparse_coo"),
        ({"images": (images() * 65535).to(torch.uint16)}, "but got torch.uint16 .* Divide them by the value of white"),
        ({"images": images() > 0.5}, r"but got torch.bool from 0 to 1. Convert them with .float\(\)"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain(**{"network": Tiny(), "images": images(), **QUICK, **options})


def test_signals_of_whole_numbers_are_not_divided() -> None:
    network = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(InputError, match=r"but got torch.int64 from 7 to 7\. Convert them with \.float\(\)"):
        explain(network, torch.full((1, 2, 30), 7), **QUICK)


@pytest.mark.parametrize("error", [AssertionError, ValueError, AttributeError])
def test_networks_say_in_many_ways_that_a_size_is_wrong(error: type[Exception]) -> None:
    class Fixed(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2] != 32:
                raise error(f"Input height ({x.shape[2]}) doesn't match model (32).")
            return super().forward(x)

    with pytest.raises(InputError, match=r"Expected Fixed to run on images of 12×12 .* Use images of the network's"):
        explain(Fixed(), images(), **QUICK)


class Remembers(Tiny):
    """Stores its latest activation."""

    seen: dict[str, list[Tensor]]

    def forward(self, x: Tensor) -> Tensor:
        self.seen = {"logits": [super().forward(x)]}
        return self.seen["logits"][0]


def pruned() -> nn.Module:
    network = Tiny()
    prune.l1_unstructured(network.features[0], "weight", 0.5)  # a hook computes the weight
    return network


@pytest.mark.parametrize("make", [Remembers, pruned])
def test_a_network_may_keep_tensors_of_a_graph(make: Callable[[], nn.Module]) -> None:
    network = make().eval()
    logits = network(images())
    normalize = ((0.0,) * 3, (1.0,) * 3)
    found = explain(network, images(), normalize=normalize, **QUICK)
    assert torch.allclose(found.score_image, logits.softmax(1).amax(1), atol=1e-6)
    if isinstance(network, Remembers):
        assert network.seen["logits"][0] is logits


def test_a_network_of_images_may_have_weights_of_five_dimensions() -> None:
    class Deep(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.along = nn.Conv3d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.along(x[:, None])[:, 0])

    assert explain(Deep(), images(), **QUICK).mask.shape == images().shape


def test_a_subclass_may_pass_its_options_on() -> None:
    class Wide(FGVis):
        def __init__(self, network: nn.Module, width: int = 1, **options: Any) -> None:
            super().__init__(network, **options)
            self.width = width

    module = Wide.of(Tiny(), width=2, iterations=7, gate="strict")
    assert (module.width, module.iterations) == (2, 7)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fgvis_needs_its_own_kind_of_data() -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, max_epochs=1, enable_progress_bar=False)
    with pytest.raises(InputError, match="Expected the trainer to get a data module with a sweep, but FGVis got none"):
        trainer.fit(FGVis(Tiny(), iterations=2), DataLoader(images()))  # type: ignore[arg-type]


def test_explanations_of_different_games_are_not_joined() -> None:
    one, other = (explain(Tiny(), images(), game=game, **QUICK) for game in ("preservation", "deletion"))
    with pytest.raises(InputError, match=r"of one game and size, but got \[\('deletion', 3, 12, 12\), \('preserv"):
        Explanation.concatenate([one, other])
    with pytest.raises(InputError, match="of one game and size, but got"):
        Explanation.concatenate([one, explain(Tiny(), images(size=14), **QUICK)])
    with pytest.raises(InputError, match="but got none"):
        Explanation.concatenate([])
    assert Explanation.concatenate([one, explain(Tiny(), images(), **{**QUICK, "seeds": 2})]).seeds is None


def test_items_are_selected_as_from_a_list() -> None:
    found = explain(Tiny(), images(3), **QUICK)
    assert found[::-1] == found.select(torch.tensor([2, 1, 0]))
    assert [len(found[5:]), len(found[-1]), len(list(found))] == [0, 1, 3]


def test_files_of_explanations_have_the_names_that_are_read(tmp_path: Path) -> None:
    found = explain(Tiny(), images(), **QUICK)
    for name in ("a.jpg", "a", "a.pt"):
        with pytest.raises(InputError, match=f"Expected a file name with .safetensors, .png, .* but got {name}"):
            found.save(tmp_path / name)
    with pytest.raises(InputError, match=r"is a folder\. Use load_explanations"):
        load_explanation(tmp_path)
    with pytest.raises(InputError, match=r"Expected the images of the explanation, \(2, 3, 12, 12\), but got int"):
        draw(found, 1)  # type: ignore[arg-type]


def test_the_container_refuses_what_is_no_network_and_no_image() -> None:
    with pytest.raises(InputError, match=r"Expected a network as a torch\.nn\.Module, but got 'resnet18'"):
        DefendedCNN("resnet18")  # type: ignore[arg-type]
    defended = DefendedCNN(Tiny().eval())
    for x in (images()[:0], (images() * 255).byte()):
        with pytest.raises(InputError, match=r"Expected normalized images \(B,3,H,W\), but got"):
            defended.record(x)
