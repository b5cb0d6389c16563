"""Items to explain: pairs of an image and a target class, found in files and folders."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fgvis_lightning.data.photos import find_photos, image_ids
from fgvis_lightning.data.targets import Targets
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.classifier import Classifier


@dataclass(frozen=True, slots=True)
class Item:
    """An image and a target class. A sweep has all of its items in memory, perhaps a million.

    Attributes:
        image_id: readable and unique name of the image.
        path: the image file; empty for images in memory.
        target: index of the target class; -1, -2, … for the most, second most, … probable class.
        number: position of the item in the whole listing, from 0.
        sha256: `fgvis_lightning.data.images.content` of the file; empty until it is read, and for images in memory.
    """

    image_id: str
    path: str
    target: int
    number: int = field(default=0, compare=False)
    sha256: str = field(default="", compare=False)

    @property
    def prefix(self) -> str:
        """Beginning of the item's id, which is known before the network has seen the image."""
        return f"{self.image_id}@top{-self.target}-" if self.target < 0 else f"{self.image_id}@"

    def id(self, target: int, classifier: Classifier) -> str:
        """Readable and unique id of image and target class: ``coffee@espresso``, or ``coffee@top1-espresso``."""
        return self.prefix + classifier.class_slug(target)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection, which would double the time to create millions of objects."""
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
    """List all items: each image with each of its target classes, images in sorted order.

    Args:
        images: see `fgvis_lightning.data.image_data.ImageData`.
        targets: see `ImageData`.
        classifier: the classifier, whose class names targets may use.
        classes: see `ImageData`.

    Raises:
        InputError: if there are no images, if a class is unknown, or if labels are missing.
    """
    photos = [
        photo
        for source in ([images] if isinstance(images, str) else images)
        for photo in find_photos(str(source), arrays=classifier.preprocessing.chosen_channels == "all")
    ]
    if not photos:
        raise InputError(
            f"Expected images in {images}, but there are none. For arrays in a folder, use a glob: FOLDER/*.npy."
        )
    wanted = [targets] if isinstance(targets, str | int) else list(targets)
    if not wanted:
        raise InputError("Expected targets, e.g. predicted, but got an empty list.")
    names = image_ids([photo.path for photo in photos])
    resolve = Targets(classifier, photos)
    if classes is not None:
        chosen = {index for word in classes for index in resolve.chosen(word)}
        photos = [photo for photo in photos if not chosen.isdisjoint(resolve("label", photo))]
        if not photos:
            raise InputError(f"Expected images of the classes {', '.join(map(str, classes))}, but {images} has none.")
    # The keys of a dict keep their order and drop duplicates.
    pairs = dict.fromkeys(
        (photo.path, target) for photo in photos for word in wanted for target in resolve(word, photo)
    )
    if not pairs:
        raise InputError(
            f"Expected labels with a probability above {classifier.task.threshold}, but none of {len(photos)} images "
            f"has one. Lower --model.threshold, or name the labels with --data.targets."
        )
    return [Item(names[path], path, target, number) for number, (path, target) in enumerate(pairs)]


@_no_garbage_collection()
def split_by_done(
    items: Sequence[Item], classifier: Classifier, done: Collection[str]
) -> tuple[list[Item], list[tuple[Item, str]]]:
    """Split items into those without a finished file, and those with a file, together with the file's id.

    An item whose target is a rank is finished if there is a file for any class of this rank. ``done`` are the ids of
    all files.
    """
    files: dict[str, str] = {}  # part of an id known before the network has seen the image → id
    for id in done:
        ranked, dash, _ = id.rpartition("-")
        known = ranked + dash if "@" in ranked else id
        if known not in files or id < files[known]:  # the first of several in sorted order
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
