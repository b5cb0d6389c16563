from __future__ import annotations

import dataclasses
import gc
import hashlib
import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from toy_networks import Tiny

from fgvis_lightning import InputError
from fgvis_lightning.data.items import Item, list_items, split_by_done
from fgvis_lightning.data.photos import IMAGE_SUFFIXES
from fgvis_lightning.networks import classifier as classifiers
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.networks.preprocessing import Preprocessing

CLASSES = ("cat", "dog", "school bus", "bus", "bus")
SMALL = Preprocessing(size=(16, 16), resize=16)
CLASSIFIER = Classifier(nn.Identity(), SMALL, CLASSES, "net")

PhotoMaker = Callable[..., Path]


def ids(items: list[Item]) -> list[tuple[str, int]]:
    return [(item.image_id, item.target) for item in items]


def classifier_of(*classes: str) -> Classifier:
    return Classifier(nn.Identity(), SMALL, classes, "net")


def image_ids(folder: Path, *paths: str) -> list[str]:
    """Those of images that need not be there, in the order of a CSV file."""
    (folder / "images.csv").write_text("\n".join(["path", *paths]), encoding="utf-8")
    return [item.image_id for item in list_items(str(folder / "images.csv"), "predicted", CLASSIFIER)]


def is_portable(names: list[str], most_bytes: int) -> bool:
    """Whether they can be names of files next to each other, also where case does not count."""
    folded = {name.casefold() for name in names}
    return len(folded) == len(names) and max(len(name.encode()) for name in names) <= most_bytes


# --- finding images ---


def test_file_glob_folder_and_list(photo: PhotoMaker, tmp_path: Path) -> None:
    a, b = photo("in/a.png"), photo("in/b.jpg")
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    assert ids(list_items(str(a), "predicted", CLASSIFIER)) == [("a", -1)]
    for source in (str(tmp_path / "in"), str(tmp_path / "in" / "*"), [str(b), str(a), str(b)]):
        found = ids(list_items(source, "predicted", CLASSIFIER))
        assert sorted(found) == [("a", -1), ("b", -1)]


