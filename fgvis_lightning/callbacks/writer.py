"""Writing of explanation files and panels."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fgvis_lightning.data.batches import Batch
from fgvis_lightning.data.explained import load_explanation, with_image
from fgvis_lightning.data.image_data import ImageData
from fgvis_lightning.data.images import as_float
from fgvis_lightning.engine.sweep_module import ExplanationCallback, SweepModule
from fgvis_lightning.errors import InputError
from fgvis_lightning.names import printable
from fgvis_lightning.results import folder
from fgvis_lightning.results.attribution import Attribution
from fgvis_lightning.results.claim import Claim
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.figures import explanation_panel
from fgvis_lightning.results.folder import Levels, write_summary
from fgvis_lightning.results.layout import as_file
from fgvis_lightning.results.notebook import figure_of
from fgvis_lightning.results.tensor_files import item_file, write_whole


def image_in_work(model: SweepModule, place: int) -> tuple[Tensor, Tensor]:
    """A current image (C,H,W) and the color of removed parts (C,1,1), in [0,1]."""
    assert model.batch is not None
    image = as_float(model.batch.images[place].cpu())
    return image, model.classifier.preprocessing.background().to(image)


GRACE = 60  # seconds that rank 0 waits for ranks that it has not started, if none of them is running

Format = Literal["png", "svg", "pdf"]


class ExplanationWriter(ExplanationCallback):
    """Writes a file and a panel for each item as soon as it is finished, and ``summary.csv`` at the end.

    Args:
        folder: the results folder. It may only hold explanations of the same configuration, and no other sweep may be
            running in it.
        panels: whether to draw ``panels/<item id>.png``.
        formats: a format of the panels, or several; default: ``png``; ``svg`` and ``pdf`` are for print. Missing panels
            of finished explanations are drawn, too.

    Attributes:
        damaged: problems of files that could not be read for the tables.
        listed: returns the ids of this run's items, for the table.
        levels: levels of the items according to the tables; None if another rank has made the tables.
    """

    def __init__(self, folder: str | Path, panels: bool = True, formats: Format | list[Format] = "png") -> None:
        self.folder = Path(folder)
        self.panels = panels
        self.formats = [formats] if isinstance(formats, str) else formats
        self.damaged: list[str] = []
        self.levels: Levels | None = None
        self.listed: Callable[[], Collection[str]] | None = None
        self._claim: Claim | None = None
        self._threads: int | None = None  # the previous number

    def claim(self, trainer: pl.Trainer, model: SweepModule) -> None:
        """Claim the folder for this rank.

        Raises:
            InputError: if the folder is not writable, or belongs to another configuration or another sweep.
        """
        if self._claim is not None:
            return
        folder.prepare_folder(self.folder)
        self._owner = f"rank{trainer.global_rank}"
        self._claim = Claim(self.folder, trainer.global_rank)
        self.settings, self.fingerprint = model.settings(), model.fingerprint()
        try:
            folder.check_configuration(self.folder, self.settings, self.fingerprint)
        except InputError:
            self._claim.release(lambda: None)  # without touching the tables
            raise
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
        # The number of threads affects rounding; keep it, so that a continued sweep gives the same results.
        self._threads = torch.get_num_threads()
        torch.set_num_threads(folder.recall_number(self.folder, "cpu_threads", 1024) or torch.get_num_threads())
        if trainer.is_global_zero:
            folder.remember(self.folder, cpu_threads=torch.get_num_threads())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx == 0 and trainer.is_global_zero:
            folder.remember(self.folder, batch_size=len(batch.images))

    def on_explained(
        self, trainer: pl.Trainer, pl_module: SweepModule, places: Sequence[int], found: Explanation | Attribution
    ) -> None:
        assert pl_module.batch is not None
        for index, place in enumerate(places):
            item = pl_module.batch.items[place]
            target = int(found.targets[index])
            id = item.id(target, pl_module.classifier)
            metadata = {
                "image": printable(item.path),
                folder.IMAGE: item.sha256,
                "name": pl_module.classifier.class_name(target),
                "network": pl_module.classifier.name,
                "settings": json.dumps(self.settings),
                "fingerprint": self.fingerprint,
            }
            if "lam" in self.settings:
                metadata["lam"] = str(self.settings["lam"])
            if self.panels and isinstance(found, Explanation):
                panel = explanation_panel(found, index, *image_in_work(pl_module, place), metadata["name"])
                self._draw(panel, id, self.formats)
            # Last, since an item counts as done when its explanation exists.
            found.save(item_file(self.folder, id), index, metadata, self._owner)

    def _draw(self, figure: Figure, id: str, formats: Sequence[str]) -> None:
        for kind in formats:
            write_whole(self.folder / "panels" / f"{id}.{kind}", as_file(figure, kind), self._owner)

    def draw_missing(self, ids: Sequence[str]) -> int:
        """Draw the panels that earlier runs have not drawn in the chosen formats, and return the number of items drawn.

        Items whose image is missing or has changed are left out.
        """
        if not self.panels:
            return 0
        drawn, known = 0, {path.name for path in (self.folder / "panels").iterdir()}
        for id in ids:
            if not (missing := [kind for kind in self.formats if f"{id}.{kind}" not in known]):
                continue
            try:
                found = with_image(load_explanation(item_file(self.folder, id)))
            except InputError:
                continue
            self._draw(figure_of(found, 0), id, missing)
            drawn += 1
        return drawn

    def close(self) -> None:
        """Release the folder; the last rank to do so rebuilds the tables."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
            self._threads = None
        if self._claim is not None:
            self._claim.release(self._sum_up)

    def _sum_up(self) -> None:
        with suppress(OSError):  # there are some, or never were any
            (self.folder / folder.FAILURES).rmdir()
        listed = None if self.listed is None else self.listed()
        self.damaged, self.levels = write_summary(self.folder, self._owner, listed)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and isinstance(data, ImageData) and not _started_all_ranks(trainer):
            self._await_ranks(data)
        if isinstance(data, ImageData):
            data.note_unchanged()
        self.close()

    def _await_ranks(self, data: ImageData) -> None:
        """Wait until all items are done or failed, or until no other rank has been running for a while.

        Ranks started by torchrun, SLURM or another node may start late. If a rank ends with an error while others are
        running, torchrun kills them.
        """
        assert self._claim is not None
        deadline = time.monotonic() + GRACE
        while sum(data.progress()) < data.total and time.monotonic() < deadline:
            if not self._claim.alone():
                deadline = time.monotonic() + GRACE
            time.sleep(0.5)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.close()


def _started_all_ranks(trainer: pl.Trainer) -> bool:
    """Whether this process started all others of the sweep, and therefore knows when they have ended."""
    if trainer.world_size == 1:
        return True
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return trainer.num_nodes == 1 and environment is not None and not environment.creates_processes_externally
