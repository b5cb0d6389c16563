"""What leaves a sweep: explanation files and panels, and TensorBoard's pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from fgvis_lightning import folder
from fgvis_lightning.data import Batch, ImageData
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.figures import explanation_image, panel, pixels
from fgvis_lightning.folder import Claim
from fgvis_lightning.items import Item
from fgvis_lightning.module import ExplanationCallback, SweepModule
from fgvis_lightning.names import printable
from fgvis_lightning.store import EXPLANATIONS, SUFFIX, Attribution, Explanation, write_whole


def views(model: SweepModule, place: int, explanation: Explanation, index: int) -> dict[str, Tensor]:
    """Image, explanation and mask of one item in work, each (3,H,W) in [0,1], on the CPU."""
    image, background = _image(model, place)
    evidence = explanation.evidence[index]
    return {
        "image": image,
        f"evidence ({explanation.game.name})": explanation_image(image, evidence, background),
        f"evidence by color channel, {100 * evidence.mean():.1f} % of the image": evidence,
    }


def _image(model: SweepModule, place: int) -> tuple[Tensor, Tensor]:
    """An image in work (3,H,W) and the color that stands for nothing (3,1,1), in [0,1]."""
    assert model.batch is not None
    image = model.batch.images[place].cpu()
    image = image if image.is_floating_point() else image / 255
    return image, model.classifier.preprocessing.background().to(image)


def title(model: SweepModule, explanation: Explanation, index: int) -> str:
    """Class and both scores of one item."""
    name = model.classifier.class_name(int(explanation.targets[index]))
    scores = explanation.score_image[index], explanation.score_explanation[index]
    kind = "explanation" if explanation.game.keeps else "image without the evidence"
    return f"{name}: {scores[0]:.3f} on the image, {scores[1]:.3f} on the {kind}"


GOLDEN = 0.6180339887  # its multiples are spread evenly between whole numbers
GRACE = 60
"""Seconds that rank 0 waits for ranks that it has not started, when none of them is at work."""


class ExplanationWriter(ExplanationCallback):
    """Writes one file and one panel for each item as soon as it is finished, and ``summary.csv`` at the end.

    Args:
        folder: the results folder. It may hold explanations of the same configuration, no others, and no other
            sweep may be at work in it.
        panels: whether to draw ``panels/<item id>.png``.
    """

    def __init__(self, folder: str | Path, panels: bool = True) -> None:
        self.folder = Path(folder)
        self.panels = panels
        self.damaged: list[str] = []
        self._claim: Claim | None = None
        self._threads: int | None = None  # as they were before

    def claim(self, trainer: pl.Trainer, model: SweepModule) -> None:
        """Make sure that this rank may work in the folder.

        Raises:
            InputError: it cannot be written to, is another configuration's, or another sweep is at work there.
        """
        if self._claim is not None:
            return
        folder.prepare_folder(self.folder)
        self._owner = f"rank{trainer.global_rank}"
        self._claim = Claim(self.folder, trainer.global_rank)
        self.settings, self.fingerprint = model.settings(), model.fingerprint()
        folder.check_configuration(self.folder, self.settings, self.fingerprint)
        if self.panels:
            (self.folder / "panels").mkdir(exist_ok=True)
        if trainer.is_global_zero:
            folder.remember(self.folder, settings=self.settings, fingerprint=self.fingerprint)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, SweepModule)
        self.claim(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.device.type != "cpu":
            return
        # Another number of threads rounds differently; so that it makes no difference how a sweep was resumed.
        self._threads = torch.get_num_threads()
        torch.set_num_threads(folder.recall(self.folder).get("cpu_threads") or torch.get_num_threads())
        if trainer.is_global_zero:
            folder.remember(self.folder, cpu_threads=torch.get_num_threads())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx == 0 and trainer.is_global_zero:
            folder.remember(self.folder, batch_size=len(batch.items))

    def on_explained(
        self, trainer: pl.Trainer, pl_module: SweepModule, places: Sequence[int], found: Explanation | Attribution
    ) -> None:
        for index, (place, item) in enumerate(_items(pl_module, places)):
            target = int(found.targets[index])
            id = item.id(target, pl_module.classifier)
            metadata = {
                "image": printable(item.path),
                "name": pl_module.classifier.class_name(target),
                "network": pl_module.classifier.name,
                "settings": json.dumps(self.settings),
                "fingerprint": self.fingerprint,
            }
            if "lam" in self.settings:
                metadata["lam"] = str(self.settings["lam"])
            if self.panels and isinstance(found, Explanation):
                picture = BytesIO()
                panel(views(pl_module, place, found, index), title(pl_module, found, index)).savefig(picture)
                write_whole(self.folder / "panels" / f"{id}.png", picture.getvalue(), self._owner)
            # Last: an item counts as done when its explanation is there.
            found.save(self.folder / EXPLANATIONS / (id + SUFFIX), index, metadata, self._owner)

    def close(self) -> None:
        """Let go of the folder; the last rank to do so rebuilds the tables."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
            self._threads = None
        if self._claim is not None:
            self._claim.release(self._sum_up)

    def _sum_up(self) -> None:
        with suppress(OSError):  # there are some, or never were any
            (self.folder / folder.FAILURES).rmdir()
        self.damaged = folder.write_summary(self.folder, self._owner)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and isinstance(data, ImageData) and not _started_all_ranks(trainer):
            self._await_ranks(data)
        self.close()

    def _await_ranks(self, data: ImageData) -> None:
        """Until all items are accounted for, or no other rank has been at work for a while.

        Ranks that torchrun, SLURM or another node have started may begin late; and who ends with an error while
        others work has them killed by torchrun.
        """
        assert self._claim is not None
        deadline = time.monotonic() + GRACE
        while sum(data.progress()) < data.total and time.monotonic() < deadline:
            if not self._claim.alone():
                deadline = time.monotonic() + GRACE
            time.sleep(0.5)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.close()


