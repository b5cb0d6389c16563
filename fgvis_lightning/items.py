"""Items to explain: pairs of an image and a target class, found in files and folders, and their pictures."""

from __future__ import annotations

import csv
import glob
import hashlib
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from fgvis_lightning.errors import InputError
from fgvis_lightning.network import Classifier, Preprocessing
from fgvis_lightning.store import slug


@dataclass(frozen=True)
class Item:
    """One thing to explain.

    Attributes:
        image_id: readable and unique name of the image.
        path: the image file; empty for images in memory.
        target: index of the target class; -1, -2, … for the most, second most, … probable class.
    """

    image_id: str
    path: str
    target: int

    @property
    def prefix(self) -> str:
        """How the item's id begins; known before the network has seen the image."""
        return f"{self.image_id}@top{-self.target}-" if self.target < 0 else f"{self.image_id}@"

    def id(self, target: int, classifier: Classifier) -> str:
        """Image and target class, readable and unique: ``coffee@espresso``, or ``coffee@top1-espresso``."""
        name = classifier.class_name(target)
        words = slug(name if classifier.classes.count(name) < 2 else f"{name} {target}")
        return self.prefix + words


@dataclass(frozen=True)
class Failure:
    """An image that could not be read, and why."""

    path: str
    reason: str


class Photos(Dataset[tuple[Item, Tensor] | Failure]):
    """Items with their decoded images (3,H,W), 8-bit, as the classifier's preprocessing has them."""

    def __init__(self, items: Sequence[Item], classifier: Classifier, upscale: bool = False) -> None:
        self.items = items
        self.preprocessing = classifier.preprocessing
        self.upscale = upscale

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Item, Tensor] | Failure:
        if index >= len(self.items):
            raise IndexError(index)
        item = self.items[index]
        try:
            return item, load_image(item.path, self.preprocessing, upscale=self.upscale)
        except InputError as error:
            return Failure(item.path, str(error))