@pytest.mark.parametrize("source", ["{tmp_path}/tree", "tree", "./tree//", ".", "tree/../tree/a"])
def test_folders_are_searched_as_pathlib_does(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("a/1.png", "a/z/2.JPG", "a-b/3.png", "a.png/4.png", "a b.png", "B.Png", "ä.webp", "10.png", "9.png")
    for name in (*names, "a/.hidden.png", ".png", "c.png.", "notes.txt", ".folder/5.png", "tail.tar.bmp", "nodot"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).touch()
    (tmp_path / "tree" / "link.png").symlink_to("9.png")
    (tmp_path / "tree" / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "tree" / "linked folder").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    source = source.format(tmp_path=tmp_path)
    found = (Path(top) / name for top, _, names in os.walk(source, followlinks=True) for name in names)
    expected = sorted(file for file in found if file.suffix.lower() in IMAGE_SUFFIXES)
    assert len(expected) >= 2
    items = list_items(source, "predicted", CLASSIFIER)
    assert [item.path for item in items] == [str(file) for file in expected]
    assert [item.number for item in items] == list(range(len(items)))


def test_links_to_folders_are_followed_and_circles_are_not(photo: PhotoMaker, tmp_path: Path) -> None:
    photo("in/ant/a.png"), photo("elsewhere/b.png"), photo("elsewhere/deep/c.png")
    (tmp_path / "in" / "bee").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "ant" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(tmp_path / "elsewhere")
    found = list_items(str(tmp_path / "in"), "predicted", CLASSIFIER)
    assert [Path(item.path).relative_to(tmp_path).as_posix() for item in found] == [
        *("in/ant/a.png", "in/bee/b.png", "in/bee/deep/c.png"),
    ]


def test_files_of_other_kinds_are_left_alone(photo: PhotoMaker, tmp_path: Path) -> None:
    photo("in/a.png")
    for name in ("notes.pdf", "clip.mpg", "data.h5", "drawing.eps", "drawing.ps", "picture.wmf"):
        (tmp_path / "in" / name).write_bytes(b"something")
    assert ids(list_items(str(tmp_path / "in"), "predicted", CLASSIFIER)) == [("a", -1)]


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        ("", "predicted", "but got an empty name"),
        (" ", "predicted", "but got an empty name"),
        ([], "predicted", r"Expected images in \[\], but there are none"),
        ("a.png", [], "Expected targets, e.g. predicted, but got an empty list"),
        ("a.png", "top0", "Expected top with a number from 1 to 5, but got top0"),
        ("a.png", "top99999999999", "Expected top with a number from 1 to 5"),
    ],
)
def test_nothing_to_do_is_an_error(
    images: Any, targets: Any, message: str, photo: PhotoMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo("a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        list_items(images, targets, CLASSIFIER)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_as_spreadsheets_write_them(encoding: str, separator: str, photo: PhotoMaker, tmp_path: Path) -> None:
    photo("käfer.png")
    rows = [["Path", "target", "note"], ["käfer.png", "1", "über"]]
    (tmp_path / "list.csv").write_text("\r\n".join(separator.join(row) for row in rows), encoding=encoding)
    (item,) = list_items(str(tmp_path / "list.csv"), "label", CLASSIFIER)
    assert (Path(item.path).name, item.target) == ("käfer.png", 1)


def test_classes_in_a_column_of_another_name_are_pointed_out(photo: PhotoMaker, tmp_path: Path) -> None:
    photo("a.png")
    (tmp_path / "list.csv").write_text("path,label\na.png,1\n")
    with pytest.raises(InputError, match=r"in a column 'target' of .*, but it has 'label'\. Rename it"):
        list_items(str(tmp_path / "list.csv"), "auto", CLASSIFIER)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), None),
        (OSError(5, "Input/output error"), r"bad .*: Input/output error"),
    ],
)
def test_folders_that_cannot_be_read(
    error: OSError, message: str | None, photo: PhotoMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo("in/a.png"), photo("in/bad/b.png")

    def scandir(path: str, scandir: Callable[[str], Any] = os.scandir) -> Any:
        if path.endswith("bad"):
            raise error
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    if message is None:
        assert ids(list_items(str(tmp_path / "in"), "predicted", CLASSIFIER)) == [("a", -1)]
    else:
        with pytest.raises(InputError, match=message):
            list_items(str(tmp_path / "in"), "predicted", CLASSIFIER)


def test_imagefolder_labels_by_name_index_or_place(photo: PhotoMaker, tmp_path: Path) -> None:
    photo("names/dog/1.png"), photo("names/cat/deeper/2.png")
    assert ids(list_items(str(tmp_path / "names"), "label", CLASSIFIER)) == [("2", 0), ("1", 1)]
    for wordnet in ("n01", "n02", "n03", "n04", "n05"):
        photo(f"ids/{wordnet}/x_{wordnet}.png")
    found = ids(list_items(str(tmp_path / "ids"), "label", CLASSIFIER))
    assert found == [(f"x_n0{k + 1}", k) for k in range(5)]
    shutil.rmtree(tmp_path / "ids" / "n03")
    with pytest.raises(InputError, match="Expected the name of one of 5 classes, but got 'n01'"):
        list_items(str(tmp_path / "ids"), "label", CLASSIFIER)


def test_csv_with_indices_names_and_blanks(photo: PhotoMaker, tmp_path: Path) -> None:
    photo("a.png"), photo("b.png")
    (tmp_path / "t.csv").write_text("path,target,more\na.png,2,x\na.png,dog,y\nb.png,,z\n")
    assert ids(list_items(str(tmp_path / "t.csv"), "auto", CLASSIFIER)) == [("a", 2), ("a", 1), ("b", -1)]
    assert ids(list_items(str(tmp_path / "t.csv"), "predicted", CLASSIFIER)) == [("a", -1), ("b", -1)]
    with pytest.raises(InputError, match=r"Expected a label for each image, but .*b\.png has none"):
        list_items(str(tmp_path / "t.csv"), "label", CLASSIFIER)
    (tmp_path / "t.csv").write_text("file,target\na.png,2\n")
    with pytest.raises(InputError, match=r"a column 'path', but .* has \['file', 'target'\]"):
        list_items(str(tmp_path / "t.csv"), "auto", CLASSIFIER)


def test_csv_with_more_than_can_be_meant(photo: PhotoMaker, tmp_path: Path) -> None:
    """What a reader would drop in silence: a second column of the same name, and cells beyond the header."""
    photo("a.png")
    (tmp_path / "t.csv").write_text("path,target,Target\na.png,1,2\n")
    with pytest.raises(InputError, match=r"Expected one column 'target' in .*t\.csv, but there are several"):
        list_items(str(tmp_path / "t.csv"), "auto", CLASSIFIER)
    (tmp_path / "t.csv").write_text("path,target\na.png,1,2\n")
    with pytest.raises(InputError, match=r"Expected 2 cells in each row of .*t\.csv, .* row 2 has 3\. Put a name with"):
        list_items(str(tmp_path / "t.csv"), "auto", CLASSIFIER)
    (tmp_path / "t.csv").write_text("path,target\na.png,1,, \n")  # as spreadsheets write a cleared column
    assert ids(list_items(str(tmp_path / "t.csv"), "auto", CLASSIFIER)) == [("a", 1)]


def test_csv_with_a_file_of_a_package(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,target\n" + "".join(f"package:skimage/data/coffee.png,{k}\n" for k in (1, 0)))
    items = list_items(str(tmp_path / "t.csv"), "label", CLASSIFIER)
    assert ids(items) == [("coffee", 1), ("coffee", 0)]
    assert all(Path(item.path).is_file() for item in items)
    (tmp_path / "t.csv").write_text("path\npackage:no_such_package/a.png\n")
    with pytest.raises(InputError, match="Expected the package 'no_such_package'"):
        list_items(str(tmp_path / "t.csv"), "predicted", CLASSIFIER)


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("target,path\ncat,a.png\ndog\n", 3),
        ("path,target\n\n,dog\n", 3),
        ('note,path\n"two\nlines",a.png\nx," "\n', 3),
    ],
)
def test_csv_row_without_a_path(text: str, row: int, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(
        InputError,
        match=rf"an image in each row of .*t\.csv, but the column 'path' of row {row} is empty\. Fill",
    ):
        list_items(str(tmp_path / "t.csv"), "auto", CLASSIFIER)


@pytest.mark.parametrize("folder", ["in", "./in//", ".", "{tmp_path}/in"])
def test_csv_paths_are_spelled_as_pathlib_does(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = folder.format(tmp_path=tmp_path)
    Path(folder).mkdir(exist_ok=True)
    cells = ["".join(cell) for length in range(1, 6) for cell in itertools.product("a./", repeat=length)]
    (Path(folder) / "t.csv").write_text("\n\n".join(["path", *cells]))
    items = list_items(f"{folder}/t.csv", "auto", CLASSIFIER)
    assert [item.path for item in items] == list(dict.fromkeys(str(Path(folder) / cell) for cell in cells))


def test_file_that_is_named_untidily(photo: PhotoMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo("in/a.png"), photo("in/b/a.png"), photo("in/c.png")
    monkeypatch.chdir(tmp_path)
    items = list_items(["./in/./a.png", "in//b//a.png", ".//in/./c.png"], "predicted", CLASSIFIER)
    assert [item.path for item in items] == ["./in/./a.png", "in//b//a.png", ".//in/./c.png"]
    assert [item.image_id.rpartition("_")[0] for item in items] == ["in_a", "b_a", ""]
    assert items[2].image_id == "c"


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("predicted", [-1]),
        ("top3", [-1, -2, -3]),
        (1, [1]),
        ("1", [1]),
        ("School Bus", [2]),
        (["dog", "top2", 1], [1, -1, -2]),
    ],
)
def test_targets(targets: str | int | list[str | int], expected: list[int], photo: PhotoMaker) -> None:
    assert [item.target for item in list_items(str(photo("a.png")), targets, CLASSIFIER)] == expected


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("shool bus", "Expected the name of one of 5 classes, but got 'shool bus'. Nearest: school bus"),
        (5, "Expected a class index from 0 to 4, but got 5"),
        ("-2", "Expected a class index from 0 to 4, but got -2"),
        ("bus", r"names \[3, 4\]. Use the index"),
        ("label", "Expected a label for each image"),
    ],
)
def test_bad_targets(targets: str | int, message: str, photo: PhotoMaker) -> None:
    with pytest.raises(InputError, match=message):
        list_items(str(photo("a.png")), targets, CLASSIFIER)


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Expected images in .* but there are none"):
        list_items(str(tmp_path), "predicted", CLASSIFIER)
    for name in ("nowhere", "nowhere" * 50):  # longer than any name may be
        with pytest.raises(InputError, match=r"Expected .*images, but .*nowhere"):
            list_items(str(tmp_path / name), "predicted", CLASSIFIER)


