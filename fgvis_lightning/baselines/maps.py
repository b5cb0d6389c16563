"""A LightningModule that makes the maps of a method in a sweep, like FGVis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fgvis_lightning.baselines.progress import reporting
from fgvis_lightning.data.batches import Batch
from fgvis_lightning.engine.sweep_module import SweepModule
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.folding import faster
from fgvis_lightning.networks.logits import resolve
from fgvis_lightning.results.attribution import Attribution

LARGEST = 8  # batch size for ``auto``; most methods form their own batches for each image


class MapModule(SweepModule):
    """Makes the maps of a batch in each training step.

    Args:
        method: function of a network, normalized images (B,3,H,W) and target classes (B,) that returns maps (B,H,W), or
            a pair of normalized images (B,3,H,W) and maps, see `fgvis_lightning.baselines.base.MaskMethod`.
        classifier: the frozen network.
        name: name of the method.
        parameters: parameters of the method, which a map depends on.
        fold: whether the method gets the network with batch normalization folded into convolutions.
        hides: what replaces the rest in the images, see `fgvis_lightning.baselines.base.MaskMethod`.
    """

    def __init__(
        self,
        method: Callable[[nn.Module, Tensor, Tensor], Tensor | tuple[Tensor, Tensor]],
        classifier: Classifier,
        name: str,
        parameters: dict[str, Any],
        fold: bool = False,
        hides: str = "",
    ) -> None:
        super().__init__(classifier)
        self.automatic_optimization = False
        self.network = faster(classifier) if fold else classifier.network
        self.method = method
        self.name = name
        self.hides = hides
        self.parameters_of_method = parameters

    def configure_optimizers(self) -> None:
        """Return None, since there is nothing to train."""
        if self.sweep.size == "auto":
            self.sweep.size = min(LARGEST, self.sweep.largest)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.batch = batch
        places = batch.used
        x = self.normalize(batch.images[places])
        logits = self.first_pass(x)
        targets = resolve(batch.targets[places].to(x.device), logits, self.classifier)
        with reporting(self._report), self.cost.of(self.network):
            try:
                found = self.method(self.network, x, targets)
            except StopIteration as error:  # Lightning would interpret it as the end of the data
                raise InputError(
                    f"Expected {self.name} to return maps, but it raised StopIteration, as next() does after the last "
                    f"item. Check its __call__."
                ) from error
        self.cost.images += len(places)
        images, maps = found if isinstance(found, tuple) else (None, found)
        maps = self._checked(maps, x[:, 0].shape, "maps", "__call__")
        if images is not None:
            images = self._checked(images, x.shape, "images", "explanation")
            images = self.classifier.preprocessing.denormalize(images)
        scores = self.classifier.task.probability(logits.float(), targets).cpu()
        self._found = Attribution(maps, targets.cpu(), scores, self.name, explanation=images, hides=self.hides)

    def _checked(self, tensor: Tensor, shape: torch.Size, what: str, where: str) -> Tensor:
        """Check a result of the method, and return it in float32 on the CPU."""
        if tensor.shape != shape or not tensor.isfinite().all():
            wrong = " with NaN or infinity" if tensor.shape == shape else ""
            raise InputError(
                f"Expected {self.name} to return finite {what} of shape {tuple(shape)}, but got "
                f"{tuple(tensor.shape)}{wrong}. Check its {where}."
            )
        return tensor.detach().float().cpu()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.hand_out(batch.used, self._found)
        batch.finish(batch.used)

    def _report(self, done: int, total: int) -> None:
        """Show steps as iterations in the progress line."""
        assert self.batch is not None
        self.iterations, self.batch.iterations = total, done

    def settings(self) -> dict[str, Any]:
        return {**self.input_settings(), "method": self.name, **self.parameters_of_method}
