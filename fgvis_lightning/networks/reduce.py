"""Dense outputs, as those of segmentation: what makes one score for each class of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from torch.nn import functional as F

from fgvis_lightning.errors import InputError
from fgvis_lightning.method.tasks import ATTRIBUTE, TASKS
from fgvis_lightning.networks.outputs import select

Reduce = Callable[[Any], Tensor]
"""Makes class scores (B,K) of a network's outputs."""


class Reduction(nn.Module):
    """A function behind a network. It is no part of the network, and has no gate.

    Args:
        function: makes class scores (B,K) of the network's outputs.
    """

    def __init__(self, function: Reduce) -> None:
        super().__init__()
        self.function = function

    def forward(self, outputs: Any) -> Tensor:
        return self.function(outputs)


class Reduced(nn.Module):
    """A network that returns class scores (B,K).

    Args:
        network: takes images.
        function: makes class scores of its outputs; its own task, where it has one, is that of the whole.
        output: which of the outputs the function is given; all of them unless given.
    """

    def __init__(self, network: nn.Module, function: Reduce, output: str | int | None = None) -> None:
        super().__init__()
        self.network = network
        self.output = output
        self.reduction = Reduction(function)
        if task := getattr(function, ATTRIBUTE, None):
            setattr(self, ATTRIBUTE, task)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.network(x)
        chosen = outputs if self.output is None else select(outputs, self.output, type(self.network).__name__)
        return self.reduction(chosen)


class SegmentationLogits(nn.Module):
    """Scores of the classes of a segmentation network: each class's mean log-odds over a region, for each image.

    The log-odds of class k at a pixel are those of its softmax probability there, so that the sigmoid of their mean is
    the class's score and the task is ``multilabel``: the classes of a picture do not compete, each being in a region of
    its own. The region of a class is where the network predicts it on the image that is explained, and stays that while
    masks are tried; the mean over a region is the score of Seg-Grad-CAM (Vinogradova et al., AAAI 2020, eq. 2). A class
    that is predicted nowhere is judged where its log-odds are highest.

    Args:
        region: one region for all classes and images instead: a picture whose pixels above half of white are in it, of
            any size; or a tensor (H,W) whose values above 0.5 are.
    """

    region: Tensor | None
    seen: Tensor | None

    def __init__(self, region: str | Path | Tensor | None = None) -> None:
        super().__init__()
        setattr(self, ATTRIBUTE, TASKS["multilabel"])
        given = region if isinstance(region, Tensor) or region is None else _read_region(region)
        if given is not None and not (given.ndim == 2 and (given > 0.5).any()):
            raise InputError(f"Expected a region (H,W) with values above 0.5, but got {region}.")
        # A buffer, since explanations depend on it as on the weights.
        self.register_buffer("region", None if given is None else (given > 0.5).float())
        self.looks = False
        self.seen = None

    def forward(self, outputs: Any) -> Tensor:
        """The outputs' logits (B,K,H,W), the tensor or the entry ``out`` or ``logits``, as scores (B,K)."""
        named = isinstance(outputs, Mapping) and "out" in outputs
        logits = select(outputs, "out" if named else None, "the segmentation network")
        if logits.ndim < 3:
            raise InputError(f"Expected dense logits (B,K,H,W), but got {tuple(logits.shape)}. Leave reduce out.")
        odds = pixel_log_odds(logits)
        if self.region is not None:
            region = F.interpolate(self.region.to(odds)[None, None], odds.shape[2:])[0, 0].expand_as(odds)
        else:
            region = F.one_hot(self._predicted(logits), odds.shape[1]).movedim(-1, 1).to(odds)
        flat, weights = odds.flatten(2), region.flatten(2)
        mean = (flat * weights).sum(2) / weights.sum(2).clamp(min=1)
        return torch.where(weights.any(2), mean, flat.amax(2))

    def _predicted(self, logits: Tensor) -> Tensor:
        """The class at each pixel (B,H,W), on the images that the rows of these logits (B,K,H,W) are made of."""
        predicted = logits.detach().argmax(1)
        if self.looks:
            self.seen = predicted
        if self.seen is None:
            return predicted
        count, rows = len(self.seen), len(predicted)
        if count % rows and rows % count:
            raise InputError(f"Expected a whole number of rows for each of {count} images, but got {rows}.")
        return self.seen[:: count // rows] if rows <= count else self.seen.repeat_interleave(rows // count, 0)


@contextmanager
def looking(network: nn.Module) -> Iterator[None]:
    """The passes within are on images that will be explained: their regions are kept."""
    modules = [module for module in network.modules() if isinstance(module, SegmentationLogits)]
    for module in modules:
        module.looks = True
    try:
        yield
    finally:
        for module in modules:
            module.looks = False


def pixel_log_odds(logits: Tensor) -> Tensor:
    """Log p/(1 - p) of each class's softmax probability, for logits (B,K,…); exact where p is near 0 or 1."""
    top = logits.argmax(1, keepdim=True)
    of_all = logits.logsumexp(1, keepdim=True)
    without_top = logits.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    # p is at most a half beside the top class, where 1 - p loses no digit.
    p = (logits - of_all).exp().scatter(1, top, 0)
    others = of_all + torch.log1p(-p)
    is_top = torch.zeros_like(logits, dtype=torch.bool).scatter(1, top, value=True)
    return logits - torch.where(is_top, without_top, others)


def _read_region(path: str | Path) -> Tensor:
    try:
        with Image.open(path) as file:
            return torch.from_numpy(np.array(file.convert("L"), dtype=np.float32) / 255)
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"Expected the picture of a region, but {path} cannot be read: {error}") from error
