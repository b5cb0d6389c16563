"""Explanations during training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.parameter import is_lazy

from fgvis_lightning.api import explain
from fgvis_lightning.errors import InputError
from fgvis_lightning.method.options import within
from fgvis_lightning.names import slug
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.figures import pixels
from fgvis_lightning.results.notebook import figure_of


class ExplainCallback(pl.Callback):
    """Explains a few images every n epochs with the module in training, and logs panels to its TensorBoard.

    The training does not change, bit for bit: weights, random numbers and modes stay the same. Each time, the callback
    takes ``len(images) · iterations · seeds`` passes of the network with gradients, on rank 0, while other ranks wait
    at their next synchronization. When the training starts, it tries one iteration.

    Args:
        images: images (B,C,H,W) in [0,1], PIL images or paths.
        targets: class indices, or names among ``classes``, one for all images or one for each; None for the predicted
            class.
        every_n_epochs: number of epochs between two explanations, and before the first one.
        network: name of the module's attribute that takes normalized images and returns logits, e.g. ``net``; None for
            the module's own ``forward``.
        iterations: see `fgvis_lightning.explain`, whose default would take long during training.
        seeds: see `fgvis_lightning.explain`.
        options: further arguments of `fgvis_lightning.explain`: ``normalize``, ``game``, ``task``, ``classes``, ….

    Attributes:
        latest: the latest explanations; None before the first ones.
    """

    def __init__(
        self,
        images: Tensor | Sequence[Image.Image | str | Path],
        targets: Any = None,
        *,
        every_n_epochs: int = 1,
        network: str | None = None,
        iterations: int = 60,
        seeds: int = 1,
        **options: Any,
    ) -> None:
        self.images = images
        self.targets = targets
        self.every_n_epochs = within("every_n_epochs", every_n_epochs, 1, 10**6)
        self.network = network
        self.options = {"iterations": iterations, "seeds": seeds, **options}
        self.latest: Explanation | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise `InputError` before the first epoch if the attribute ``network`` does not exist."""
        if self.network is not None and not isinstance(getattr(pl_module, self.network, None), torch.nn.Module):
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise InputError(
                f"Expected network to be a module of {type(pl_module).__name__} ({names}), but got {self.network!r}."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Try one iteration, so that a mistake in the arguments does not end the training after n epochs.

        Raises:
            InputError: if images, targets or options are invalid.
        """
        if trainer.is_global_zero and not any(map(is_lazy, pl_module.parameters())):  # lazy weights come with a batch
            with isolate_rng():
                self._explain(pl_module, iterations=1, seeds=1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs or not trainer.is_global_zero:
            return
        with isolate_rng():
            self.latest = self._explain(pl_module)
            self._log(trainer, self.latest)

    def _explain(self, pl_module: pl.LightningModule, **options: Any) -> Explanation:
        network = pl_module if self.network is None else getattr(pl_module, self.network)
        return explain(
            network, self.images, self.targets, **{"accelerator": pl_module.device.type, **self.options, **options}
        )

    def _log(self, trainer: pl.Trainer, found: Explanation) -> None:
        loggers: list[Any] = trainer.loggers
        writers = [logger.experiment for logger in loggers if _is_tensorboard(logger)]
        if not writers:
            warnings.warn(
                "ExplainCallback logs to TensorBoard, but the trainer has no TensorBoardLogger.", stacklevel=2
            )
            return
        for index, name in enumerate(found.names):
            picture = pixels(figure_of(found, index))
            for writer in writers:
                writer.add_image(f"explanations/{index}_{slug(name)}", picture, trainer.global_step, dataformats="HWC")


def _is_tensorboard(logger: Any) -> bool:
    """Whether a logger is Lightning's for TensorBoard, of ``pytorch_lightning`` or of ``lightning``."""
    return any(base.__name__ == "TensorBoardLogger" for base in type(logger).__mro__)
