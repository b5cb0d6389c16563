"""Finding photos in files, folders, globs, CSV files and installed packages."""

from __future__ import annotations

import csv
import glob
import hashlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fgvis_lightning.data.arrays import ARRAYS
from fgvis_lightning.errors import InputError
from fgvis_lightning.names import slug
from fgvis_lightning.texts import csv_rows


class Photo(NamedTuple):
    """An image file, and its label from its folder or from a CSV file."""

    path: str
    label: str | None = None
    listed: bool = False  # in a CSV file, with this label


PACKAGE = "package:"
HOME = Path(__file__).parents[1]  # of this package, with its folder configs/
LABELS = {"label", "labels", "class", "classes", "targets", "category"}
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG"}
# Without formats that run another program, or that Pillow recognizes but cannot decode.
FORMATS = sorted(set(Image.registered_extensions().values()) & Image.OPEN.keys() - {"EPS", "WMF"} - STUBS)
IMAGE_SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)


def find_photos(source: str, arrays: bool = False) -> list[Photo]:
    """Find the images of a file, glob, folder, CSV file or installed package's file, sorted or in the CSV file's order.

    NumPy arrays in a folder count as images if ``arrays``; explicitly named arrays always do.
    """
    if not source.strip():
        raise InputError("Expected a file, a glob, a folder or a CSV file with images, but got an empty name.")
    if source.startswith(PACKAGE):
        return find_photos(packaged(source.removeprefix(PACKAGE)), arrays)
    path = Path(shipped(source))
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise InputError(f"Expected images, but {source} cannot be read: {error.strerror}.") from error
    if is_folder:
        return list(_walk("" if path == Path() else str(path), IMAGE_SUFFIXES | ARRAYS if arrays else IMAGE_SUFFIXES))
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    if exists:
        return [Photo(source)]
    if matches := sorted(glob.glob(source, recursive=True)):  # pathlib takes no absolute patterns
        return [Photo(file) for file in matches if _is_image(os.path.basename(file), IMAGE_SUFFIXES | ARRAYS)]
    raise InputError(f"Expected a file, a glob, a folder or a CSV file with images, but {source} does not exist.")


# pathlib takes ten seconds for a million paths. The functions below do the same with strings.


