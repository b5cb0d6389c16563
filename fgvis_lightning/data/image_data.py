"""The data module of photos: lists them, distributes them to ranks, skips explained ones, and decodes ahead."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from fgvis_lightning.data.batches import Sweep, SweepData, ahead, divided
from fgvis_lightning.data.images import content, load_image
from fgvis_lightning.data.items import Item, list_items, split_by_done
from fgvis_lightning.errors import InputError
from fgvis_lightning.names import printable
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.results import folder
from fgvis_lightning.results.tensor_files import EXPLANATIONS, SUFFIX, change_metadata, item_file
from fgvis_lightning.results.unchanged import QuickCheck

LARGE = 512 * 512  # inputs of more pixels are mentioned: several of them take some gigabytes


class ImageData(SweepData):
    """Photos, and the classes to explain them for.

    Args:
        images: a file, a glob, a folder (searched recursively; may have one folder for each class, as for torchvision's
            ImageFolder), a CSV file with a column ``path`` and optionally ``target``, or a file of an installed
            package, ``package:skimage/data/coffee.png``; or a list of these.
        targets: ``predicted``; ``label`` (from the CSV file or the folders' names); ``top3`` for the three most
            probable classes; ``absent10`` for ten classes from the less probable half, evenly spread by rank; the index
            or the name of a class; or a list of these. ``auto`` means ``label`` if a CSV file contains targets,
            otherwise ``predicted``.
        classes: labels of the images to explain, as indices or names of classes; default: all images.
        batch_size: number of inputs that pass through the network together (an item counts once for each of its
            ``--model.seeds`` runs; if it has more, they pass in equal parts); or ``auto`` for as many as fit on the
            device. Explanations depend on it only by rounding.
        num_workers: number of threads that decode images ahead of time.
        upscale: whether to accept images smaller than half of the network's input in height or width.
        done: results folder whose finished items are skipped.
    """

    def __init__(
        self,
        images: str | list[str],
        targets: str | int | list[str | int] = "auto",
        classes: list[str | int] | None = None,
        batch_size: int | Literal["auto"] = 8,
        num_workers: int = 2,
        upscale: bool = False,
        done: str | Path | None = None,
    ) -> None:
        super().__init__()
        if batch_size != "auto" and batch_size < 1:
            raise InputError(f"Expected batch_size to be at least 1, or auto, but got {batch_size}.")
        if num_workers < 0:
            raise InputError(f"Expected num_workers to be at least 0, but got {num_workers}.")
        self.images = images
        self.targets = targets
        self.classes = classes
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.upscale = upscale
        self.done = None if done is None else Path(done)
        self.items: list[Item] | None = None
        self.recomputed: list[str] = []
        self._quick: QuickCheck | None = None
        self._unread: set[str] = set()
        self._failed = 0

    def list_items(self, classifier: Classifier) -> list[Item]:
        """List all items of the sweep, including those of other ranks.

        Raises:
            InputError: see `fgvis_lightning.data.items.list_items`.
        """
        if self.items is None:
            self.items = list_items(self.images, self.targets, classifier, self.classes)
        return self.items

    def setup(self, stage: str) -> None:
        """Determine the unfinished items of this rank's shard."""
        if self.sweep is not None:
            return
        assert self.trainer is not None
        self._model = cast("Any", self.trainer.lightning_module)
        items = self.list_items(self._model.classifier)
        done = folder.finished(self.done) if self.done else set()
        missing, present = split_by_done(items, self._model.classifier, done)
        self.total, self.skipped, self._files_before = len(items), len(present), len(done)
        # First shard, then filter, so that a run with other ranks, or after an interruption, covers all items.
        rank, ranks = self._rank = self.trainer.global_rank, self.trainer.world_size
        missing = [item for item in missing if item.number % ranks == rank]
        present = [(item, id) for item, id in present if item.number % ranks == rank]
        self._owner = f"rank{rank}"
        known, count = None, len(missing) + len(present)
        if self.done is not None:
            self._quick = QuickCheck(self.done, f"rank{rank}of{ranks}", self._model.fingerprint(), self._owner)
            if not missing and self._quick.same([*(item.path for item, _ in present), *self._files(present)]):
                present, self._quick = [], None
            unread = folder.unreadable(self.done)
            for item in missing if unread else ():
                if item.image_id in unread:
                    folder.forget_failure(self.done, item.image_id)
            known = folder.recall_number(self.done, "batch_size", self.total)
        # Limited by all items, not by the unfinished ones: the size must be the same after an interruption.
        size, together = self.batch_size, None
        if size != "auto":
            size, together = divided(size, self._model.rows_per_item)
            size = min(size, self.total)
        # The size that auto found once is an upper limit; a larger one would round differently after an interruption.
        largest = known or -(-self.total // ranks)
        first = None if known == 1 else known  # the runs of a single item may have been divided
        self.sweep = Sweep(self._stream(missing, present), size, count, largest, first, together)
        if self.sweep.peek() is None:  # nothing to do, so Lightning does not need to start
            self.trainer.fit_loop.max_epochs = 0
        elif size != "auto" and together is None and rank == 0:
            self._mention_memory(size * self._model.rows_per_item)

    def _mention_memory(self, rows: int) -> None:
        """Say how to save memory if several large inputs pass together: the system may end the process."""
        sides = self._model.classifier.preprocessing.size
        if rows > 1 and math.prod(sides) > LARGE:
            shape = "×".join(map(str, sides))
            told = f"{rows} inputs of {shape} pixels pass through the network together"
            print(f"{told}; --data.batch_size 1 takes the least memory.", file=sys.stderr)

    def note_unchanged(self) -> None:
        """Record that all of this rank's items have been checked, so that the next run can skip the check."""
        if self._quick is None or self.done is None:
            return
        classifier, (rank, ranks) = self._model.classifier, self._rank
        shard = [item for item in self.list_items(classifier) if item.number % ranks == rank]
        missing, present = split_by_done(shard, classifier, folder.finished(self.done))
        if not missing:
            self._quick.note([item.path for item, _ in present], self._files(present))

    def _files(self, present: Sequence[tuple[Item, str]]) -> list[str]:
        return [f"{self.done}/{EXPLANATIONS}/{id}{SUFFIX}" for _, id in present]

    def progress(self) -> tuple[int, int]:
        """Count the finished items of the whole sweep, and the unreadable ones, in the results folder."""
        if self.done is None or self.items is None:
            return 0, 0
        new = folder.count_finished(self.done) - self._files_before
        unread = folder.unreadable(self.done)
        if unread != self._unread:
            self._unread, self._failed = unread, sum(item.image_id in unread for item in self.items)
        return min(self.total, self.skipped + max(0, new)), self._failed

    def _stream(self, missing: Sequence[Item], present: Sequence[tuple[Item, str]]) -> Iterator[tuple[Item, Tensor]]:
        """Yield the missing items, decoded ahead, and then the items whose files must be computed again."""
        depth = 8 if self.batch_size == "auto" else self.batch_size
        yield from filter(None, ahead(self._read, missing, self.num_workers, depth))
        yield from filter(None, ahead(self._read_again, present, self.num_workers, depth))

    def _read(self, item: Item) -> tuple[Item, Tensor] | None:
        """The item with its image; None, and a note in the results folder, if it cannot be read."""
        try:
            image = load_image(item.path, self._model.classifier.preprocessing, upscale=self.upscale)
            return replace(item, sha256=content(item.path)), image
        except InputError as error:
            if self.done is not None:
                folder.note_failure(self.done, item.image_id, str(error), self._owner)
            return None

    def _read_again(self, present: tuple[Item, str]) -> tuple[Item, Tensor] | None:
        """The same for an item with a file; None also if the file can be used."""
        item, id = present
        assert self.done is not None
        try:
            sha256 = content(item.path)
        except InputError:  # listed in a CSV file and deleted since, so not replaced by another image
            sha256 = None
        reason = folder.why_unusable(self.done, id, self._model.fingerprint(), sha256)
        if reason is None:
            if sha256 is not None:  # the image may have moved
                path = item_file(self.done, id)
                change_metadata(path, {"image": printable(item.path)}, self._owner)
            return None
        print(f"\n{reason}: it will be computed again.", flush=True)
        self.recomputed.append(id)
        # Delete the file, so that its class or its summary is not mistaken for this configuration's.
        item_file(self.done, id).unlink(missing_ok=True)
        return self._read(item)
