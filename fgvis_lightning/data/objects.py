"""Annotated objects in images: boxes in CSV files, COCO annotations, folders of masks."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from fgvis_lightning.data.photos import FORMATS, IMAGE_SUFFIXES, PACKAGE, packaged
from fgvis_lightning.data.targets import Targets
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.texts import csv_rows, read_text

COLUMNS = ("image", "target", "x0", "y0", "x1", "y1")
SLACK = 1.0
"""A corner must lie less than this many pixels outside of its image; annotations are rounded."""


@dataclass(frozen=True)
class Polygons:
    """One or several polygons; a box is a polygon with four corners.

    A pixel is inside if its center is inside a polygon by the even-odd rule; the center of pixel (0,0) is (0.5,0.5).

    Attributes:
        polygons: polygons (n,2) with x and y of the corners in pixels.
        where: source of the polygons, for messages.
        size: height and width of the annotated image, if known.
    """

    polygons: tuple[NDArray[np.float64], ...]
    where: str
    size: tuple[int, int] | None = None

    def mask(self, height: int, width: int) -> Tensor:
        if self.size not in (None, (height, width)):
            raise InputError(
                f"Expected objects in pixels of the image file itself, {height}×{width}, but {self.where} is for an "
                f"image of {self.size[0]}×{self.size[1]}. Use the annotations of this image file."
            )
        corners = np.concatenate(self.polygons)
        low, high = corners.min(0), corners.max(0)
        if low.min() <= -SLACK or high[0] >= width + SLACK or high[1] >= height + SLACK:
            raise InputError(
                f"Expected objects inside of their image of {height}×{width} pixels, but {self.where} reaches from "
                f"x {low[0]:g}, y {low[1]:g} to x {high[0]:g}, y {high[1]:g}. Use pixels of the image file itself."
            )
        found = np.zeros((height, width), dtype=bool)
        for polygon in self.polygons:
            found |= _inside(polygon, height, width)
        return torch.from_numpy(found)


def _inside(polygon: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Pixels whose center is inside a polygon (n,2): between the 1st and 2nd, 3rd and 4th, … crossing of each row."""
    (x0, y0), (x1, y1) = polygon.T, np.roll(polygon, -1, 0).T
    found = np.zeros((height, width), dtype=bool)
    centers = np.arange(width) + 0.5
    for row in range(max(0, math.floor(polygon[:, 1].min())), min(height, math.ceil(polygon[:, 1].max()))):
        y = row + 0.5
        crosses = (y0 <= y) != (y1 <= y)
        at = x0[crosses] + (y - y0[crosses]) * (x1 - x0)[crosses] / (y1 - y0)[crosses]
        found[row] = np.searchsorted(np.sort(at), centers, side="right") % 2 == 1
    return found


@dataclass(frozen=True)
class RunLengths:
    """COCO's uncompressed run lengths, column by column, alternating between pixels outside and inside."""

    counts: tuple[int, ...]
    size: tuple[int, int]
    where: str

    def mask(self, height: int, width: int) -> Tensor:
        if self.size != (height, width) or sum(self.counts) != height * width or min(self.counts) < 0:
            raise InputError(
                f"Expected run lengths for an image of {height}×{width} pixels, but {self.where} has "
                f"{sum(self.counts)} pixels for {self.size[0]}×{self.size[1]}. Use the annotations of this image file."
            )
        inside = torch.arange(len(self.counts)) % 2 == 1
        return inside.repeat_interleave(torch.tensor(self.counts)).view(width, height).T


@dataclass(frozen=True)
class MaskFile:
    """A mask in an image file: the object consists of all pixels that are not black."""

    path: Path

    def mask(self, height: int, width: int) -> Tensor:
        try:
            with Image.open(self.path, formats=FORMATS) as file:
                upright = ImageOps.exif_transpose(file)
                # Only colors count, not palette indices or transparency.
                colors = upright.convert("RGB") if upright.mode in ("P", "PA", "RGBA", "LA") else upright
                values = np.asarray(colors)
        except Exception as error:  # Pillow's plugins raise many kinds of errors
            raise InputError(f"Expected a mask, but {self.path} cannot be read: {error}") from error
        marked = values.reshape(*values.shape[:2], -1).any(-1)
        if marked.shape != (height, width):
            raise InputError(
                f"Expected a mask of the image's size, {height}×{width}, but {self.path} has "
                f"{marked.shape[0]}×{marked.shape[1]} pixels. Use pixels of the image file itself."
            )
        return torch.from_numpy(marked)


Shape = Polygons | RunLengths | MaskFile
"""The shape of an object. Its ``mask(height, width)`` are booleans (height,width), true on the object, for an image of
this size; it raises InputError if the shape does not fit into the image, or cannot be read."""


@dataclass(frozen=True)
class Marked:
    """An object.

    Attributes:
        image: path of the image, or the end of the path.
        target: index of the object's class; None for the class that the image is explained for.
        shape: shape of the object.
    """

    image: str
    target: int | None
    shape: Shape


def read_objects(source: str, classifier: Classifier) -> list[Marked]:
    """Read objects from a CSV file with `COLUMNS`, or from a JSON file in COCO's format.

    Classes are given by name or index, see `fgvis_lightning.data.targets.Targets`. COCO categories that are not classes
    of the network are ignored.

    Raises:
        InputError: if the file cannot be read, names an unknown class, or has invalid values.
    """
    path = Path(source)
    try:
        read = _coco if path.suffix.lower() == ".json" else _table
        found = list(read(path, Targets(classifier, [])))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Expected boxes or masks, but {source} cannot be read: {error}") from error
    if not found:
        raise InputError(f"Expected objects of the classes of {classifier.name}, but {source} has none.")
    return found


