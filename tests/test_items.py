from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fgvis_lightning import InputError
from fgvis_lightning.items import Failure, Item, Photos, list_items, load_image
from fgvis_lightning.network import Classifier, Preprocessing

CLASSES = ("cat", "dog", "school bus", "bus", "bus")
SMALL = Preprocessing(size=(16, 16), resize=16)
CLASSIFIER = Classifier(nn.Identity(), SMALL, CLASSES, "net")

PhotoMaker = Callable[..., Path]


def ids(items: list[Item]) -> list[tuple[str, int]]:
    return [(item.image_id, item.target) for item in items]


# --- finding images ---


def test_file_glob_folder_and_list(photo: PhotoMaker, tmp_path: Path) -> None:
    a, b = photo("in/a.png"), photo("in/b.jpg")
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    assert ids(list_items(str(a), "predicted", CLASSIFIER)) == [("a", -1)]
    for source in (str(tmp_path / "in"), str(tmp_path / "in" / "*"), [str(b), str(a), str(b)]):
        found = ids(list_items(source, "predicted", CLASSIFIER))
        assert sorted(found) == [("a", -1), ("b", -1)]


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
        ("bus", r"names \[3, 4\]: give the index"),
        ("label", "Expected a label for each image"),
    ],
)
def test_bad_targets(targets: str | int, message: str, photo: PhotoMaker) -> None:
    with pytest.raises(InputError, match=message):
        list_items(str(photo("a.png")), targets, CLASSIFIER)


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Expected images in .* but there are none"):
        list_items(str(tmp_path), "predicted", CLASSIFIER)
    with pytest.raises(InputError, match=r"but there is no .*nowhere"):
        list_items(str(tmp_path / "nowhere"), "predicted", CLASSIFIER)


def test_ids_are_readable_and_unique(photo: PhotoMaker, tmp_path: Path) -> None:
    for name in ("x/a.png", "y/a.png", "y/a.jpg", "my photo-1.png"):
        photo(f"in/{name}")
    items = list_items(str(tmp_path / "in"), ["top2", 3, 4, "cat"], CLASSIFIER)
    names = [item.id(item.target if item.target >= 0 else 2, CLASSIFIER) for item in items]
    assert len(set(names)) == len(names) == 20
    assert "my_photo_1@top2-school_bus" in names
    assert {"my_photo_1@bus_3", "my_photo_1@bus_4", "my_photo_1@cat"} <= set(names), "two classes share a name"
    assert any(name.startswith("x_a_") for name in names)


# --- decoding ---


def test_colors_survive_every_mode(photo: PhotoMaker, tmp_path: Path) -> None:
    rgb = Image.open(photo("rgb.png", 32, 32))
    expected = load_image(str(tmp_path / "rgb.png"), SMALL)
    assert expected.dtype == torch.uint8
    assert expected.shape == (3, 16, 16)
    for name, image in {"rgba": rgb.convert("RGBA"), "palette": rgb.quantize(256)}.items():
        image.save(tmp_path / f"{name}.png")
        difference = load_image(str(tmp_path / f"{name}.png"), SMALL).float() - expected.float()
        assert difference.abs().mean() < (0.01 if name == "rgba" else 3)
    for mode in ("L", "I;16", "1", "CMYK"):
        rgb.convert("L" if mode == "I;16" else mode).save(tmp_path / "m.tiff")
        assert load_image(str(tmp_path / "m.tiff"), SMALL).shape == (3, 16, 16)


def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    array = np.full((32, 32), 32768, dtype=np.uint16)
    Image.fromarray(array).save(tmp_path / "deep.png")
    assert load_image(str(tmp_path / "deep.png"), SMALL).unique().tolist() == [128]


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (200, 0, 0, 0)).save(tmp_path / "a.png")
    assert load_image(str(tmp_path / "a.png"), SMALL).unique().tolist() == [255]


def test_exif_orientation(photo: PhotoMaker, tmp_path: Path) -> None:
    image = Image.open(photo("a.png", 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270° to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    turned, upright = (load_image(str(tmp_path / f"{name}.png"), SMALL) for name in ("turned", "upright"))
    assert torch.equal(turned, upright)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "there is no file"),
        ("text.png", "Pillow knows no format for"),
        ("truncated.jpg", r"truncated\.jpg cannot be decoded"),
        ("small.png", r"at least half the network's input of 16×16 pixels, but .*small\.png has 7×40.*upscale true"),
    ],
)
def test_images_that_cannot_be_used(name: str, message: str, photo: PhotoMaker, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    whole = photo("whole.jpg", 64, 64).read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    photo("small.png", 7, 40)
    with pytest.raises(InputError, match=message):
        load_image(str(tmp_path / name), SMALL)
    assert load_image(str(tmp_path / "small.png"), SMALL, upscale=True).shape == (3, 16, 16)


def test_photos_turn_errors_into_failures(photo: PhotoMaker) -> None:
    photos = Photos([Item("a", str(photo("a.png")), 0), Item("b", "nowhere.png", 0)], CLASSIFIER)
    good, bad = photos[0], photos[1]
    assert isinstance(good, tuple)
    assert isinstance(bad, Failure)
    assert "there is no file nowhere.png" in bad.reason
    assert len(photos) == 2
