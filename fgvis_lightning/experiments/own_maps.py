"""Files with the maps of several methods: folders of ``fit`` and ``compare``, and maps made outside this package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.sweeps import NAMES
from fgvis_lightning.results.attribution import Attribution
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.folder import files
from fgvis_lightning.results.load import check_links, load_item
from fgvis_lightning.results.tensor_files import EXPLANATIONS, SUFFIX, UNREADABLE


def find_methods(results: Sequence[str] | str, maps: dict[str, str]) -> dict[str, dict[str, Path]]:
    """Name of a method → item id → its file.

    Raises:
        InputError: if a folder has no explanations, or if two methods share a name.
    """
    found: dict[str, dict[str, Path]] = {}

    def add(name: str, paths: dict[str, Path]) -> None:
        if name in found:
            raise InputError(f"Expected a different name for each method, but got {name} twice.")
        found[name] = paths

    for source in [results] if isinstance(results, str) else results:
        folder, before = Path(source), len(found)
        check_links(folder)
        names = json.loads(path.read_text(encoding="utf-8")) if (path := folder / NAMES).exists() else {}
        below = sorted(sub for sub in folder.glob("*") if sub.is_dir())
        below.sort(key=lambda sub: list(names).index(sub.name) if sub.name in names else len(names))
        if unknown := [sub.name for sub in below if names and sub.name not in names and any(files(sub))]:
            print(f"left out, since {folder}'s configuration no longer has them: {', '.join(unknown)}")
            below = [sub for sub in below if sub.name in names]
        for each in [folder] if any(files(folder)) else below:
            paths = list(files(each))
            if paths:
                item = load_item(paths[0])
                name = item.method if isinstance(item, Attribution) else str(names.get(each.name, each.name))
                add(name, {path.name.removesuffix(SUFFIX): path for path in paths})
        if len(found) == before:
            raise InputError(f"Expected a folder of fit or compare, but found no explanations in {folder}.")
    for name, source in maps.items():
        paths = [path for path in Path(source).glob("*") if path.suffix in (".npy", SUFFIX)]
        if not paths:
            raise InputError(f"Expected maps <item id>.npy or <item id>{SUFFIX}, but found none in {source}.")
        add(name, {path.name.removesuffix(path.suffix): path for path in paths})
    return found


def common_items(methods: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """The ids of the items that all methods of `find_methods` have; raises `InputError` if there are none."""
    ids = sorted(set.intersection(*map(set, methods.values())))
    if not ids:
        counts = ", ".join(f"{name} {len(found)}" for name, found in methods.items())
        raise InputError(f"Expected items that all methods have, but got methods without a common item: {counts}.")
    return ids


def read(path: Path) -> Tensor | Explanation | Attribution:
    """A stored item, or the user's own map (1,H,W)."""
    if path.suffix == SUFFIX and path.parent.name == EXPLANATIONS:
        return load_item(path)
    try:
        if path.suffix == ".npy":
            saliency = torch.from_numpy(np.load(path, allow_pickle=False)).float()
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


def fitting_map(item: Tensor | Explanation | Attribution, size: torch.Size, id: str, method: str) -> Tensor:
    """The map (1,H,W) of an item by a method, for a network with this input size (H,W).

    Raises:
        InputError: if the map has another size, or NaN or infinite values.
    """
    saliency = saliency_of(item)
    if saliency.shape[1:] != size:
        raise InputError(
            f"Expected maps of {tuple(size)}, the network's input size, but that of {id} by {method} has "
            f"{tuple(saliency.shape[1:])}. Give the network that made them, and its size with --model.classifier.size; "
            f"enlarge your own maps to this size."
        )
    if not saliency.isfinite().all():
        raise InputError(f"Expected maps without NaN and infinity, but that of {id} by {method} has some.")
    return saliency


def stored(methods: Mapping[str, Mapping[str, Path]]) -> Mapping[str, Path]:
    """The files of the first method whose files name their images."""
    return next(paths for paths in methods.values() if any(path.suffix == SUFFIX for path in paths.values()))
