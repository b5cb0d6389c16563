"""`explain`: the whole method for tensors in memory, with the same ``training_step`` as the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from fgvis_lightning.data.batches import Sweep, SweepData, divided
from fgvis_lightning.data.images import content
from fgvis_lightning.data.inputs import as_images, as_targets
from fgvis_lightning.data.items import Item
from fgvis_lightning.engine.precision import undisturbed
from fgvis_lightning.engine.strategy import quiet, trainer_options
from fgvis_lightning.engine.sweep_module import ExplanationCallback, SweepModule
from fgvis_lightning.errors import InputError
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.method.options import within
from fgvis_lightning.names import printable
from fgvis_lightning.networks.channels import dimensions_of
from fgvis_lightning.results.attribution import Attribution
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.folder import IMAGE


class _Collector(ExplanationCallback):
    """Collects all explanations in memory; images may be finished in any order."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.parts: list[Explanation] = []

    def on_explained(
        self, trainer: pl.Trainer, pl_module: SweepModule, places: Sequence[int], found: Explanation | Attribution
    ) -> None:
        assert pl_module.batch is not None
        assert isinstance(found, Explanation)
        self.numbers += [pl_module.batch.items[place].number for place in places]
        self.parts.append(found)


class _Bar(ExplanationCallback):
    """A progress bar of the iterations of all batches; one that has converged leaves its remaining iterations out."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SweepModule)
        self._bar = tqdm(total=len(pl_module.sweep), unit=" iterations")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._bar.update()

    def on_explained(
        self, trainer: pl.Trainer, pl_module: SweepModule, places: Sequence[int], found: Explanation | Attribution
    ) -> None:
        assert pl_module.batch is not None
        if set(pl_module.batch.used) <= set(places):  # the last ones of the batch
            self._bar.total -= pl_module.iterations - pl_module.batch.iterations
            self._bar.refresh()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._bar is not None:
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
    """Explain images in memory, with the same ``training_step`` as the command line.

    The caller's network does not change: parameters, buffers, hooks, training flag and gradients stay as they are. A
    copy in eval mode is explained.

    Args:
        network: a classifier of normalized images, or the name of one as in `FGVis`; or a ``functools.partial`` of a
            classifier with further inputs.
        images: (B,C,H,W) in [0,1], or 8-bit; one image (C,H,W); PIL images or paths, which are resized and cropped to
            the network's input; or, for a network whose first convolution has one or three dimensions, signals (B,C,T)
            or volumes (B,C,D,H,W) with any values, which ``normalize`` normalizes.
        targets: class indices or names, one for all images or one for each; several for a single image, which is then
            explained for each of them; None for the predicted class.
        game: ``preservation``, ``deletion``, ``generation`` or ``repression``.
        iterations: maximum number of optimizer steps; default: 200 for ``lam: auto``, 500 for a fixed λ.
        lam: weight λ ≥ 0 of the mask's size, or ``auto`` for the smallest evidence that reaches a level.
        seeds: number of runs for each image, which are averaged; default: 6 for ``lam: auto``, 1 for a fixed λ.
        task: meaning of the network's outputs: ``multiclass`` (exactly one class applies), ``multilabel`` (each label
            applies or not) or ``binary`` (one output, whose sigmoid is the score of class 1, or two outputs). A network
            with one output is recognized as binary, and a network that ends in several sigmoids as multilabel.
        defended: whether the gradient is gated.
        normalize: mean and standard deviation of each channel; None for the network's own if it provides them (as timm
            networks do), otherwise ImageNet's.
        precision: precision of Lightning's Trainer, e.g. ``bf16-mixed``.
        accelerator: accelerator of Lightning's Trainer, e.g. ``cpu`` or ``gpu``; one device is used.
        batch_size: number of inputs that pass through the network together, in which an image counts once for each of
            its ``seeds`` runs; None for all images, ``auto`` for as many as fit on the device. A number also is the
            size of a batch with fewer images, which is filled with copies, so that rounding does not depend on them.
        progress: whether to show a progress bar of the iterations.
        options: further arguments of `FGVis`, and of its ``classifier`` and ``defense``: ``level``, ``score``,
            ``reference``, ``noise``, ``seed``, ``optimizer``, ``gate``, ``exempt``; ``classes``, ``mean``, ``std``,
            ``size``, ….

    Returns:
        The `Explanation` of all images, on the CPU.

    Raises:
        InputError: if images, targets or options are invalid.
    """
    if normalize is not None:
        if given := [name for name in ("mean", "std") if name in options]:
            raise InputError(f"Expected either normalize or mean and std, but got normalize and {given[0]}.")
        options["mean"], options["std"] = _normalization(normalize)
    if batch_size is not None and batch_size != "auto":
        batch_size = within("batch_size", batch_size, 1, 10**6)
    dimensions = dimensions_of(network.func if isinstance(network, partial) else network)
    if isinstance(images, Tensor) and images.ndim > dimensions and "size" not in options:
        options["size"] = tuple(images.shape[-dimensions:])  # size of the images for the trial pass
    with undisturbed():
        with quiet(module="pytorch_lightning"):
            model = FGVis.of(
                network, game=game, lam=lam, iterations=iterations, seeds=seeds, task=task, defended=defended, **options
            )
        pictures = as_images(images, model.classifier.preprocessing)
        pictures = pictures.clone() if pictures.is_inference() else pictures
        classes = as_targets(targets, len(pictures), model.classifier)
        pictures = pictures.repeat_interleave(len(classes) // len(pictures), 0)
        trainer = {"accelerator": accelerator, "precision": precision}
        found = explain_with(model, pictures, classes, batch_size, progress, **trainer)
        background = model.classifier.preprocessing.background()
        return replace(found, images=pictures.cpu(), background=background, metadata=_where(images, model))


def _normalization(normalize: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel; raises `InputError` unless they are two sequences of numbers."""
    try:
        mean, std = (tuple(map(float, values)) for values in normalize)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Expected normalize to be mean and std with a number for each channel, such as ((0.5,) * 3, (0.25,) * 3), "
            f"but got {normalize!r}."
        ) from error
    return mean, std


