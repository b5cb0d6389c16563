"""Explanations while a network is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fgvis_lightning import ExplainCallback, InputError, explain


class Lit(pl.LightningModule):
    """A training with dropout, batch normalization and shuffled data."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def train(folder: Path, *callbacks: pl.Callback, logger: Any = True) -> Lit:
    pl.seed_everything(1)
    data = TensorDataset(torch.rand(24, 3, 12, 12), torch.randint(3, (24,)))
    model = Lit()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=TensorBoardLogger(str(folder), name="", version="") if logger is True else logger,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(model, DataLoader(data, 8, shuffle=True), DataLoader(data, 8))
    return model


def options(**more: Any) -> dict[str, Any]:
    return {"iterations": 3, "normalize": ((0.5,) * 3, (0.25,) * 3), **more}


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.parametrize("network", [None, "net"])
def test_training_is_bit_for_bit_as_without(tmp_path: Path, network: str | None) -> None:
    callback = ExplainCallback(IMAGES, every_n_epochs=2, network=network, **options())
    plain, explained = train(tmp_path / "a"), train(tmp_path / "b", callback)
    for (name, one), other in zip(plain.state_dict().items(), explained.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert explained.training == plain.training
    assert all(parameter.requires_grad for parameter in explained.parameters())
    assert not any(module._forward_hooks for module in explained.modules())
    events = EventAccumulator(str(tmp_path / "b"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()["images"]
    assert [tag.partition("_")[0] for tag in sorted(tags)] == ["explanations/0", "explanations/1"]
    assert [event.step for event in events.Images(tags[0])] == [6], "after the second epoch, of three steps each"
    assert callback.latest is not None
    assert callback.latest.mask.shape == IMAGES.shape


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
def test_it_explains_the_module_as_it_is(tmp_path: Path) -> None:
    callback = ExplainCallback(IMAGES, 1, **options(game="preservation"))
    model = train(tmp_path, callback)
    again = explain(model, IMAGES, 1, seeds=1, **options(game="preservation"))
    assert callback.latest is not None
    assert torch.equal(again.score_image, callback.latest.score_image)
    assert torch.equal(again.mask, callback.latest.mask)


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
def test_loggers_of_the_other_package_of_lightning_get_panels(tmp_path: Path) -> None:
    """``lightning.pytorch.loggers.TensorBoardLogger`` has the name of ours, and no base in common with it."""

    class Named(pl.loggers.Logger):
        name, version = "", ""
        tags: list[str] = []  # noqa: RUF012, of the only logger

        @property
        def experiment(self) -> Any:
            return SimpleNamespace(add_image=lambda tag, *_, **__: self.tags.append(tag))

        def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    train(
        tmp_path,
        ExplainCallback(IMAGES, every_n_epochs=3, **options()),
        logger=type("TensorBoardLogger", (Named,), {})(),
    )
    assert [tag.partition("_")[0] for tag in Named.tags] == ["explanations/0", "explanations/1"]


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
def test_mistakes(tmp_path: Path) -> None:
    for wrong in (0, 2.5, "2"):
        with pytest.raises(InputError, match=f"Expected every_n_epochs from 1 to 1000000.*, but got {wrong!r}"):
            ExplainCallback(IMAGES, every_n_epochs=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Expected network to be a module of Lit \(net\), but got 'model'"):
        train(tmp_path, ExplainCallback(IMAGES, network="model"))
    with pytest.raises(InputError, match=r"Expected options of FGVis, but got gaem\."):
        train(tmp_path, ExplainCallback(IMAGES, every_n_epochs=100, gaem="deletion"))
    train(tmp_path, ExplainCallback(IMAGES, every_n_epochs=2, accelerator="cpu", **options()))
    with pytest.warns(UserWarning, match="the trainer has no TensorBoardLogger"):
        train(tmp_path, ExplainCallback(IMAGES, **options()), logger=False)
