"""Target classes: by rank, index, name or label."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

import torch

from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.data.photos import Photo
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.logits import checked

MOST = 10_000  # maximum number of ranks for an image if the number of classes is unknown


class Targets:
    """Converts targets given as words to class indices."""

    def __init__(self, classifier: Classifier, photos: Iterable[Photo]) -> None:
        self.classifier = classifier
        self.folders = sorted({photo.label for photo in photos if photo.label is not None and not photo.listed})
        self._names = {name.lower() for name in classifier.classes}
        count = len(classifier.classes)
        # The rule for all folders is determined once, since there may be a thousand folders and classes.
        self._by_place = len(self.folders) == count and self._names.isdisjoint(map(str.lower, self.folders))
        self._are_indices = all(folder.isdecimal() and int(folder) < count for folder in self.folders)
        self._of_word = cache(self._word)  # computed once for each word, not for each image
        self._of_label = cache(self._label)
        self._of_folder = cache(self._folder)

    def chosen(self, word: str | int) -> Sequence[int]:
        """The class given by its index, its name, or the name of its images' folder."""
        return self._of_folder(str(word)) if str(word) in self.folders else self._of_label(str(word))

    def __call__(self, word: str | int, photo: Photo) -> Sequence[int]:
        """The targets of one image for ``word``."""
        if word == "auto":
            word = "label" if photo.listed and photo.label is not None else "predicted"
        if word == "predicted" and self.classifier.task.name == "multilabel":
            return self._predicted(photo.path)
        if word != "label":
            return self._of_word(word)
        if photo.label is None:
            raise InputError(
                f"Expected a label for each image, but {photo.path} has none. Use folders named after classes, a "
                f"CSV file with a column 'target', or --data.targets predicted."
            )
        return self._of_label(photo.label) if photo.listed else self._of_folder(photo.label)

    @torch.no_grad()
    def _predicted(self, path: str) -> Sequence[int]:
        """All predicted labels of an image; a rank for an unreadable image, so that it is reported later."""
        classifier = self.classifier
        try:
            image = load_image(path, classifier.preprocessing, upscale=True)
        except InputError:
            return (-1,)
        network = classifier.network.to("cuda" if torch.cuda.is_available() else "cpu")
        weight = next((tensor for tensor in network.buffers() if tensor.is_floating_point()), image)
        x = classifier.preprocessing.normalize(as_float(image))[None].to(weight)
        logits = checked(network(x), x, classifier).float()
        every = torch.arange(logits.shape[1], device=logits.device)
        found = classifier.task.present(logits.expand(len(every), -1), every)
        labels: list[int] = found.nonzero().flatten().tolist()
        return labels

    def _word(self, word: str | int) -> Sequence[int]:
        if word == "predicted":
            return (-1,)
        if isinstance(word, str) and (rank := re.fullmatch(r"top-?(\d+)", word)):
            count, most = int(rank[1]), len(self.classifier.classes) or MOST
            if not 1 <= count <= most:
                raise InputError(f"Expected top with a number from 1 to {most}, but got {word}.")
            return range(-1, -count - 1, -1)
        if isinstance(word, str) and (absent := re.fullmatch(r"absent(\d+)", word)):
            return self._absent(int(absent[1]))
        return (self._index(str(word)),)

    def _absent(self, count: int) -> Sequence[int]:
        """``count`` ranks, spread evenly over the less probable half of the classes."""
        classes = len(self.classifier.classes)
        if not 0 < count <= classes // 2:
            raise InputError(
                f"Expected absent with a number from 1 to half of the classes, but got absent{count} for {classes} "
                f"classes of {self.classifier.name}. Set class names with --model.classifier.classes."
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
        """A class by name (even if the name is 7) or by index."""
        return (self.classifier.class_index(label) if label.lower() in self._names else self._index(label),)

    def _folder(self, label: str) -> Sequence[int]:
        """The class of a folder, with the same rule for all folders.

        If any folder has the name of a class, folder names are class names. Otherwise, if there is one folder for each
        class, the class is the folder's position in sorted order, as in torchvision's ImageFolder; if not, the folder's
        name is the class's index.

        Raises:
            InputError: if a folder is not a class, or if its position and its name as an index differ.
        """
        if not self._by_place:
            return self._label(label)
        place = self.folders.index(label)
        if self._are_indices and int(label) != place:
            raise InputError(
                f"Expected folders whose names determine their classes, but {label} is class {label} as an index and "
                f"class {place} in the sorted order of torchvision's ImageFolder. Set the folders' names as classes "
                f"with --model.classifier.classes, or use a CSV file with columns 'path' and 'target'."
            )
        return (place,)
