"""Items to explain: pairs of an image and a target class, found in files and folders."""

from __future__ import annotations

import csv
import gc
import glob
import hashlib
import importlib.util
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fgvis_lightning.data.package_files import shipped
from fgvis_lightning.errors import InputError
from fgvis_lightning.names import slug
from fgvis_lightning.networks.classifier import Classifier


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to explain. A sweep has all of its items in memory, perhaps a million.

    Attributes:
        image_id: readable and unique name of the image.
        path: the image file; empty for images in memory.
        target: index of the target class; -1, -2, … for the most, second most, … probable class.
        number: the item's place in the whole listing, from 0.
    """

    image_id: str
    path: str
    target: int
    number: int = field(default=0, compare=False)

    @property
    def prefix(self) -> str:
        """How the item's id begins; known before the network has seen the image."""
        return f"{self.image_id}@top{-self.target}-" if self.target < 0 else f"{self.image_id}@"

    def id(self, target: int, classifier: Classifier) -> str:
        """Image and target class, readable and unique: ``coffee@espresso``, or ``coffee@top1-espresso``."""
        return self.prefix + classifier.class_slug(target)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """While millions of objects are made, looking for garbage among them takes as long as making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_garbage_collection()
def list_items(
    images: str | Sequence[str],
    targets: str | int | Sequence[str | int],
    classifier: Classifier,
    classes: Sequence[str | int] | None = None,
) -> list[Item]:
    """All items: each image with each of its target classes, images in sorted order.

    Args:
        images: as in `fgvis_lightning.data.image_data.ImageData`.
        targets: likewise.
        classifier: knows the classes.
        classes: likewise.

    Raises:
        InputError: nothing found, an unknown class, or labels that are not there.
    """
    photos = [photo for source in ([images] if isinstance(images, str) else images) for photo in _find(str(source))]
    if not photos:
        raise InputError(f"Expected images in {images}, but there are none.")
    wanted = [targets] if isinstance(targets, str | int) else list(targets)
    names = _image_ids([photo.path for photo in photos])
    resolve = _Targets(classifier, photos)
    if classes is not None:
        chosen = {index for word in classes for index in resolve.chosen(word)}
        photos = [photo for photo in photos if not chosen.isdisjoint(resolve("label", photo))]
        if not photos:
            raise InputError(f"Expected images of the classes {', '.join(map(str, classes))}, but {images} has none.")
    # The keys of a dict stay in order, and there is only one of what is named twice.
    pairs = dict.fromkeys(
        (photo.path, target) for photo in photos for word in wanted for target in resolve(word, photo)
    )
    return [Item(names[path], path, target, number) for number, (path, target) in enumerate(pairs)]


@_no_garbage_collection()
def split_by_done(
    items: Sequence[Item], classifier: Classifier, done: Collection[str]
) -> tuple[list[Item], list[tuple[Item, str]]]:
    """The items without a finished file, and those with one together with that file's id.

    An item with a rank is finished whatever class it turned out to be.

    Args:
        items: as `list_items` has them.
        classifier: knows the classes' names.
        done: ids of the items that have a file.
    """
    files: dict[str, str] = {}  # what is known of an id before the network has seen the image → id
    for id in done:
        ranked, dash, _ = id.rpartition("-")
        known = ranked + dash if "@" in ranked else id
        if known not in files or id < files[known]:  # of several the first, in whatever order they come
            files[known] = id
    missing: list[Item] = []
    present: list[tuple[Item, str]] = []
    for item in items:
        file = files.get(item.prefix if item.target < 0 else item.id(item.target, classifier))
        if file is None:
            missing.append(item)
        else:
            present.append((item, file))
    return missing, present


class _Photo(NamedTuple):
    path: str
    label: str | None = None
    listed: bool = False  # in a CSV file, with this label


PACKAGE = "package:"
IMAGE_SUFFIXES = frozenset(Image.registered_extensions())


def _find(source: str) -> list[_Photo]:
    """The image files that ``source`` names, sorted, or in the order of the CSV file."""
    if source.startswith(PACKAGE):
        return _find(packaged(source.removeprefix(PACKAGE)))
    path = Path(shipped(source))
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise InputError(f"Expected images, but {source} cannot be read: {error.strerror}.") from error
    if is_folder:
        return list(_walk("" if path == Path() else str(path)))
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    if exists:
        return [_Photo(source)]
    if matches := sorted(glob.glob(source, recursive=True)):  # noqa: PTH207 - pathlib takes no absolute patterns
        return [_Photo(file) for file in matches if _is_image(_name(file))]
    raise InputError(f"Expected a file, a glob, a folder or a CSV file with images, but there is no {source}.")


# A million paths take pathlib ten seconds. The next five do for strings what it does.


def _walk(folder: str, label: str | None = None) -> Iterator[_Photo]:
    """``sorted(Path(folder).rglob("*"))``, of that the images, labelled with the first folder below.

    Links to files are found, links to folders are not followed, folders that may not be read are passed over.
    """
    try:
        with os.scandir(folder or ".") as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except PermissionError:
        return
    except OSError as error:
        raise InputError(f"Expected a folder with images, but {folder} cannot be read: {error.strerror}.") from error
    found.sort(key=lambda entry: os.path.normcase(entry[0]))
    start = os.path.join(folder, "")  # noqa: PTH118
    for name, is_folder in found:
        if _is_image(name):
            yield _Photo(start + name, label)
        if is_folder:
            yield from _walk(start + name, label or name)


def _name(path: str) -> str:
    """``Path(path).name``."""
    name = "" if os.altsep else path.rpartition(os.sep)[2]  # Windows has two kinds of slashes
    return name if name not in ("", ".") else Path(path).name


def _stem(path: str) -> str:
    """``Path(path).stem``."""
    name = _name(path)
    stem, _, suffix = name.rpartition(".")
    return stem if stem and suffix else name


def _is_image(name: str) -> bool:
    """``Path(name).suffix.lower() in IMAGE_SUFFIXES``."""
    stem, _, suffix = name.rpartition(".")
    return bool(stem) and f".{suffix.lower()}" in IMAGE_SUFFIXES


def _is_tidy(path: str) -> bool:
    """Whether ``str(Path(path)) == path``; never on Windows, where pathlib turns slashes."""
    untidy = os.sep != "/" or path == "." or path.startswith("./") or path.endswith(("/", "/."))
    return not (untidy or "//" in path or "/./" in path)


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
    folder, start = path.parent, "" if path.parent == Path() else os.path.join(path.parent, "")  # noqa: PTH118
    photos = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            columns = {name: place for place, name in enumerate(header)}
            if "path" not in columns:
                raise InputError(f"Expected a CSV file with a header and a column 'path', but {path} has {header}.")
            path_column, target_column = columns["path"], columns.get("target", sys.maxsize)
            for number, row in enumerate(rows, 2):
                if not row:
                    continue
                image = row[path_column] if len(row) > path_column else ""
                if not image.strip():
                    raise InputError(
                        f"Expected an image in each row of {path}, but row {number} has nothing in its column 'path'. "
                        f"Fill it in, or delete the row."
                    )
                if image.startswith(PACKAGE):
                    image = packaged(image.removeprefix(PACKAGE))
                elif not _is_tidy(image):
                    image = str(folder / image)
                elif not image.startswith("/"):
                    image = start + image
                label = row[target_column].strip() if len(row) > target_column else ""
                photos.append(_Photo(image, sys.intern(label) or None, True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Expected a CSV file with images, but {path} cannot be read: {error}") from error
    return photos


def _image_ids(paths: Iterable[str]) -> dict[str, str]:
    """A readable name of at most 130 bytes for each path; no two are alike, also where case does not count.

    It is the file's name; where that is shared, ``folder_name_hash``; and should that be shared as well, be it with
    the name of another file, ``name_hash`` with so long a hash that no two are.
    """
    ids = {path: slug(_stem(path)) for path in paths}
    hashed: set[str] = set()
    while True:
        count = Counter(map(str.casefold, ids.values()))
        if len(count) == len(ids):
            return ids
        for path, name in ids.items():
            if count[name.casefold()] > 1:
                # Names of files may hold bytes that are not UTF-8, which Python shows as surrogates.
                digest = hashlib.sha256(path.encode(errors="surrogatepass")).hexdigest()
                if path in hashed:
                    ids[path] = f"{slug(_stem(path))}_{digest[:32]}"
                else:
                    ids[path] = f"{slug(_name(os.path.split(path)[0]))}_{name}_{digest[:8]}"
                    hashed.add(path)


class _Targets:
    """Turns words for targets into class indices."""

    def __init__(self, classifier: Classifier, photos: Iterable[_Photo]) -> None:
        self.classifier = classifier
        self.labels = sorted({photo.label for photo in photos if photo.label is not None})
        self._of_word = cache(self._word)  # looked up once for each word, not for each image
        self._of_label = cache(self._label)

    def chosen(self, word: str | int) -> Sequence[int]:
        """The class that the user names by its index or its name, or as its images' label."""
        return self._of_label(str(word))

    def __call__(self, word: str | int, photo: _Photo) -> Sequence[int]:
        """The targets that ``word`` means for one image."""
        if word == "auto":
            word = "label" if photo.listed and photo.label is not None else "predicted"
        if word != "label":
            return self._of_word(word)
        if photo.label is None:
            raise InputError(
                f"Expected a label for each image, but {photo.path} has none: use folders named after classes or a "
                f"CSV file with a column 'target', or --data.targets predicted."
            )
        return self._of_label(photo.label)

    def _word(self, word: str | int) -> Sequence[int]:
        if word == "predicted":
            return (-1,)
        if isinstance(word, str) and (rank := re.fullmatch(r"top-?(\d+)", word)):
            return range(-1, -int(rank[1]) - 1, -1)
        if isinstance(word, str) and (absent := re.fullmatch(r"absent(\d+)", word)):
            return self._absent(int(absent[1]))
        return (self._index(str(word)),)

    def _absent(self, count: int) -> Sequence[int]:
        """So many ranks, evenly spread over the less probable half of the classes."""
        classes = len(self.classifier.classes)
        if not 0 < count <= classes // 2:
            raise InputError(
                f"Expected absent with a number from 1 to half of the classes, but got absent{count} for {classes} "
                f"classes of {self.classifier.name}. Their names can be given with --model.classifier.classes."
            )
        first = classes - classes // 2 + 1
        return [-(first + (classes - first) * place // max(1, count - 1)) for place in range(count)]

    def _index(self, word: str) -> int:
        if not word.lstrip("-").isdigit():
            return self.classifier.class_index(word)
        count = len(self.classifier.classes)
        if int(word) < 0 or (count and int(word) >= count):
            raise InputError(f"Expected a class index from 0 to {count - 1 if count else 'K - 1'}, but got {word}.")
        return int(word)

    def _label(self, label: str) -> Sequence[int]:
        """A class by index or name; else by the label's place among all, as in torchvision's ImageFolder."""
        try:
            return (self._index(label),)
        except InputError:
            if len(self.labels) == len(self.classifier.classes) and label in self.labels:
                return (self.labels.index(label),)
            raise