@pytest.mark.parametrize("enabled", [True, False])
def test_listing_switches_garbage_collection_off_and_back(
    enabled: bool, photo: PhotoMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scandir(path: str, scandir: Callable[[str], Any] = os.scandir) -> Any:
        meanwhile.append(gc.isenabled())
        return scandir(path)

    photo("in/a.png")
    meanwhile: list[bool] = []
    monkeypatch.setattr(os, "scandir", scandir)
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        list_items(str(tmp_path / "in"), "predicted", CLASSIFIER)
        assert gc.isenabled() == enabled
        with pytest.raises(InputError):
            list_items(str(tmp_path / "in"), "label", CLASSIFIER)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert meanwhile == [False, False]


def test_items_are_small_and_numbered_in_the_whole_listing(photo: PhotoMaker) -> None:
    a, b = str(photo("a.png")), str(photo("b.png"))
    items = list_items([b, a, b], ["top2", "cat"], CLASSIFIER)
    assert ids(items) == [("b", -1), ("b", -2), ("b", 0), ("a", -1), ("a", -2), ("a", 0)]
    assert [item.number for item in items] == [0, 1, 2, 3, 4, 5]
    moved = dataclasses.replace(items[0], number=7)
    assert moved == items[0], "the same item, wherever it is listed"
    assert hash(moved) == hash(items[0])
    assert not hasattr(items[0], "__dict__")


# --- ids ---


def test_ids_are_readable_and_unique(photo: PhotoMaker, tmp_path: Path) -> None:
    for name in ("x/a.png", "y/a.png", "y/a.jpg", "my photo-1.png"):
        photo(f"in/{name}")
    items = list_items(str(tmp_path / "in"), ["top2", 3, 4, "cat"], CLASSIFIER)
    names = [item.id(item.target if item.target >= 0 else 2, CLASSIFIER) for item in items]
    assert len(set(names)) == len(names) == 20
    assert "my_photo_1@top2-school_bus" in names
    assert {"my_photo_1@bus_3", "my_photo_1@bus_4", "my_photo_1@cat"} <= set(names), "two classes share a name"
    assert any(name.startswith("x_a_") for name in names)


@pytest.mark.parametrize(
    "paths",
    [
        ["x/a.png", "y/a.png", "x/A.jpg"],
        ["same/f/image.png", "other/f/image.png"],
        [f"{'ä' * 100}/{'ü' * 100}{place}.png" for place in range(3)],
        [f"x/{'m' * 200}.{place}.png" for place in range(3)],
        ["x/---.png", "x/___.png", "x/_.png"],
    ],
)
def test_image_ids_are_unique_and_short(paths: list[str], tmp_path: Path) -> None:
    found = image_ids(tmp_path, *paths)
    assert is_portable(found, most_bytes=130)
    assert all(re.fullmatch(r"[\w.]+_[\w.]+_[0-9a-f]{8}", name) for name in found)
    assert image_ids(tmp_path, *paths) == found, "a second run must find its files again"


def test_image_id_that_is_the_name_of_another_file(tmp_path: Path) -> None:
    generated = image_ids(tmp_path, "x/a.png", "y/a.png")[0]
    found = image_ids(tmp_path, "x/a.png", "y/a.png", f"z/{generated.upper()}.png")
    assert is_portable(found, most_bytes=130)
    again = image_ids(tmp_path, "x/a.png", "y/a.png", f"z/{found[0]}.png", f"z/{found[1]}.png", f"z/{found[2]}.png")
    assert is_portable(again, most_bytes=130)


def test_image_ids_whose_short_hashes_are_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Alike:
        def __init__(self, data: bytes, sha256: Any = hashlib.sha256) -> None:
            self.digits = "0" * 8 + sha256(data).hexdigest()[8:]

        def hexdigest(self) -> str:
            return self.digits

    monkeypatch.setattr(hashlib, "sha256", Alike)
    paths = [f"{place}/{'f' * 100}/{'ä' * 60}.png" for place in range(5)]
    assert is_portable(image_ids(tmp_path, *paths, "6/g/short.png", "7/g/short.png"), most_bytes=130)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_image_whose_name_is_not_unicode(photo: PhotoMaker, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        photo(f"in/{folder}/a.png").rename(tmp_path / "in" / folder / os.fsdecode(b"a\xff.png"))
    found = [item.image_id for item in list_items(str(tmp_path / "in"), "predicted", CLASSIFIER)]
    assert is_portable(found, most_bytes=130)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("cat", "school bus", "cats"), ["cat", "school_bus", "cats"]),
        (("bus", "cat", "bus"), ["bus_0", "cat", "bus_2"]),
        (("Cardigan", "cardigan"), ["Cardigan_0", "cardigan_1"]),
        (("bus!", "bus?", "***"), ["bus_0", "bus_1", "_"]),
        (("bus", "bus", "bus 1"), ["bus_0", "bus_1", "bus_1_2"]),
        (("bus", "bus", "BUS 1", "bus 1 2"), ["bus_0", "bus_1", "BUS_1_2", "bus_1_2_3"]),
        (("ä" * 100, "ä" * 99), ["ä" * 30 + "_0", "ä" * 30 + "_1"]),
        ((), []),
    ],
)
def test_classes_are_told_apart_in_ids(classes: tuple[str, ...], expected: list[str]) -> None:
    classifier = classifier_of(*classes)
    assert [classifier.class_slug(index) for index in range(len(classes))] == expected
    assert [Item("a", "", -1).id(index, classifier) for index in range(len(classes))] == [
        f"a@top1-{name}" for name in expected
    ]
    assert Item("a", "", 7).id(7, classifier) == "a@class_7"


