"""TensorBoard: masks over the iterations, results, and a comparison of settings.

The steps of an item's entries are its own iterations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fgvis_lightning.callbacks.writer import image_in_work
from fgvis_lightning.data.batches import Batch
from fgvis_lightning.data.image_data import ImageData
from fgvis_lightning.defense.coverage import Coverage
from fgvis_lightning.engine.sweep_module import ExplanationCallback, SweepModule
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.method.options import within
from fgvis_lightning.results.attribution import Attribution
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.figures import (
    AS_IT_IS,
    as_rgb,
    brightened,
    brightening,
    explanation_image,
    overlay,
    overlay_words,
    pixels,
    state_of,
)
from fgvis_lightning.results.layout import FONT, STYLE, frame

GATES = "gates"
LABELS = 12  # names of layers in a picture, at most
CARD = 3.7, 2.0  # inches at 100 dots each: size of TensorBoard's cards
DPI = 300
GOLDEN = 0.6180339887  # its multiples are spread evenly between whole numbers


class TensorBoardImages(ExplanationCallback):
    """Shows masks, their scores and their gates in TensorBoard.

    For each shown item, under its id: ``evidence`` and ``by color channel`` (``mask`` for gray images) during the
    iterations, ``score`` and ``mean evidence`` as curves, and at the end a ``panel`` that fits a card and ``gates``,
    the share of each layer's closed gates as bars. For the run: mean curves of the items in work, the mean share of
    closed gates, all layers under Text, and settings with final metrics under HParams, in a subfolder ``final``. Every
    rank logs its own items; each rank other than 0 writes to its own subfolder, which TensorBoard shows as a run.

    Args:
        every_n_iterations: interval of logged pictures of the evidence; 0 for panels only. Curves have a point every
            ``--trainer.log_every_n_steps`` steps.
        max_items: number of shown items of the whole sweep, evenly spread over its listing; a picture takes about
            100 kB.

    Raises:
        InputError: if a number is negative.
    """

    def __init__(self, every_n_iterations: int = 50, max_items: int = 64) -> None:
        self.every_n_iterations = within("every_n_iterations", every_n_iterations, 0, 10**9)
        self.max_items = within("max_items", max_items, 0, 10**9)
        self._own: SummaryWriter | None = None
        self._sums = torch.zeros(4, dtype=torch.float64)  # items, scores of explanations, mean evidence, levels reached
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
            writer.add_image(f"{name}/evidence", shown, iteration)
            writer.add_image(f"{name}/{_channels(evidence)}", as_rgb(evidence, bands), iteration)

    def _log_curves(self, trainer: pl.Trainer, model: FGVis, batch: Batch) -> None:
        shown = list(self._shown(trainer, model, batch.used))
        if not shown or (latest := model.latest_each()) is None:
            return
        scores, sparsities = (each.tolist() for each in latest)
        writer = self._writer(trainer)
        for place, name in shown:
            writer.add_scalar(f"{name}/score", scores[place], batch.iterations + 1)
            writer.add_scalar(f"{name}/mean evidence", 1 - sparsities[place], batch.iterations + 1)

    def on_explained(
        self, trainer: pl.Trainer, pl_module: SweepModule, places: Sequence[int], found: Explanation | Attribution
    ) -> None:
        assert isinstance(pl_module, FGVis)
        assert isinstance(found, Explanation)
        reached = torch.ones_like(found.sparsity) if found.feasible is None else found.feasible.to(found.sparsity)
        rows = torch.stack([torch.ones_like(reached), found.score_explanation, 1 - found.sparsity, reached])
        self._sums += rows.double().sum(1)
        closed = None
        if found.coverage is not None and (closed := found.coverage.closed) is not None:
            self._coverage = found.coverage
            self._closed = closed.sum(0) + (0 if self._closed is None else self._closed)
        for place, name in self._shown(trainer, pl_module, places):
            index, batch, writer = places.index(place), pl_module.batch, self._writer(trainer)
            assert batch is not None
            panel = _card(found[index], *image_in_work(pl_module, place))
            writer.add_image(f"{name}/panel", panel, batch.iterations, dataformats="HWC")
            if closed is not None:
                gates = _bars(self._coverage, closed[index])
                writer.add_image(f"{name}/{GATES}", gates, batch.iterations, dataformats="HWC")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FGVis)
        if isinstance(trainer.logger, TensorBoardLogger) and self._sums[0]:
            if self._closed is not None:
                mean = self._closed / self._sums[0].item()
                self._writer(trainer).add_image(GATES, _bars(self._coverage, mean), dataformats="HWC")
                self._writer(trainer).add_text("coverage", _coverage_text(self._coverage, mean))
            if trainer.is_global_zero:
                score, evidence, reached = (self._sums[1:] / self._sums[0]).tolist()
                metrics = {"final/score": score, "final/mean evidence": evidence}
                if pl_module.options.auto:
                    metrics["final/level reached"] = reached
                _add_settings(Path(trainer.logger.log_dir), pl_module.settings(), metrics)
        if self._own is not None:
            self._own.close()

    def _shown(self, trainer: pl.Trainer, model: FGVis, places: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Place and tag of the shown items."""
        if not places or not self.max_items or not isinstance(trainer.logger, TensorBoardLogger):
            return
        data = getattr(trainer, "datamodule", None)
        step = -(-data.total // self.max_items) if isinstance(data, ImageData) else 1
        assert model.batch is not None
        for place in places:
            item = model.batch.items[place]
            # One of each ``step`` items at a varying offset; otherwise all of them could belong to one rank.
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


def _add_settings(folder: Path, settings: dict[str, Any], metrics: dict[str, float]) -> None:
    """Write settings and final metrics as a separate run.

    TensorBoard lists differing settings first only if no run declares them, and it takes all curves of a run for
    metrics. Therefore this does not use `add_hparams`, which declares them.
    """
    plain = {name: value if type(value) in (int, float, str) else str(value) for name, value in settings.items()}
    _, begins, ends = hparams(plain, metrics)
    with SummaryWriter(folder / "final") as writer:
        for tag, value in metrics.items():
            writer.add_scalar(tag, value)
        for part in (begins, ends):
            writer._get_file_writer().add_summary(part)


def _channels(evidence: Tensor) -> str:
    """Name of the picture of an evidence (C,H,W) on black."""
    return {1: "mask", 3: "by color channel"}.get(len(evidence), "by channel")


def _figure(inches: float, title: str) -> Figure:
    """A figure as wide as a card, with legible letters."""
    figure = Figure(figsize=(CARD[0], inches), dpi=DPI)
    figure.text(0.035 / 4, 1 - 0.04 / inches, title, va="top", fontsize=8.5, fontweight="bold", **STYLE)
    return figure


def _bars(coverage: Coverage, closed: Tensor) -> Any:
    """The share of closed gates (L,) as a bar for each layer, the first layer on top, as pixels (H,W,3)."""
    count = len(closed)
    every = -(-count // LABELS)
    figure = _figure(CARD[1], "closed gates, from the image to the logits")
    axes = figure.add_axes((0.36, 0.1, 0.58, 0.79))
    axes.barh(range(count), [100 * share for share in closed.tolist()], color="#1d5a9e")
    axes.set_yticks(range(0, count, every), [(one.module or one.name)[-20:] for one in coverage.layers[::every]])
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 50, 100], ["0 %", "50 %", "100 %"])
    axes.tick_params(labelsize=7, labelfontfamily=FONT, length=0, pad=2)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.grid(axis="x", linewidth=0.4)
    return pixels(figure)