def load_image(path: str, preprocessing: Preprocessing, *, upscale: bool = False) -> Tensor:
    """An image file as 8-bit RGB (3,H,W), resized and center-cropped to the network's input.

    Any format that Pillow opens; turned as its EXIF orientation says; transparent parts on white.

    Raises:
        InputError: missing, not an image, damaged, or too small.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):  # 16-bit gray; Pillow's own conversion would clip it
                image = image.point(lambda value: value / 256).convert("L")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"Expected an image, but there is no file {path}.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"Expected an image, but Pillow knows no format for {path}.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"Expected an image, but {path} cannot be decoded: {error}") from error
    height, width = preprocessing.size
    if not upscale and (2 * image.height < height or 2 * image.width < width):
        raise InputError(
            f"Expected an image of at least half the network's input of {height}×{width} pixels, but {path} has "
            f"{image.height}×{image.width}. Enlarge such images with --data.upscale true."
        )
    resize = [preprocessing.resize] if isinstance(preprocessing.resize, int) else list(preprocessing.resize)
    resized = tvf.resize(image, resize, InterpolationMode(preprocessing.interpolation), antialias=True)
    return tvf.pil_to_tensor(tvf.center_crop(resized, [height, width]))


def list_items(
    images: str | Sequence[str], targets: str | int | Sequence[str | int], classifier: Classifier
) -> list[Item]:
    """All items: each image with each of its target classes, images in sorted order.

    Raises:
        InputError: nothing found, an unknown class, or labels that are not there.
    """
    photos = [photo for source in ([images] if isinstance(images, str) else images) for photo in _find(str(source))]
    if not photos:
        raise InputError(f"Expected images in {images}, but there are none.")
    wanted = [targets] if isinstance(targets, str | int) else list(targets)
    names = _image_ids([photo.path for photo in photos])
    resolve = _Targets(classifier, photos)
    # A dict keeps the order and drops what is named twice.
    return list(
        {
            Item(names[photo.path], photo.path, target): None
            for photo in photos
            for word in wanted
            for target in resolve(word, photo)
        }
    )


def still_to_do(items: Sequence[Item], classifier: Classifier, done: set[str]) -> list[Item]:
    """The items without a finished file; for a rank, whatever class it turned out to be."""
    ranks = {id.rpartition("-")[0] + "-" for id in done if "-" in id}
    return [
        item
        for item in items
        if (item.prefix not in ranks if item.target < 0 else item.id(item.target, classifier) not in done)
    ]


@dataclass(frozen=True)
class _Photo:
    path: str
    label: str | None = None
    listed: bool = False  # in a CSV file, with this label


IMAGE_SUFFIXES = frozenset(Image.registered_extensions())


def _find(source: str) -> list[_Photo]:
    """The image files that ``source`` names, sorted, or in the order of the CSV file."""
    if source.startswith("package:"):
        return _find(packaged(source.removeprefix("package:")))
    path = Path(source)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        return [_Photo(str(file), file.relative_to(path).parts[0] if file.parent != path else None) for file in found]
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    if path.exists():
        return [_Photo(source)]
    if matches := sorted(glob.glob(source, recursive=True)):  # noqa: PTH207 - pathlib takes no absolute patterns
        return [_Photo(file) for file in matches if Path(file).suffix.lower() in IMAGE_SUFFIXES]
    raise InputError(f"Expected a file, a glob, a folder or a CSV file with images, but there is no {source}.")


def packaged(source: str) -> str:
    """The path of ``package/folder/file`` where that package is installed."""
    package, _, file = source.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise InputError(
            f"Expected the installed package {package!r}, which is to carry {file}, but there is none. "
            f'The demo\'s photos come with: pip install "fgvis-lightning[demo]"'
        )
    return str(Path(spec.origin).parent / file)


def _read_csv(path: Path) -> list[_Photo]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, columns = list(table), table.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Expected a CSV file with images, but {path} cannot be read: {error}") from error
    if "path" not in columns:
        raise InputError(f"Expected a CSV file with a header and a column 'path', but {path} has {columns}.")
    return [_Photo(str(path.parent / row["path"]), (row.get("target") or "").strip() or None, True) for row in rows]


def _image_ids(paths: Iterable[str]) -> dict[str, str]:
    """A readable, unique name for each path: the file's name, with folders and a hash where that is shared."""
    unique = dict.fromkeys(paths)
    short = {path: slug(Path(path).stem) for path in unique}
    count = Counter(name.casefold() for name in short.values())
    return {
        path: name
        if count[name.casefold()] == 1
        else f"{slug(Path(path).parent.name)}_{name}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
        for path, name in short.items()
    }


class _Targets:
    """Turns words for targets into class indices."""

    def __init__(self, classifier: Classifier, photos: Iterable[_Photo]) -> None:
        self.classifier = classifier
        self.labels = sorted({photo.label for photo in photos if photo.label is not None})

    def __call__(self, word: str | int, photo: _Photo) -> list[int]:
        """The targets that ``word`` means for one image."""
        if word == "auto":
            word = "label" if photo.listed and photo.label is not None else "predicted"
        if word == "predicted":
            return [-1]
        if isinstance(word, str) and (rank := re.fullmatch(r"top-?(\d+)", word)):
            return [-k for k in range(1, int(rank[1]) + 1)]
        if word != "label":
            return [self._index(str(word))]
        if photo.label is None:
            raise InputError(
                f"Expected a label for each image, but {photo.path} has none: use folders named after classes or a "
                f"CSV file with a column 'target', or --data.targets predicted."
            )
        return [self._label(photo.label)]

    def _index(self, word: str) -> int:
        if not word.lstrip("-").isdigit():
            return self.classifier.class_index(word)
        count = len(self.classifier.classes)
        if int(word) < 0 or (count and int(word) >= count):
            raise InputError(f"Expected a class index from 0 to {count - 1 if count else 'K - 1'}, but got {word}.")
        return int(word)

    def _label(self, label: str) -> int:
        """A class by index or name; else by the label's place among all, as in torchvision's ImageFolder."""
        try:
            return self._index(label)
        except InputError:
            if len(self.labels) == len(self.classifier.classes):
                return self.labels.index(label)
            raise
