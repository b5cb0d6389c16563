"""What leaves a sweep: explanation files and panels, TensorBoard pictures, the progress bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from fgvis_lightning.data import Batch, ImageData
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.figures import explanation_image, panel, pixels
from fgvis_lightning.store import (
    SUFFIX,
    Explanation,
    check_configuration,
    prepare_folder,
    save_explanation,
    write_summary,
)


def views(model: FGVis, explanation: Explanation, index: int) -> dict[str, Tensor]:
    """Image, explanation and mask of one item of the current batch, each (3,H,W) in [0,1], on the CPU."""
    image, background = _image(model, index)
    evidence = explanation.evidence[index]
    return {
        "image": image,
        f"evidence ({explanation.game.name})": explanation_image(image, evidence, background),
        f"evidence by color channel, {100 * evidence.mean():.1f} % of the image": evidence,
    }


def _image(model: FGVis, index: int) -> tuple[Tensor, Tensor]:
    """An image of the current batch (3,H,W) and the color that stands for nothing (3,1,1), in [0,1]."""
    assert model.batch is not None
    image = model.batch.images[index].cpu()
    image = image if image.is_floating_point() else image / 255
    return image, image.new_tensor(model.classifier.preprocessing.mean)[:, None, None]


def title(model: FGVis, explanation: Explanation, index: int) -> str:
    """Class and both scores of one item."""
    name = model.classifier.class_name(int(explanation.targets[index]))
    scores = explanation.score_image[index], explanation.score_explanation[index]
    kind = "explanation" if explanation.game.keeps else "image without the evidence"
    return f"{name}: {scores[0]:.3f} on the image, {scores[1]:.3f} on the {kind}"


class ExplanationWriter(pl.Callback):
    """Writes one file and one panel for each item when its batch is done, and ``summary.csv`` at the end.

    Args:
        folder: the results folder. It may hold explanations of the same configuration, no others.
        panels: whether to draw ``panels/<item id>.png``.
    """

    def __init__(self, folder: str | Path, panels: bool = True) -> None:
        self.folder = Path(folder)
        self.panels = panels
        self.written = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        prepare_folder(self.folder)
        if self.panels:
            (self.folder / "panels").mkdir(exist_ok=True)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FGVis)
        self.settings = pl_module.settings()
        self.fingerprint = pl_module.fingerprint()
        check_configuration(self.folder, self.settings, self.fingerprint)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FGVis)
        assert pl_module.batch is not None
        explanation = pl_module.explanation()
        for index, item in enumerate(pl_module.batch.items):
            target = int(explanation.targets[index])
            id = item.id(target, pl_module.classifier)
            metadata = {
                "image": item.path,
                "target": str(target),
                "name": pl_module.classifier.class_name(target),
                "score_image": repr(float(explanation.score_image[index])),
                "score_explanation": repr(float(explanation.score_explanation[index])),
                "sparsity": repr(float(explanation.sparsity[index])),
                "game": explanation.game.name,
                "lam": str(pl_module.lam),
                "iterations": str(pl_module.iterations),
                "network": pl_module.classifier.name,
                "coverage": pl_module.coverage.to_json(index),
                "settings": json.dumps(self.settings),
                "fingerprint": self.fingerprint,
            }
            if explanation.feasible is not None:
                metadata["feasible"] = str(bool(explanation.feasible[index])).lower()
            if self.panels:
                figure = panel(views(pl_module, explanation, index), title(pl_module, explanation, index))
                figure.savefig(self.folder / "panels" / f"{id}.png")
            # Last: an item counts as done when its explanation is there.
            save_explanation(self.folder / "explanations" / (id + SUFFIX), explanation.mask[index], metadata)
            self.written += 1

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        write_summary(self.folder)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self.written:
            write_summary(self.folder)


class TensorBoardImages(pl.Callback):
    """Shows masks and explanations in TensorBoard while they form, and panels and hyperparameters at the end.

    Args:
        every_n_iterations: how often masks and explanations are logged; 0 for the last iteration alone.
        max_items: for how many items of the sweep; a picture takes about 100 kB.
    """

    def __init__(self, every_n_iterations: int = 50, max_items: int = 64) -> None:
        self.every_n_iterations = every_n_iterations
        self.max_items = max_items
        self.shown = 0
        self.scores: list[Tensor] = []
        self.sparsity: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, FGVis)
        writer = _writer(trainer)
        iteration = batch_idx + 1
        if writer is None or not self.every_n_iterations or iteration % self.every_n_iterations:
            return
        evidence = pl_module.game.evidence(pl_module.mask.detach()).float().cpu()
        for index, name in self._tags(pl_module):
            image, background = _image(pl_module, index)
            writer.add_image(f"{name}/mask", evidence[index], iteration)
            writer.add_image(f"{name}/explanation", explanation_image(image, evidence[index], background), iteration)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FGVis)
        explanation = pl_module.explanation()
        self.scores.append(explanation.score_explanation)
        self.sparsity.append(explanation.sparsity)
        if (writer := _writer(trainer)) is None:
            return
        for index, name in self._tags(pl_module):
            shown = views(pl_module, explanation, index)
            figure = pixels(panel(shown, title(pl_module, explanation, index)))
            writer.add_image(f"{name}/panel", figure, pl_module.iterations, dataformats="HWC")
        self.shown += len(explanation)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FGVis)
        if isinstance(trainer.logger, TensorBoardLogger) and self.scores:
            metrics = {
                "final/score_explanation": float(torch.cat(self.scores).mean()),
                "final/sparsity": float(torch.cat(self.sparsity).mean()),
            }
            trainer.logger.log_hyperparams(pl_module.settings(), metrics)

    def _tags(self, model: FGVis) -> list[tuple[int, str]]:
        """Place in the batch and tag of the items that are shown."""
        assert model.batch is not None
        room = max(0, self.max_items - self.shown)
        items = enumerate(model.batch.items[:room])
        return [(index, item.id(int(model.targets[index]), model.classifier)) for index, item in items]


class SweepProgressBar(TQDMProgressBar):
    """Lightning's bar for one batch of items: items done, iteration, score and sparsity."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, ImageData):
            done = data.skipped + trainer.current_epoch * data.batch_size
            self.train_progress_bar.set_description(f"{done} of {data.total} items done, iteration")

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        metrics = super().get_metrics(*args)
        metrics.pop("v_num", None)
        return metrics


def _writer(trainer: pl.Trainer) -> Any:
    """TensorBoard's writer, if there is one."""
    return trainer.logger.experiment if isinstance(trainer.logger, TensorBoardLogger) else None
