"""`explain`: the whole method for tensors in memory, over the same ``training_step`` as the command line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from fgvis_lightning.data.batches import Sweep, SweepData
from fgvis_lightning.data.inputs import as_images, as_targets
from fgvis_lightning.data.items import Item
from fgvis_lightning.engine.lightning_logs import quiet
from fgvis_lightning.engine.strategy import trainer_options
from fgvis_lightning.engine.sweep_module import ExplanationCallback, SweepModule
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.networks.channels import dimensions_of
from fgvis_lightning.results.explanation import Attribution, Explanation


class _Collector(ExplanationCallback):
    """Keeps all explanations in memory; they are finished in an order of their own."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.parts: list[Explanation] = []

    def on_explained(
        self, trainer: pl.Trainer, pl_module: SweepModule, places: Sequence[int], found: Explanation | Attribution
    ) -> None:
        assert pl_module.batch is not None
        assert isinstance(found, Explanation)
        items = [pl_module.batch.items[place] for place in places]
        self.numbers += [item.number for item in items if item is not None]
        self.parts.append(found)

    def result(self) -> Explanation:
        """All explanations in the order of their images."""
        return Explanation.concatenate(self.parts).select(torch.tensor(self.numbers).argsort())


class _Bar(ExplanationCallback):
    """A bar of the finished images, with the iteration of those in work.

    Args:
        count: of all images.
    """

    def __init__(self, count: int) -> None:
        self._bar = tqdm(total=count, unit="image")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._bar.set_postfix(iteration=batch.iterations, refresh=batch.iterations % 10 == 0)

    def on_explained(
        self, trainer: pl.Trainer, pl_module: SweepModule, places: Sequence[int], found: Explanation | Attribution
    ) -> None:
        self._bar.update(len(places))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._bar.close()


def explain(
    network: nn.Module | str | partial[Any],
    images: Tensor | Image.Image | str | Path | Sequence[Image.Image | str | Path],
    targets: Tensor | int | str | Sequence[int | str] | None = None,
    *,
    game: Literal["preservation", "deletion", "generation", "repression"] = "preservation",
    iterations: int | None = None,
    lam: float | Literal["auto"] = "auto",
    seeds: int | None = None,
    task: Literal["multiclass", "multilabel", "binary"] = "multiclass",
    defended: bool = True,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    precision: Any = "32-true",
    accelerator: str = "auto",
    batch_size: int | Literal["auto"] | None = None,
    progress: bool = False,
    **options: Any,
) -> Explanation:
    """Explain images in memory; the same ``training_step`` as the command line runs.

    The caller's network is left as it is: parameters, buffers, hooks, training flag and gradients.
    It is explained in eval mode.

    Args:
        network: a classifier of normalized images, or the name of one as in `FGVis`; or ``functools.partial`` of one
            that takes more than images.
        images: (B,C,H,W) in [0,1], or 8-bit; one image (C,H,W); or PIL images or paths, which are resized and cropped
            to the network's input; or signals (B,C,T) or volumes (B,C,D,H,W) of any numbers, as ``normalize`` takes
            them, where the network's first convolution is one of these.
        targets: class indices or names, one for all images or one for each; None for the predicted class.
        game: ``preservation``, ``deletion``, ``generation`` or ``repression``.
        iterations: steps of the optimizer, at most; unless given, 200 for ``lam: auto`` and 500 for a fixed λ.
        lam: weight λ ≥ 0 of the mask's size, or ``auto`` for the smallest evidence that reaches a level.
        seeds: runs of each image whose mean the explanation is; unless given, 6 for ``lam: auto``, 1 for a fixed λ.
        task: what the network's outputs say: ``multiclass`` (one class is there), ``multilabel`` (each label is there
            or not) or ``binary`` (one output, whose sigmoid is class 1's score, or two). What has one output is binary,
            and what ends in several sigmoids is multilabel, also where nobody says so.
        defended: whether the gradient is gated.
        normalize: mean and standard deviation by channel that the network expects; None for the
            network's own where it brings them (timm's do), else ImageNet's.
        precision: as in Lightning's Trainer, e.g. ``bf16-mixed``.
        accelerator: Lightning's, e.g. ``cpu`` or ``gpu``; one device of it.
        batch_size: how many images at a time; None for all, ``auto`` for the most that fit the device.
        progress: whether to show a bar of the finished images.
        options: further arguments of `FGVis`, and of its ``classifier`` and ``defense``: ``level``, ``score``,
            ``reference``, ``noise``, ``seed``, ``optimizer``, ``gate``, ``exempt``, ``classes``, ….

    Returns:
        The `Explanation` of all images, on the CPU.

    Raises:
        InputError: images, targets or options that cannot be used.
    """
    mean, std = map(tuple, normalize) if normalize is not None else (None, None)
    dimensions = dimensions_of(network.func if isinstance(network, partial) else network)
    if isinstance(images, Tensor) and images.ndim > dimensions and "size" not in options:
        options["size"] = tuple(images.shape[-dimensions:])  # what the network is tried on
    # Callers may be in inference mode, as Lightning's validation loop is, whose tensors have no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        with _silence():
            model = FGVis.of(
                network,
                mean=mean,
                std=std,
                game=game,
                lam=lam,
                iterations=iterations,
                seeds=seeds,
                task=task,
                defended=defended,
                **options,
            )
        pictures = as_images(images, model.classifier.preprocessing)
        pictures = pictures.clone() if pictures.is_inference() else pictures
        classes = as_targets(targets, len(pictures), model.classifier)
        trainer = {"accelerator": accelerator, "precision": precision}
        found = explain_with(model, pictures, classes, batch_size or len(pictures), progress, **trainer)
        return replace(found, images=pictures.cpu(), background=model.classifier.preprocessing.background())


def explain_with(
    model: FGVis,
    images: Tensor,
    targets: Sequence[int],
    batch_size: int | Literal["auto"],
    progress: bool = False,
    **trainer: Any,
) -> Explanation:
    """Explain images in memory by a module.

    Args:
        model: new.
        images: (B,3,H,W), as ``model.normalize`` takes them.
        targets: class indices (B,); -1 for the predicted class.
        batch_size: how many images at a time, or ``auto``.
        progress: whether to show a bar.
        trainer: ``accelerator``, ``precision`` and ``devices`` as in Lightning's Trainer; one device.
    """
    pairs = enumerate(zip(targets, images, strict=True))
    stream = ((Item(str(number), "", target, number), image) for number, (target, image) in pairs)
    collector = _Collector()
    with _silence():
        with trainer_options():
            trained = pl.Trainer(
                **{"devices": 1, **trainer},
                max_epochs=1,
                callbacks=[collector, *([_Bar(len(images))] if progress else [])],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
        try:
            trained.fit(model, datamodule=SweepData(Sweep(stream, batch_size, len(images))))
        except SystemExit as stopped:  # Lightning makes an exit of Ctrl-C
            if isinstance(stopped.__context__, KeyboardInterrupt):
                raise stopped.__context__ from None
            raise
    return collector.result()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep Lightning's log lines and advice away from a notebook."""
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pytorch_lightning")
        yield
