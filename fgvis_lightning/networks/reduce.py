"""Reduction of dense outputs, such as those of segmentation, to one score for each class."""

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
from fgvis_lightning.networks.outputs import select, two_classes

Reduce = Callable[[Any], Tensor]
"""Function that turns a network's outputs into class scores (B,K)."""


class Reduction(nn.Module):
    """A function behind a network; it is not a part of the network, and has no gate.

    Args:
        function: function that turns the network's outputs into class scores (B,K).
    """

    def __init__(self, function: Reduce) -> None:
        super().__init__()
        self.function = function

    def forward(self, outputs: Any) -> Tensor:
        return self.function(outputs)


class Reduced(nn.Module):
    """A network that returns class scores (B,K).

    Args:
        network: a network of images.
        function: function that turns the network's outputs into class scores; the task of the result is the function's
            own, if it has one.
        output: the output to pass to the function; all outputs by default.
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
    """Class scores of a segmentation network: the mean log-odds of each class over a region, for each image.

    The log-odds of class k at a pixel are those of its softmax probability, so the sigmoid of their mean is the class's
    score. The task is ``multilabel``, since the classes of a picture do not compete; each has its own region. The
    region of a class consists of the pixels for which the network predicts it on the explained image, and stays fixed
    while masks are optimized. The mean over a region is the score of Seg-Grad-CAM (Vinogradova et al., AAAI 2020,
    eq. 2). For a class that is predicted nowhere, the score is its highest log-odds.

    Args:
        region: a fixed region for all classes and images: a picture of any size, whose pixels brighter than half of
            white are inside; or a tensor (H,W), whose values above 0.5 are inside.
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
        """Class scores (B,K) from logits (B,K,H,W), given as a tensor or as an entry ``out`` or ``logits``."""
        named = isinstance(outputs, Mapping) and "out" in outputs
        logits = select(outputs, "out" if named else None, "the segmentation network")
        if logits.ndim < 3:
            raise InputError(f"Expected dense logits (B,K,H,W), but got {tuple(logits.shape)}. Leave reduce out.")
        if logits.shape[1] == 1:  # a sigmoid at each pixel
            logits = two_classes(logits)
        odds = pixel_log_odds(logits)
        if self.region is not None:
            region = F.interpolate(self.region.to(odds)[None, None], odds.shape[2:])[0, 0].expand_as(odds)
        else:
            region = F.one_hot(self._predicted(logits), odds.shape[1]).movedim(-1, 1).to(odds)
        flat, weights = odds.flatten(2), region.flatten(2)
        mean = (flat * weights).sum(2) / weights.sum(2).clamp(min=1)
        return torch.where(weights.any(2), mean, flat.amax(2))

    def _predicted(self, logits: Tensor) -> Tensor:
        """The predicted class at each pixel (B,H,W) on the explained images of these logits (B,K,H,W)."""
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
    """Record the regions of all passes inside this context, which run on the images to explain."""
    modules = [module for module in network.modules() if isinstance(module, SegmentationLogits)]
    for module in modules:
        module.looks = True
    try:
        yield
    finally:
        for module in modules:
            module.looks = False


def pixel_log_odds(logits: Tensor) -> Tensor:
    """Log p/(1 - p) of each class's softmax probability for logits (B,K,…), exact for p near 0 or 1."""
    top = logits.argmax(1, keepdim=True)
    of_all = logits.logsumexp(1, keepdim=True)
    without_top = logits.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    # Except for the top class, p is at most 0.5, so 1 - p keeps full precision.
    p = (logits - of_all).exp().scatter(1, top, 0)
    others = of_all + torch.log1p(-p)
    is_top = torch.zeros_like(logits, dtype=torch.bool).scatter(1, top, value=True)
    return logits - torch.where(is_top, without_top, others)


def _read_region(path: str | Path) -> Tensor:
    try:
        with Image.open(path) as file:
            return torch.from_numpy(np.array(file.convert("L"), dtype=np.float32) / 255)
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"Expected a picture of a region, but {path} cannot be read: {error}") from error