class TensorBoardImages(ExplanationCallback):
    """Shows masks and explanations in TensorBoard while they form, and panels and hyperparameters at the end.

    Every rank writes those of its own items; ranks other than 0 into a subfolder each, which TensorBoard
    shows as a run.

    Args:
        every_n_iterations: how often masks and explanations are logged; 0 for panels alone.
        max_items: for how many items of the whole sweep, evenly spread over its listing; a picture takes about
            100 kB.
    """

    def __init__(self, every_n_iterations: int = 50, max_items: int = 64) -> None:
        self.every_n_iterations = every_n_iterations
        self.max_items = max_items
        self._own: SummaryWriter | None = None
        self._sums = torch.zeros(3, dtype=torch.float64)  # items, scores of the explanations, sparsity

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, FGVis)
        every = self.every_n_iterations
        due = [place for place in batch.used if every and (batch.iterations[place] + 1) % every == 0]
        for place, name in self._shown(trainer, pl_module, due):
            evidence = pl_module.game.evidence(pl_module.mask[place].detach()).float().cpu()
            image, background = _image(pl_module, place)
            iteration, writer = batch.iterations[place] + 1, self._writer(trainer)
            writer.add_image(f"{name}/mask", evidence, iteration)
            writer.add_image(f"{name}/explanation", explanation_image(image, evidence, background), iteration)

    def on_explained(
        self, trainer: pl.Trainer, pl_module: SweepModule, places: Sequence[int], found: Explanation | Attribution
    ) -> None:
        assert isinstance(pl_module, FGVis)
        assert isinstance(found, Explanation)
        rows = torch.stack([torch.ones_like(found.sparsity), found.score_explanation, found.sparsity])
        self._sums += rows.double().sum(1)
        for place, name in self._shown(trainer, pl_module, places):
            index, batch = places.index(place), pl_module.batch
            assert batch is not None
            figure = pixels(panel(views(pl_module, place, found, index), title(pl_module, found, index)))
            self._writer(trainer).add_image(f"{name}/panel", figure, batch.iterations[place], dataformats="HWC")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FGVis)
        if self._own is not None:
            self._own.close()
        if isinstance(trainer.logger, TensorBoardLogger) and self._sums[0]:
            score, sparsity = (self._sums[1:] / self._sums[0]).tolist()
            metrics = {"final/score_explanation": score, "final/sparsity": sparsity}
            trainer.logger.log_hyperparams(pl_module.settings(), metrics)

    def _shown(self, trainer: pl.Trainer, model: FGVis, places: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Place and tag of those that are shown."""
        if not places or not self.max_items or not isinstance(trainer.logger, TensorBoardLogger):
            return
        data = getattr(trainer, "datamodule", None)
        step = -(-data.total // self.max_items) if isinstance(data, ImageData) else 1
        for place, item in _items(model, places):
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


def _started_all_ranks(trainer: pl.Trainer) -> bool:
    """Whether this process has started all others of the sweep, and thus knows that they have ended."""
    if trainer.world_size == 1:
        return True
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return trainer.num_nodes == 1 and environment is not None and not environment.creates_processes_externally


def _items(model: SweepModule, places: Sequence[int]) -> list[tuple[int, Item]]:
    """Place and item."""
    assert model.batch is not None
    items = [(place, model.batch.items[place]) for place in places]
    return [(place, item) for place, item in items if item is not None]
