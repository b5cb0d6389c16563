"""TensorBoard: how masks form, what came of it, and how settings compare.

Steps of what belongs to an item are its own iterations, steps of ``closed gates by layer`` are numbers of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from fgvis_lightning.callbacks.writer import image_in_work, item_panel, items_in_work
from fgvis_lightning.data.batches import Batch
from fgvis_lightning.data.image_data import ImageData
from fgvis_lightning.defense.coverage import Coverage
from fgvis_lightning.engine.sweep_module import ExplanationCallback, SweepModule
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.results.explanation import Attribution, Explanation
from fgvis_lightning.results.figures import as_rgb, explanation_image, pixels

CLOSED = "closed gates by layer"
GOLDEN = 0.6180339887  # its multiples are spread evenly between whole numbers


class TensorBoardImages(ExplanationCallback):
    """Shows masks, their scores and their gates in TensorBoard.

    For each item that is shown, under its id: ``mask`` and ``explanation`` while they form, ``score`` and ``sparsity``
    as curves, at the end ``panel`` and ``closed gates by layer``, where a layer's number stands for a step. For the
    run: mean curves of the items in work, the mean of the closed gates, the layers' names under Text, and
    hyperparameters with final metrics. Every rank writes those of its own items; ranks other than 0 into a subfolder
    each, which TensorBoard shows as a run.

    Args:
        every_n_iterations: how often masks and explanations are logged; 0 for panels alone. Curves have a point in
            every ``--trainer.log_every_n_steps``.
        max_items: for how many items of the whole sweep, evenly spread over its listing; a picture takes about
            100 kB.
    """

    def __init__(self, every_n_iterations: int = 50, max_items: int = 64) -> None:
        self.every_n_iterations = every_n_iterations
        self.max_items = max_items
        self._own: SummaryWriter | None = None
        self._sums = torch.zeros(3, dtype=torch.float64)  # items, scores of the explanations, sparsity
        self._coverage = Coverage()
        self._closed: Tensor | None = None  # of each layer, summed over items

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, FGVis)
        every: int = getattr(trainer, "log_every_n_steps")  # noqa: B009, its class does not declare it
        if every and trainer.global_step % every == 0:
            self._log_curves(trainer, pl_module, batch)
        every = self.every_n_iterations
        due = batch.used if every and (batch.iterations + 1) % every == 0 else []
        for place, name in self._shown(trainer, pl_module, due):
            evidence = pl_module.game.evidence(pl_module.masks[place]).float().cpu()
            image, background = image_in_work(pl_module, place)
            iteration, writer = batch.iterations + 1, self._writer(trainer)
            bands = pl_module.classifier.preprocessing.bands
            shown = explanation_image(image, evidence, background, bands)
            writer.add_image(f"{name}/mask", as_rgb(evidence, bands), iteration)
            writer.add_image(f"{name}/explanation", shown, iteration)

    def _log_curves(self, trainer: pl.Trainer, model: FGVis, batch: Batch) -> None:
        shown = list(self._shown(trainer, model, batch.used))
        if not shown or (latest := model.latest_each()) is None:
            return
        scores, sparsities = (each.tolist() for each in latest)
        writer = self._writer(trainer)
        for place, name in shown:
            writer.add_scalar(f"{name}/score", scores[place], batch.iterations + 1)
            writer.add_scalar(f"{name}/sparsity", sparsities[place], batch.iterations + 1)

    def on_explained(
        self, trainer: pl.Trainer, pl_module: SweepModule, places: Sequence[int], found: Explanation | Attribution
    ) -> None:
        assert isinstance(pl_module, FGVis)
        assert isinstance(found, Explanation)
        rows = torch.stack([torch.ones_like(found.sparsity), found.score_explanation, found.sparsity])
        self._sums += rows.double().sum(1)
        closed = None
        if found.coverage is not None and (closed := found.coverage.closed) is not None:
            self._coverage = found.coverage
            self._closed = closed.sum(0) + (0 if self._closed is None else self._closed)
        for place, name in self._shown(trainer, pl_module, places):
            index, batch, writer = places.index(place), pl_module.batch, self._writer(trainer)
            assert batch is not None
            figure = pixels(item_panel(pl_module, place, found, index))
            writer.add_image(f"{name}/panel", figure, batch.iterations, dataformats="HWC")
            if closed is not None:
                _add_layers(writer, f"{name}/{CLOSED}", closed[index])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FGVis)
        if isinstance(trainer.logger, TensorBoardLogger) and self._sums[0]:
            if self._closed is not None:
                mean = self._closed / self._sums[0].item()
                _add_layers(self._writer(trainer), CLOSED, mean)
                self._writer(trainer).add_text("coverage", _coverage_text(self._coverage, mean))
            score, sparsity = (self._sums[1:] / self._sums[0]).tolist()
            metrics = {"final/score_explanation": score, "final/sparsity": sparsity}
            trainer.logger.log_hyperparams(pl_module.settings(), metrics)
        if self._own is not None:
            self._own.close()

    def _shown(self, trainer: pl.Trainer, model: FGVis, places: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Place and tag of those that are shown."""
        if not places or not self.max_items or not isinstance(trainer.logger, TensorBoardLogger):
            return
        data = getattr(trainer, "datamodule", None)
        step = -(-data.total // self.max_items) if isinstance(data, ImageData) else 1
        for place, item in items_in_work(model, places):
            # One of each ``step`` items, by turns another one, else all of them might be the same rank's.
            block, offset = divmod(item.number, step)
            if offset == int(step * (GOLDEN * block % 1)):
                yield place, item.id(int(model.targets[place]), model.classifier)

    def _writer(self, trainer: pl.Trainer) -> Any:
        assert isinstance(trainer.logger, TensorBoardLogger)
        if trainer.is_global_zero:
            return trainer.logger.experiment
        if self._own is None:
            self._own = SummaryWriter(Path(trainer.logger.log_dir) / f"rank{trainer.global_rank}")
        return self._own


def _add_layers(writer: Any, tag: str, closed: Tensor) -> None:
    """A curve over the layers, from the image to the logits."""
    for number, share in enumerate(closed.tolist(), 1):
        writer.add_scalar(tag, share, number)


def _coverage_text(coverage: Coverage, closed: Tensor) -> str:
    """Coverage with a table of the layers, as Markdown."""
    head = str(replace(coverage, closed=None)).replace("\n", "  \n")
    lines = ["| layer | module | nonlinearity | closed gates |", "|---|---|---|---|"]
    for number, (layer, share) in enumerate(zip(coverage.layers, closed.tolist(), strict=True), 1):
        lines.append(f"| {number} | {layer.module or '(the network itself)'} | {layer.name} | {100 * share:.1f} % |")
    return "\n".join([head, "", *lines])
