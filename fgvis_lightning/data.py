"""Batches of items, and how often each is handed out.

One epoch is one batch of items, and each of its training steps is one iteration of the masks'
optimizer: `Sweep` hands the same `Batch` out ``iterations`` times, then goes on to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from fgvis_lightning.errors import InputError
from fgvis_lightning.items import Failure, Item, Photos, list_items, still_to_do
from fgvis_lightning.network import Classifier
from fgvis_lightning.store import finished


class Batch:
    """A batch of items with their images (B,3,H,W), padded to full size with copies of the last one.

    Images are 8-bit, or floating point in [0,1]. ``number`` counts the batches of a sweep. Not a
    collection, so Lightning hands it on as it is instead of copying it in every iteration.
    """

    def __init__(self, items: Sequence[Item], images: Sequence[Tensor], size: int, number: int) -> None:
        missing = size - len(items)
        self.items = tuple(items)
        self.images = torch.stack([*images, *[images[-1]] * missing])
        self.targets = torch.tensor([item.target for item in [*items, *[items[-1]] * missing]])
        self.number = number

    def __len__(self) -> int:
        return len(self.items)


class Sweep:
    """An iterable for `Trainer.fit`: epoch k yields batch k ``iterations`` times.

    Args:
        stream: pairs of an item and its image (3,H,W), or failures, which are set aside.
        batch_size: items in a batch.
        iterations: training steps for each batch.
    """

    def __init__(self, stream: Iterable[tuple[Item, Tensor] | Failure], batch_size: int, iterations: int) -> None:
        self.failures: list[Failure] = []
        self._stream = iter(stream)
        self._batch_size = batch_size
        self._iterations = iterations
        self._number = 0
        self._next = self._read()

    def __len__(self) -> int:
        return self._iterations

    def __iter__(self) -> Iterator[Batch]:
        batch = self._next
        if batch is None:
            return
        for iteration in range(self._iterations):
            if iteration == self._iterations - 1:
                self._next = self._read()
            yield batch

    @property
    def shape(self) -> torch.Size | None:
        """Shape of every batch's images (B,3,H,W); None where there is none."""
        return None if self._next is None else self._next.images.shape

    @property
    def exhausted(self) -> bool:
        """Whether there is no batch left."""
        return self._next is None

    def _read(self) -> Batch | None:
        items, images = [], []
        for read in self._stream:
            if isinstance(read, Failure):
                self.failures.append(read)
                continue
            items.append(read[0])
            images.append(read[1])
            if len(items) == self._batch_size:
                break
        if not items:
            return None
        self._number += 1
        return Batch(items, images, self._batch_size, self._number)


class ImageData(LightningDataModule):
    """Photos and the classes to explain them for.

    Args:
        images: a file, a glob, a folder (searched through; one folder for each class as in torchvision's
            ImageFolder), a CSV file with columns ``path`` and, if wanted, ``target``, or a file that an
            installed package carries, ``package:skimage/data/coffee.png``; or a list of these.
        targets: ``predicted``; ``label`` (from the CSV or the folders' names); ``top3`` for the three most
            probable classes; the index or the name of a class; or a list of these. ``auto`` is ``label``
            where a CSV gives targets and ``predicted`` otherwise.
        batch_size: items that are explained together; no explanation depends on it beyond rounding.
        num_workers: processes that decode images ahead of time.
        upscale: accept images of less than half the network's input in height or width.
        done: results folder whose finished items are left out.
    """

    def __init__(
        self,
        images: str | list[str],
        targets: str | int | list[str | int] = "auto",
        batch_size: int = 8,
        num_workers: int = 0,
        upscale: bool = False,
        done: str | Path | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"Expected batch_size to be at least 1, but got {batch_size}.")
        self.images = images
        self.targets = targets
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.upscale = upscale
        self.done = done
        self.sweep: Sweep | None = None

    def setup(self, stage: str) -> None:
        """List the items that are still to do and read the first batch."""
        if self.sweep is not None:
            return
        assert self.trainer is not None
        model = self.trainer.lightning_module
        classifier, iterations = cast("Classifier", model.classifier), cast("int", model.iterations)
        items = list_items(self.images, self.targets, classifier)
        self.total = len(items)
        items = still_to_do(items, classifier, finished(Path(self.done)) if self.done else set())
        self.skipped = self.total - len(items)
        photos = Photos(items, classifier, self.upscale)
        loader = DataLoader(photos, batch_size=None, num_workers=self.num_workers)
        # Of all items, not of those left: the size must be the same after an interruption.
        batch_size = min(self.batch_size, self.total)
        self.sweep = Sweep(loader, batch_size, iterations)
        self.trainer.fit_loop.max_epochs = 0 if self.sweep.exhausted else -(-len(items) // batch_size)

    def train_dataloader(self) -> Sweep:
        assert self.sweep is not None
        return self.sweep