def test_names_of_classes_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def slug(text: str) -> str:
        calls.append(text)
        return text

    monkeypatch.setattr(classifiers, "slug", slug)
    classifier = classifier_of("a", "b", "c")
    assert [Item("x", "", -1).id(1, classifier) for _ in range(10)] == ["x@top1-b"] * 10
    assert calls == ["a", "b", "c"]


def test_names_of_files_fit_a_file_system(tmp_path: Path) -> None:
    classifier = classifier_of(*["漢" * 80] * 1000)
    names = image_ids(tmp_path, *(f"{place}/{'漢' * 80}/{'字' * 80}.png" for place in range(3)))
    files = [f".{Item(name, '', -100).id(999, classifier)}.safetensors.{'o' * 20}.tmp" for name in names]
    assert is_portable(files, most_bytes=255)


# --- what is done ---

DONE = ("a@top1-bus_3", "a@cat", "b@top2-dog", "b@bus_4", "c@top12-cat", "A@dog", "odd-name@dog")


@pytest.mark.parametrize("collect", [tuple, list, set, frozenset, dict.fromkeys])
@pytest.mark.parametrize(
    ("image_id", "target", "expected"),
    [
        ("a", -1, "a@top1-bus_3"),
        ("a", -2, None),
        ("a", 0, "a@cat"),
        ("a", 1, None),
        ("a", 3, None),
        ("b", -1, None),
        ("b", -2, "b@top2-dog"),
        ("b", 4, "b@bus_4"),
        ("c", -1, None),
        ("c", -12, "c@top12-cat"),
        ("c", 0, None),
        ("odd-name", 1, "odd-name@dog"),
    ],
)
def test_split_by_done(
    image_id: str, target: int, expected: str | None, collect: Callable[[tuple[str, ...]], Collection[str]]
) -> None:
    item = Item(image_id, "", target)
    missing, present = split_by_done([item], CLASSIFIER, collect(DONE))
    assert (missing, present) == (([item], []) if expected is None else ([], [(item, expected)]))


