"""One run of a trainer that fills a results folder: preparation, run, and check for missing items."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from fgvis_lightning.callbacks.progress import SweepProgress
from fgvis_lightning.callbacks.writer import ExplanationWriter
from fgvis_lightning.data.image_data import ImageData
from fgvis_lightning.data.items import Item, split_by_done
from fgvis_lightning.engine.batch_size import is_out_of_memory
from fgvis_lightning.engine.strategy import RankFailedError
from fgvis_lightning.engine.sweep_module import SweepModule
from fgvis_lightning.errors import GO_ON, InputError
from fgvis_lightning.results import folder
from fgvis_lightning.results.numbers import USUAL, percent

SEVERAL = 5  # minimum number of items for advice on which to look at first


class SweepRun:
    """A sweep by one module into one folder, ``data.done``; the trainer has an `ExplanationWriter`."""

    def __init__(self, trainer: pl.Trainer, model: SweepModule, data: ImageData) -> None:
        assert data.done is not None
        self.trainer = trainer
        self.model = model
        self.data = data
        self.output: Path = data.done
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self.writer = next(callback for callback in callbacks if isinstance(callback, ExplanationWriter))
        self.writer.listed = self._listed
        self._progress = [callback for callback in callbacks if isinstance(callback, SweepProgress)]

    def _listed(self) -> Collection[str]:
        return dict.fromkeys(id for _, id in self.split()[1])

    def prepare(self) -> None:
        """Raise errors that concern all ranks, before rank 0 starts the others."""
        self.model.trainer = self.trainer
        self.data.list_items(self.model.classifier)
        self.writer.claim(self.trainer, self.model)

    def fit(self, **kwargs: Any) -> None:
        """Run the trainer; finished items are summed up whatever happens."""
        try:
            self.trainer.fit(self.model, datamodule=self.data, **kwargs)
        except RankFailedError as error:
            raise RankFailedError(f"{error}. {self.what_is_missing(self.split()[0])}") from error
        except BaseException as error:
            if is_out_of_memory(error):
                raise InputError(self._too_large()) from error
            raise
        finally:
            for callback in self._progress:
                callback.close()
            self.writer.close()

    def split(self) -> tuple[list[Item], list[tuple[Item, str]]]:
        """Items of the whole sweep, without and with a file."""
        classifier = self.model.classifier
        return split_by_done(self.data.list_items(classifier), classifier, folder.finished(self.output))

    def what_is_missing(self, missing: Sequence[Item]) -> str:
        """A few lines on these items without a file, with reasons."""
        notes = folder.failures(self.output)
        unread = [item for item in missing if item.image_id in notes]
        rest = [item for item in missing if item.image_id not in notes]
        total, lines = len(self.data.list_items(self.model.classifier)), []
        if unread:
            reasons = list(dict.fromkeys(notes[item.image_id] for item in unread))
            more = [f"and {len(reasons) - 10} more in {self.output / folder.FAILURES}"]
            shown = "\n  ".join(reasons[:10] + (more if len(reasons) > 10 else []))
            lines.append(f"{len(unread):,} of {total:,} items could not be read:\n  {shown}")
        if rest:
            names = ", ".join(item.prefix.rstrip("-@") for item in rest[:10])
            more_names = f" and {len(rest) - 10:,} more" if len(rest) > 10 else ""
            lines.append(
                f"{len(rest):,} of {total:,} items are missing: {names}{more_names}. "
                f"Run the same command again to continue."
            )
        return "\n".join(lines) or f"All {total} items are there."

    def what_to_look_at(self) -> list[str]:
        """Lines on the items that did not reach their level, and on those with the most evidence and least agreement.

        The latter are only named from `SEVERAL` items on. With a fixed λ there is no level.
        """
        levels, lines = self.writer.levels, []
        if levels is None:  # another rank was the last
            _, levels = folder.write_summary(self.output, "rank0", self._listed())
        if missed := levels.missed:
            more = f" and {len(missed) - 5:,} more" if len(missed) > 5 else ""
            lines.append(
                f"{len(missed):,} of {levels.with_level:,} did not reach their level ({', '.join(missed[:5])}{more}). "
                f"Try more --model.iterations, or another --model.level."
            )
        if levels.with_level >= SEVERAL and levels.largest is not None:
            reasons = {levels.largest[0]: [f"most evidence, {percent(levels.largest[1])}"]}
            if levels.least is not None:
                reasons.setdefault(levels.least[0], []).append(f"least agreement, {levels.least[1]:.2f}; {USUAL}")
            named = [f"{id} ({'; '.join(why)})" for id, why in reasons.items()]
            lines.append(f"Look first at {' and '.join(named)}.")
        return lines

    def check(self, missing: Sequence[Item]) -> None:
        """Raise `InputError` with reasons if files are damaged, or if there are items without a file, ``missing``."""
        if self.writer.damaged:
            raise InputError("\n  ".join(["Some files in the results folder are not used:", *self.writer.damaged]))
        if missing:
            raise InputError(self.what_is_missing(missing))

    def _too_large(self) -> str:
        size = len(self.model.batch.images) * self.model.rows_per_item if self.model.batch is not None else 0
        return (
            f"Expected a batch of {size or self.data.batch_size} to fit the memory of {self.model.device}, but "
            f"it does not. Use --data.batch_size {max(1, size // 2)} or auto, fewer runs of an image (--model.seeds), "
            f"smaller images (--model.classifier.size), or --trainer.precision bf16-mixed. {GO_ON}"
        )
