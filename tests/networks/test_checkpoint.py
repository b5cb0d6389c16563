"""Weights as trainings leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from command_line import fit
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toy_networks import Tiny

from fgvis_lightning import InputError
from fgvis_lightning.networks.load import load_classifier


class Lit(pl.LightningModule):
    """A training of `Tiny` whose loss has weights of its own."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = Tiny(seed=1)
        self.criterion = nn.CrossEntropyLoss(weight=torch.rand(5))

    def training_step(self, batch: Tensor) -> Tensor:
        return self.network(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.rand(4, 3, 16, 16), batch_size=2)  # type: ignore[arg-type]


def same(network: nn.Module, other: nn.Module) -> bool:
    x = torch.rand(2, 3, 16, 16)
    return torch.equal(network.eval()(x), other.eval()(x))


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Lit, Path]:
    module = Lit()
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.fit(module)
    trainer.save_checkpoint(tmp_path / "lit.ckpt")
    return module, tmp_path / "lit.ckpt"


@pytest.mark.filterwarnings("ignore")  # Lightning's, of a loader with few batches
def test_lightnings_checkpoint_into_the_network_alone(
    trained: tuple[Lit, Path], folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, path = trained
    classifier = load_classifier(Tiny(seed=0), checkpoint=path)
    assert same(classifier.network, module.network)
    note = (
        "lit.ckpt: removed the prefix 'network.' from the names of the weights, "
        "ignored 1 other weights: criterion.weight"
    )
    assert classifier.note == note
    fit(output, folder, "--model.classifier.checkpoint", str(path))
    assert note in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    ["{}", "module.{}", "_orig_mod.{}", "module._orig_mod.{}", "model._orig_mod.{}", "module.net.backbone.{}"],
)
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_prefixes_of_wrappers(name: str, key: str | None, tmp_path: Path) -> None:
    network = Tiny(seed=1)
    state: Any = {name.format(one): tensor for one, tensor in network.state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "w.pth")
    assert same(load_classifier(Tiny(seed=0), checkpoint=tmp_path / "w.pth").network, network)


def test_an_entry_of_another_name(tmp_path: Path) -> None:
    network = Tiny(seed=1)
    torch.save({"net": network.state_dict(), "ema": Tiny().state_dict(), "epoch": 3}, tmp_path / "w.pth")
    message = r"It has one under net, ema: set --model\.classifier\.checkpoint_key\."
    with pytest.raises(InputError, match=message):
        load_classifier(Tiny(), checkpoint=tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"a state_dict in .* under 'nett', but there is none\. It has one under net,"):
        load_classifier(Tiny(), checkpoint=tmp_path / "w.pth", checkpoint_key="nett")
    assert same(load_classifier(Tiny(), checkpoint=tmp_path / "w.pth", checkpoint_key="net").network, network)


def test_safetensors(tmp_path: Path) -> None:
    network = Tiny(seed=1)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    assert same(load_classifier(Tiny(seed=0), checkpoint=tmp_path / "w.safetensors").network, network)
    (tmp_path / "w.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="is not a safetensors file"):
        load_classifier(Tiny(), checkpoint=tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="No such file"):
        load_classifier(Tiny(), checkpoint=tmp_path / "x.safetensors")


def test_weights_within_the_prefix_must_fit(tmp_path: Path) -> None:
    """What lies beside the network is passed over; what lies in it and is unknown is another network."""
    state = {f"net.{name}": tensor for name, tensor in Tiny().state_dict().items()}
    torch.save({**state, "net.extra": torch.zeros(1), "loss.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"they do not fit: net\.extra is unknown\."):
        load_classifier(Tiny(), checkpoint=tmp_path / "w.pth")


class Setting:
    """What people keep among their hyperparameters."""


def test_the_class_in_the_way_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": Tiny().state_dict(), "hyper_parameters": Setting()}, tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=r"it contains objects of \S*Setting\. Save only the network's state_dict\(\)"):
        load_classifier(Tiny(), checkpoint=tmp_path / "w.ckpt")