def _card(item: Explanation, image: Tensor, background: Tensor) -> Any:
    """Image (C,H,W) in [0,1], evidence, mask and overlay of one item, in a row under one line, as pixels (H,W,3)."""
    evidence, bands = item.evidence[0].float().cpu(), item.bands
    bright, state = brightened(evidence), state_of(evidence)
    dimmed = state or overlay_words(evidence).replace(" or more", "+")
    how = state or brightening(evidence, AS_IT_IS)
    views = {
        "image": (as_rgb(image, bands), ""),
        "evidence": (explanation_image(image, bright, background, bands), how),
        _channels(evidence): (as_rgb(bright, bands), how),
        "on the dimmed image": (overlay(image, evidence, bands), dimmed),
    }
    column = 1 / len(views)
    wide = 0.93 * column
    tall = wide * CARD[0] * image.shape[-2] / image.shape[-1]  # inches
    inches = 0.45 + tall
    figure = _figure(inches, repr(item))
    for number, (name, (view, words)) in enumerate(views.items()):
        place = (number + 0.035) * column, 0.02 / inches, wide, tall / inches
        axes = figure.add_axes(place)
        axes.imshow(view.clamp(0, 1).permute(1, 2, 0).float().numpy())
        axes.set_axis_off()
        frame(figure, *place, width=2)
        for text, above in ((name, 0.14), (words, 0.04)):
            figure.text(place[0], (0.02 + tall + above) / inches, text, fontsize=6.5, **STYLE)
    return pixels(figure)


def _coverage_text(coverage: Coverage, closed: Tensor) -> str:
    """Coverage with a table of the layers, as Markdown."""
    head = str(replace(coverage, closed=None)).replace("\n", "  \n")
    lines = ["| layer | module | nonlinearity | closed gates |", "|---|---|---|---|"]
    for number, (layer, share) in enumerate(zip(coverage.layers, closed.tolist(), strict=True), 1):
        lines.append(f"| {number} | {layer.module or '(the network itself)'} | {layer.name} | {100 * share:.1f} % |")
    return "\n".join([head, "", *lines])