def test_split_by_done_keeps_order_and_is_certain() -> None:
    items = [Item(name, "", -1, number) for number, name in enumerate("abcde")]
    for done in itertools.permutations(["b@top1-cat", "d@top1-dog", "d@top1-bus_3", "z@top1-cat"]):
        missing, present = split_by_done(items, CLASSIFIER, done)
        assert [item.number for item in missing] == [0, 2, 4]
        assert present == [(items[1], "b@top1-cat"), (items[3], "d@top1-bus_3")]
    assert split_by_done(items, CLASSIFIER, ()) == (items, [])


def test_split_by_done_looks_at_each_finished_file_once() -> None:
    class Once(Collection[str]):
        def __init__(self) -> None:
            self.seen = 0

        def __len__(self) -> int:
            return len(DONE)

        def __contains__(self, id: object) -> bool:
            raise AssertionError("a list would be searched from its beginning")

        def __iter__(self) -> Iterator[str]:
            for id in DONE:
                self.seen += 1
                yield id

    done = Once()
    split_by_done([Item("a", "", -1), Item("a", "", 0)] * 100, CLASSIFIER, done)
    assert done.seen == len(DONE)


def test_classes_that_are_called_by_numbers(photo: PhotoMaker, tmp_path: Path) -> None:
    """As ImageFolder sorts the folders 1 to 12."""
    for label in range(1, 13):
        photo(f"in/{label}/{label}.png", seed=label)
    names = sorted(map(str, range(1, 13)))
    classifier = load_classifier(Tiny(classes=12), classes=names)
    for item in list_items(str(tmp_path / "in"), "label", classifier):
        assert names[item.target] == Path(item.path).parent.name