def _where(images: Any, model: FGVis) -> dict[str, str]:
    """What a file of an explanation needs for `with_image`; empty unless the only image is a path."""
    alone = images[0] if isinstance(images, list | tuple) and len(images) == 1 else images
    if not isinstance(alone, str | Path):
        return {}
    path = str(Path(alone).absolute())
    return {"image": printable(path), IMAGE: content(path), "settings": json.dumps(model.settings())}


def explain_with(
    model: FGVis,
    images: Tensor,
    targets: Sequence[int],
    batch_size: int | Literal["auto"] | None,
    progress: bool = False,
    **trainer: Any,
) -> Explanation:
    """Explain images in memory with a module.

    Args:
        model: a new module.
        images: images (B,3,H,W), not normalized.
        targets: class indices (B,); -1 for the predicted class.
        batch_size: see `explain`.
        progress: whether to show a progress bar.
        trainer: ``accelerator``, ``precision`` and ``devices`` of Lightning's Trainer; one device is used.
    """
    pairs = enumerate(zip(targets, images, strict=True))
    stream = ((Item(str(number), "", target, number), image) for number, (target, image) in pairs)
    collector = _Collector()
    size: int | Literal["auto"] = "auto"
    together = None
    if batch_size != "auto":
        runs = model.rows_per_item
        size, together = divided(batch_size or len(images) * runs, runs)
    with quiet(module="pytorch_lightning"):
        with trainer_options():
            trained = pl.Trainer(
                **{"devices": 1, **trainer},
                max_epochs=1,
                callbacks=[collector, *([_Bar()] if progress else [])],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
        try:
            trained.fit(model, datamodule=SweepData(Sweep(stream, size, len(images), together=together)))
        except SystemExit as stopped:  # Lightning turns Ctrl-C into an exit
            if isinstance(stopped.__context__, KeyboardInterrupt):
                raise stopped.__context__ from None
            raise
    return Explanation.concatenate(collector.parts).select(torch.tensor(collector.numbers).argsort())
