"""Explanations from files, with their images, which are read again from their own files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.preprocessing import Preprocessing
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.folder import IMAGE
from fgvis_lightning.results.lines import few_lines
from fgvis_lightning.results.load import check_links, load_item
from fgvis_lightning.results.tensor_files import EXPLANATIONS, SUFFIX

SETTINGS = ("size", "resize", "interpolation", "mean", "std")

LARGEST = 16  # maximum size of an image before the crop, in multiples of the explanation's size


def stored_preprocessing(settings: Mapping[str, Any], size: tuple[int, ...]) -> Preprocessing:
    """The preprocessing in a file's settings; if unknown, ImageNet's for the size of the mask."""
    given: dict[str, Any]
    try:
        given = {name: tuple(one) if isinstance(one := settings[name], list) else one for name in SETTINGS}
        levels = tuple(settings["levels"]) if settings.get("levels") else None
        known = Preprocessing(**given, levels=levels, channels=settings.get("channels"))
        resize = known.resize if isinstance(known.resize, int) else max(known.resize)
        return known if resize <= LARGEST * max(size) else Preprocessing(size=size, resize=min(size))
    except (KeyError, ValueError, TypeError):
        return Preprocessing(size=size, resize=min(size))


def explained_image(metadata: Mapping[str, str], preprocessing: Preprocessing) -> Tensor:
    """The image (C,H,W) in [0,1] explained by a file with these metadata.

    Raises:
        InputError: if it cannot be read, or has changed.
    """
    path, sha256 = metadata["image"], metadata.get(IMAGE)
    return as_float(load_image(path, preprocessing, upscale=True, sha256=sha256))


def check_same_input(metadata: Mapping[str, str], id: str, preprocessing: Preprocessing) -> None:
    """Raise `InputError` if a network's input has another size or crop than the item with these metadata."""
    own = json.loads(json.dumps({"size": preprocessing.size, "resize": preprocessing.resize}))
    theirs = {name: value for name, value in json.loads(metadata.get("settings", "{}")).items() if name in own}
    if differing := [
        f"{name} {value} there and {own[name]} here" for name, value in theirs.items() if value != own[name]
    ]:
        raise InputError(
            f"Expected the network that made {id}, but the input differs: {'; '.join(differing)}. Give that network "
            f"and its size with --model.network and --model.classifier.size."
        )


def with_image(explanation: Explanation, folder: str | Path | None = None) -> Explanation:
    """An explanation from a file together with its image.

    The pictures of an explanation from `load_explanation` read the image by themselves, if it is still where it was
    explained; this function also takes the folder to which it has moved.

    Args:
        explanation: result of `load_explanation` (B = 1), or selected from one.
        folder: where the image file is now, if it is not where it was explained.

    Raises:
        InputError: if the explanation is not that of an image file, or if the image is missing or has changed.
    """
    metadata = dict(explanation.metadata)
    if not {"image", IMAGE} <= metadata.keys():
        raise InputError(
            "Expected an explanation of an image file, but got one that names no image. "
            "Pass the images as draw(explanation, images)."
        )
    if folder is not None:
        metadata["image"] = str(Path(folder) / Path(metadata["image"]).name)
    size = tuple(explanation.mask.shape[2:])
    preprocessing = stored_preprocessing(json.loads(metadata.get("settings", "{}")), size)
    try:
        image = explained_image(metadata, preprocessing)
    except InputError as error:
        raise InputError(f"{error} If it has moved, pass its folder as with_image(explanation, folder).") from error
    background = preprocessing.background().to(image)
    return replace(explanation, images=image.expand(len(explanation), *image.shape), background=background)


def load_explanation(path: str | Path) -> Explanation:
    """Read one explanation file (B = 1) and verify its checksum.

    Its pictures read the explained image again, see `with_image`.

    Raises:
        InputError: if the file is missing, damaged, or not an explanation.
    """
    item = load_item(path)
    if not isinstance(item, Explanation):
        raise InputError(
            f"Expected an explanation by FGVis, but {path} is a map of {item.method}. "
            f"Read it with fgvis_lightning.results.load.load_item."
        )
    return replace(item, reread=with_image)


class Explanations(Sequence[Explanation]):
    """Explanations of a results folder, in the order of their ids; each file is read on access.

    They print the lines of the first explanations, see `fgvis_lightning.Explanation`.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    @overload
    def __getitem__(self, index: int) -> Explanation: ...
    @overload
    def __getitem__(self, index: slice) -> Explanations: ...
    def __getitem__(self, index: int | slice) -> Explanation | Explanations:
        if isinstance(index, slice):
            return Explanations(self.paths[index])
        return load_explanation(self.paths[index])

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return few_lines(len(self), self._line)

    def _line(self, place: int) -> str:
        try:
            return repr(self[place])
        except InputError:
            return f"{self.paths[place].name} cannot be read"


def load_explanations(folder: str | Path) -> Explanations:
    """The explanations in a results folder or in its ``explanations`` folder.

    Raises:
        InputError: if there are none, or if the folder has a link to the outside.
    """
    check_links(Path(folder))
    folders = Path(folder) / EXPLANATIONS, Path(folder)
    paths = next((found for found in (sorted(f.glob(f"[!.]*{SUFFIX}")) for f in folders) if found), None)
    if not paths:
        raise InputError(f"Expected a results folder with explanations, but there are none in {folder}.")
    return Explanations(paths)