def test_folders_have_one_rule(photo: PhotoMaker, tmp_path: Path) -> None:
    """Five classes: a folder for each by ImageFolder's order, some by index, and none by two rules at once."""
    for label in ("1", "2", "3", "4", "5"):
        photo(f"five/{label}/x{label}.png")
    found = ids(list_items(str(tmp_path / "five"), "label", CLASSIFIER))
    assert found == [(f"x{k + 1}", k) for k in range(5)]
    chosen = list_items(str(tmp_path / "five"), "label", CLASSIFIER, classes=["2"])
    assert [(item.image_id, item.target) for item in chosen] == [("x2", 1)]
    photo("some/3/a.png"), photo("some/1/b.png")
    assert sorted(ids(list_items(str(tmp_path / "some"), "label", CLASSIFIER))) == [("a", 3), ("b", 1)]
    twelve = load_classifier(Tiny(classes=12), classes=[f"class {k}" for k in range(12)])
    for number in range(12):
        photo(f"twelve/{number}/{number}.png")
    with pytest.raises(InputError, match="10 is class 10 as an index and class 2 in the sorted order"):
        list_items(str(tmp_path / "twelve"), "label", twelve)
    photo("typo/dog/a.png")
    for label in ("katt", "n1", "n2", "n3"):
        photo(f"typo/{label}/{label}.png")
    with pytest.raises(InputError, match="Expected the name of one of 5 classes, but got 'katt'"):
        list_items(str(tmp_path / "typo"), "label", CLASSIFIER)


def test_a_list_beside_the_images_is_mentioned(
    photo: PhotoMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("in/a.png")
    photo("in/cat/b.png")
    for name in ("labels.csv", "cat/labels.csv"):
        (tmp_path / "in" / name).write_text("Path,target\na.png,2\n")
    (tmp_path / "in" / "measured.csv").write_text("time,value\n1,2\n")
    (tmp_path / "in" / "folder.csv").mkdir()
    assert len(list_items(str(tmp_path / "in"), "predicted", CLASSIFIER)) == 2
    unread = f"{tmp_path / 'in' / 'labels.csv'} is not read. To take images and targets from it, give it instead of"
    assert capsys.readouterr().err == f"{unread} its folder.\n"


def test_columns_that_are_not_read_are_named(
    photo: PhotoMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("a.png")
    (tmp_path / "t.csv").write_text("Path,split,target,group\na.png,test,2,7\n")
    list_items(str(tmp_path / "t.csv"), "auto", CLASSIFIER)
    assert (
        capsys.readouterr().err
        == f"{tmp_path / 't.csv'}: only the columns path and target are read, not split, group.\n"
    )
