"""Maps made outside this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.results.explanation import Attribution, Explanation
from fgvis_lightning.results.load import load_item
from fgvis_lightning.results.tensor_files import EXPLANATIONS, SUFFIX, UNREADABLE


def read(path: Path) -> Tensor | Explanation | Attribution:
    """A stored item, or the user's own map (1,H,W)."""
    try:
        if path.suffix == ".npy":
            saliency = torch.from_numpy(np.load(path, allow_pickle=False)).float()
        elif path.parent.name == EXPLANATIONS:
            return load_item(path)
        else:
            tensors = load_file(path)
            saliency = (tensors["map"] if "map" in tensors else next(iter(tensors.values()))).float()
    except (*UNREADABLE, StopIteration) as error:
        raise InputError(f"Expected a map, but {path} cannot be read: {error}") from error
    saliency = saliency.squeeze()
    if saliency.ndim != 2:
        raise InputError(f"Expected a map (H,W), but {path} has shape {tuple(saliency.shape)}.")
    return saliency[None]


def saliency_of(item: Tensor | Explanation | Attribution) -> Tensor:
    """The map (1,H,W) of what `read` returns."""
    return item if isinstance(item, Tensor) else item.saliency()


def stored(methods: Mapping[str, Mapping[str, Path]]) -> Mapping[str, Path]:
    """The files of the first method whose files name their images."""
    return next(paths for paths in methods.values() if any(path.suffix == SUFFIX for path in paths.values()))
