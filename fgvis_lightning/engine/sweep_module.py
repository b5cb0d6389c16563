"""The LightningModule base of FGVis and the other methods, which explains the items of a sweep."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from fgvis_lightning.data.batches import Batch, Sweep
from fgvis_lightning.engine.batch_size import is_out_of_memory
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.classifier import Classifier, channels_last
from fgvis_lightning.networks.logits import checked, why_not
from fgvis_lightning.results.attribution import Attribution
from fgvis_lightning.results.cost import Cost
from fgvis_lightning.results.explanation import Explanation


class SweepModule(pl.LightningModule, ABC):
    """Explains the items of each `Batch`, and passes finished items to every `ExplanationCallback`.

    Args:
        classifier: the frozen network.

    Attributes:
        network: takes normalized images (B,3,H,W), returns logits (B,K); set by the subclass.
        batch: the current batch.
        iterations: maximum number of steps for an item, if known.
        rows_per_item: number of times that an item's image passes through the network in a step.
        cost: accumulated cost of this run.
    """

    network: Any
    iterations: int = 1
    rows_per_item: int = 1

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.batch: Batch | None = None
        self.cost = Cost()
        self._fingerprint: tuple[str, str] | None = None

    def setup(self, stage: str) -> None:
        if len(self.classifier.preprocessing.size) == 2:
            channels_last(self.network)

    @property
    def sweep(self) -> Sweep:
        """The trainer's dataloader of batches.

        Raises:
            InputError: if the trainer has another kind of data.
        """
        sweep = getattr(self.trainer.datamodule, "sweep", None)  # type: ignore[attr-defined]
        if not isinstance(sweep, Sweep):
            raise InputError(
                f"Expected the trainer to get a data module with a sweep, but {type(self).__name__} got none. Use "
                f"explain(), or trainer.fit(module, datamodule=fgvis_lightning.data.image_data.ImageData('photos/'))."
            )
        return sweep

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images (B,C,H,W), 8-bit or in [0,1], on this module's device."""
        scale = 1 if images.is_floating_point() else 255
        images = images.to(self.device, self.dtype)  # type: ignore[arg-type]
        x = self.classifier.preprocessing.normalize(images / scale)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    @property
    def latest(self) -> tuple[Tensor, Tensor] | None:
        """Mean score and sparsity of the current items; None for methods without masks."""
        return None

    @torch.no_grad()
    def plain(self, x: Tensor) -> Tensor:
        """The network's own logits (B,K) of normalized images, outside autocast."""
        with torch.autocast(x.device.type, enabled=False):
            return self.network(x)

    def first_pass(self, x: Tensor, copies: int = 1) -> Tensor:
        """The network's own logits of new images, with checks.

        Args:
            x: normalized images (B,3,H,W).
            copies: number of successive copies of each image; the logits of the first copy are returned.

        Raises:
            InputError: if the network cannot run on the images or does not return logits.
        """
        try:
            logits = self.plain(x)
        except InputError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError) as error:
            if is_out_of_memory(error):
                raise
            raise InputError(why_not(self.network, self.classifier.name, x, error)) from error
        every = slice(None, None, copies)
        rows = isinstance(logits, Tensor) and logits.ndim
        return checked(logits[every] if rows else logits, x[every], self.classifier)

    def hand_out(self, places: Sequence[int], found: Explanation | Attribution) -> None:
        """Pass finished items to every `ExplanationCallback`."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ExplanationCallback):
                callback.on_explained(self.trainer, self, places, found)

    def input_settings(self) -> dict[str, Any]:
        """The network's name and preprocessing, for `settings`."""
        preprocessing = asdict(self.classifier.preprocessing)
        del preprocessing["source"], preprocessing["bands"]  # masks do not depend on them
        about = {"network": self.classifier.name, "task": self.classifier.task.name}
        return {**about, **preprocessing, "precision": str(self.trainer.precision)}

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return everything that an explanation depends on, apart from the image and the weights."""

    def fingerprint(self) -> str:
        """SHA-256 of `settings` and the weights, as hexadecimal digits."""
        text = json.dumps(self.settings(), sort_keys=True, default=list)
        if self._fingerprint is None or self._fingerprint[0] != text:
            digest = hashlib.sha256((text + self.classifier.fingerprint()).encode()).hexdigest()
            self._fingerprint = text, digest
        return self._fingerprint[1]


class ExplanationCallback(pl.Callback):
    """A callback that receives each finished item."""

    def on_explained(
        self, trainer: pl.Trainer, pl_module: SweepModule, places: Sequence[int], found: Explanation | Attribution
    ) -> None:
        """Receive finished items.

        Args:
            trainer: the trainer.
            pl_module: the module, whose ``batch`` still contains the items and images.
            places: places of the items in the batch.
            found: explanations of the items, on the CPU, in the order of ``places``.
        """