def _table(path: Path, targets: Targets) -> Iterator[Marked]:
    header, rows = csv_rows(path, COLUMNS)
    header = [name.lower() for name in header]
    if missing := [name for name in COLUMNS if name not in header]:
        raise InputError(
            f"Expected a CSV file with the columns {', '.join(COLUMNS)}, a COCO file FILE.json or a folder of masks, "
            f"but {path} lacks {', '.join(missing)}."
        )
    for number, row in rows:
        where = f"row {number} of {path}"
        cells = dict(zip(header, row, strict=False))
        try:
            x0, y0, x1, y1 = (float(cells[name]) for name in COLUMNS[2:])
        except (KeyError, ValueError) as error:
            raise InputError(f"Expected numbers x0, y0, x1 and y1 in {where}, but got {row}.") from error
        box = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        if not np.isfinite(box).all() or x1 <= x0 or y1 <= y0:
            raise InputError(f"Expected x0 < x1 and y0 < y1 in {where}, but got {x0:g}, {y0:g}, {x1:g}, {y1:g}.")
        image, word = cells["image"].strip(), cells["target"].strip()
        if not image or not word:
            raise InputError(f"Expected an image and its target in {where}, but got {row}.")
        try:
            (target,) = targets.chosen(word)
        except InputError as error:
            raise InputError(f"{error} It is the target in {where}.") from error
        if image.startswith(PACKAGE):
            image = packaged(image.removeprefix(PACKAGE))
        elif (path.parent / image).exists():
            image = str(path.parent / image)
        yield Marked(image, target, Polygons((box,), where))


def _coco(path: Path, targets: Targets) -> Iterator[Marked]:
    text = read_text(path)
    try:
        whole = json.loads(text)
        images = {image["id"]: image for image in whole["images"]}
        names = {category["id"]: str(category["name"]) for category in whole["categories"]}
        annotations = list(whole["annotations"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"Expected COCO's images, annotations and categories in {path}, but it has another format: {error}"
        ) from error
    classes: dict[Any, int] = {}
    for id, name in names.items():
        try:
            (classes[id],) = targets.chosen(name)
        except InputError:
            continue
    for number, annotation in enumerate(annotations):
        where = f"annotation {annotation.get('id', number)} of {path}" if isinstance(annotation, dict) else str(path)
        try:
            image, category = images[annotation["image_id"]], annotation["category_id"]
            if category not in names:
                raise KeyError(category)
            if category in classes:
                yield Marked(str(image["file_name"]), classes[category], _coco_shape(annotation, image, where))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"Expected {where} in COCO's format, but it is invalid: {error!r}") from error


def _coco_shape(annotation: Mapping[str, Any], image: Mapping[str, Any], where: str) -> Shape:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        if isinstance(segmentation["counts"], str):
            raise InputError(
                f"Expected polygons or run lengths as numbers, but {where} has compressed run lengths (RLE). Decode "
                f"them with pycocotools.mask.decode, or delete the segmentation to use the box instead."
            )
        height, width = segmentation["size"]
        return RunLengths(tuple(int(count) for count in segmentation["counts"]), (int(height), int(width)), where)
    if segmentation:
        polygons = tuple(np.array(corners, dtype=np.float64).reshape(-1, 2) for corners in segmentation)
    else:
        x, y, wide, high = map(float, annotation["bbox"])
        if not (wide > 0 and high > 0):
            raise InputError(f"Expected a box with a width and a height in {where}, but got {annotation['bbox']}.")
        polygons = (np.array([[x, y], [x + wide, y], [x + wide, y + high], [x, y + high]]),)
    if any(len(polygon) < 3 or not np.isfinite(polygon).all() for polygon in polygons):
        raise InputError(f"Expected polygons of at least three corners in {where}, but got {segmentation}.")
    size = (int(image["height"]), int(image["width"])) if {"height", "width"} <= image.keys() else None
    return Polygons(polygons, where, size)


def read_masks(folder: Path) -> dict[str, Marked]:
    """The masks of a folder, by their file names without suffix: the id of an item, or the name of an image.

    Raises:
        InputError: if there are no masks.
    """
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not paths:
        raise InputError(f"Expected masks <item id>.png or <name of the image>.png, but there are none in {folder}.")
    return {path.stem: Marked(path.stem, None, MaskFile(path)) for path in paths}


def by_image(objects: Sequence[Marked], paths: Iterable[str]) -> dict[str, list[Marked]]:
    """Path of each image → its objects; objects of other images are dropped.

    An object's image is one of the paths, or the end of a path after a slash: ``cats/1.jpg`` for ``/data/cats/1.jpg``.

    Raises:
        InputError: if it is the end of several paths.
    """
    known = {str(Path(path).resolve()): path for path in paths}
    named: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
    for whole, path in known.items():
        named[Path(whole).name].append((Path(whole).parts, path))
    found: dict[str, list[Marked]] = defaultdict(list)
    for marked in objects:
        parts = Path(marked.image).parts
        exact = known.get(str(Path(marked.image).resolve()))
        ends = [path for whole, path in named[Path(marked.image).name] if whole[-len(parts) :] == parts]
        if exact is None and len(ends) > 1:
            raise InputError(
                f"Expected {marked.image} to match one image, but it matches {', '.join(sorted(ends)[:3])}. Use its "
                f"path, or more of the path's end."
            )
        for path in [exact] if exact is not None else ends:
            found[path].append(marked)
    return found