def _walk(
    folder: str, suffixes: Collection[str], label: str | None = None, above: tuple[str, ...] = ()
) -> Iterator[Photo]:
    """The images in ``sorted(Path(folder).rglob("*"))``, labeled with the name of the first folder below.

    Links are followed, but not into a folder ``above`` this one. Folders without read permission are skipped.
    """
    try:
        with os.scandir(folder or ".") as entries:
            found = [(entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries]
    except PermissionError:
        return
    except OSError as error:
        raise InputError(f"Expected a folder with images, but {folder} cannot be read: {error.strerror}.") from error
    found.sort(key=lambda entry: os.path.normcase(entry[0]))
    start = os.path.join(folder, "")
    for name, is_folder, is_link in found:
        if is_folder:
            if is_link or above:  # only links can form cycles
                above = above or (os.path.realpath(folder or "."),)
                real = os.path.realpath(start + name)
                if real in above or above[0].startswith(os.path.join(real, "")):
                    continue
                yield from _walk(start + name, suffixes, label or name, (*above, real))
            else:
                yield from _walk(start + name, suffixes, label or name)
        elif _is_image(name, suffixes):
            yield Photo(start + name, label)
        elif label is None and name.lower().endswith(".csv"):
            _say_unread(start + name)


def _say_unread(path: str) -> None:
    """Mention a CSV file with a column ``path`` beside the images of a folder."""
    with suppress(OSError), open(path, "rb") as file:
        if b"path" in file.readline(1000).lower():
            print(
                f"{path} is not read. To take images and targets from it, give it instead of its folder.",
                file=sys.stderr,
            )


def _stem(path: str) -> str:
    """``Path(path).stem``."""
    name = os.path.basename(path)
    stem, _, suffix = name.rpartition(".")
    return stem if stem and suffix else name


def _is_image(name: str, suffixes: Collection[str]) -> bool:
    """``Path(name).suffix.lower() in suffixes``."""
    stem, _, suffix = name.rpartition(".")
    return bool(stem) and f".{suffix.lower()}" in suffixes


def _is_tidy(path: str) -> bool:
    """Whether ``str(Path(path)) == path``; always false on Windows, where pathlib converts slashes."""
    untidy = os.sep != "/" or path == "." or path.startswith("./") or path.endswith(("/", "/."))
    return not (untidy or "//" in path or "/./" in path)


def packaged(source: str) -> str:
    """The path of ``package/folder/file`` in an installed package."""
    package, _, file = source.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise InputError(
            f"Expected the package {package!r} with the file {file}, but it is not installed. "
            f'Install the demo\'s photos with: pip install "fgvis-lightning[demo]"'
        )
    return str(Path(spec.origin).parent / file)


def shipped(path: str) -> str:
    """Return ``path`` if the file exists; otherwise, for paths in ``configs/``, the package's file."""
    if path.startswith("configs/") and not Path(path).exists():
        for folder in (HOME, HOME.parent):  # as installed; in a clone
            if (folder / path).is_file():
                return str(folder / path)
    return path


def _read_csv(path: Path) -> list[Photo]:
    folder, start = path.parent, "" if path.parent == Path() else os.path.join(path.parent, "")
    photos = []
    try:
        header, rows = csv_rows(path, ("path", "target"))
        columns = {name.lower(): place for place, name in enumerate(header)}
        if "path" not in columns:
            raise InputError(f"Expected a CSV file with a header and a column 'path', but {path} has {header}.")
        if "target" not in columns and (labels := LABELS & columns.keys()):
            raise InputError(
                f"Expected the classes in a column 'target' of {path}, but it has {sorted(labels)[0]!r}. Rename it."
            )
        if unread := [name for name in header if name and name.lower() not in ("path", "target")]:
            print(f"{path}: only the columns path and target are read, not {', '.join(unread)}.", file=sys.stderr)
        path_column, target_column = columns["path"], columns.get("target", sys.maxsize)
        for number, row in rows:
            image = row[path_column] if len(row) > path_column else ""
            if not image.strip():
                raise InputError(
                    f"Expected an image in each row of {path}, but the column 'path' of row {number} is empty. "
                    f"Fill it in, or delete the row."
                )
            if image.startswith(PACKAGE):
                image = packaged(image.removeprefix(PACKAGE))
            elif not _is_tidy(image):
                image = str(folder / image)
            elif not image.startswith("/"):
                image = start + image
            label = row[target_column].strip() if len(row) > target_column else ""
            photos.append(Photo(image, sys.intern(label) or None, True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Expected a CSV file with images, but {path} cannot be read: {error}") from error
    return photos


def image_ids(paths: Iterable[str]) -> dict[str, str]:
    """A readable name of at most 130 bytes for each path, unique even if case is ignored.

    The name is the file's name. If several files share it, it is ``folder_name_hash``; and if that is not unique
    either, it is ``name_hash`` with a long hash.
    """
    ids = {path: slug(_stem(path)) for path in paths}
    hashed: set[str] = set()
    while True:
        count = Counter(map(str.casefold, ids.values()))
        if len(count) == len(ids):
            return ids
        for path, name in ids.items():
            if count[name.casefold()] > 1:
                # File names may contain bytes that are not UTF-8, which Python represents as surrogates.
                digest = hashlib.sha256(path.encode(errors="surrogatepass")).hexdigest()
                if path in hashed:
                    ids[path] = f"{slug(_stem(path))}_{digest[:32]}"
                else:
                    ids[path] = f"{slug(Path(path).parent.name)}_{name}_{digest[:8]}"
                    hashed.add(path)
