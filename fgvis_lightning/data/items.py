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
    """One thing to explain. A sweep has all of its items in memory, perhaps a million.

    Attributes:
        image_id: readable and unique name of the image.
        path: the image file; empty for images in memory.
        target: index of the target class; -1, -2, … for the most, second most, … probable class.
        number: the item's place in the whole listing, from 0.
        sha256: `fgvis_lightning.data.images.content` of the file; empty until it is read, and for images in memory.
    """

    image_id: str
    path: str
    target: int
    number: int = field(default=0, compare=False)
    sha256: str = field(default="", compare=False)

    @property
    def prefix(self) -> str:
        """Beginning of the item's id, known before the network has seen the image."""
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
    """List all items: each image with each of its target classes, images in sorted order.

    Args:
        images: as in `fgvis_lightning.data.image_data.ImageData`.
        targets: as in `ImageData`.
        classifier: the classifier, whose class names targets may use.
        classes: as in `ImageData`.

    Raises:
        InputError: if there are no images, a class is unknown, or labels are missing.
    """
    photos = [
        photo
        for source in ([images] if isinstance(images, str) else images)
        for photo in find_photos(str(source), arrays=classifier.preprocessing.chosen_channels == "all")
    ]
    if not photos:
        raise InputError(
            f"Expected images in {images}, but there are none. Arrays in a folder are named by a glob: FOLDER/*.npy."
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
    # The keys of a dict stay in order, and there is only one of what is named twice.
    pairs = dict.fromkeys(
        (photo.path, target) for photo in photos for word in wanted for target in resolve(word, photo)
    )
    if not pairs:
        raise InputError(
            f"Expected labels with a probability above {classifier.threshold}, but none of {len(photos)} images has "
            f"one. Lower --model.threshold, or name the labels with --data.targets."
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
