"""Boxes, annotations and masks, and where they are in the network's input, beside slow statements of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from toy_networks import Tiny

from fgvis_lightning.data.images import as_float, carried, load_image, upright_size
from fgvis_lightning.data.objects import Marked, MaskFile, Polygons, RunLengths, by_image, read_masks, read_objects
from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics import boxes_to_masks
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.networks.preprocessing import Preprocessing

NAMES = ("cat", "dog", "bus", "car", "cup")


@pytest.fixture
def classifier() -> Classifier:
    return load_classifier(Tiny(), size=(16, 16), classes=NAMES)


def box(x0: float, y0: float, x1: float, y1: float) -> Polygons:
    return Polygons((np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=float),), "a box")


# --- shapes ---


def slow_inside(polygon: list[tuple[float, float]], x: float, y: float) -> bool:
    """Whether a ray to the right crosses the outline an odd number of times."""
    inside = False
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if (y0 <= y) != (y1 <= y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            inside = not inside
    return inside


def test_polygons_mark_the_pixels_whose_centers_they_hold() -> None:
    draws = np.random.default_rng(0)
    for _ in range(20):
        polygon = draws.uniform(0, [12, 10], (draws.integers(3, 9), 2))
        found = Polygons((polygon,), "it").mask(10, 12)
        corners = [(float(x), float(y)) for x, y in polygon]
        slow = [[slow_inside(corners, j + 0.5, i + 0.5) for j in range(12)] for i in range(10)]
        assert torch.equal(found, torch.tensor(slow))


def test_boxes_of_whole_pixels_are_those_of_the_metrics() -> None:
    for corners in ([2, 3, 7, 5], [0, 0, 12, 10], [11, 9, 12, 10], [0, 4, 1, 5]):
        found = box(*corners).mask(10, 12)
        assert torch.equal(found[None], boxes_to_masks([torch.tensor([corners])], 10, 12))
        assert found.sum() == (corners[2] - corners[0]) * (corners[3] - corners[1])
    assert not box(2.6, 2, 3.4, 5).mask(10, 12).any()  # between two centers
    two = Polygons((*box(0, 0, 2, 2).polygons, *box(1, 1, 3, 3).polygons), "two")  # where both are, the object is
    assert two.mask(4, 4).sum() == 7


def test_run_lengths_go_down_the_columns() -> None:
    mask = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    counts, value = [0], False
    for column in range(4):
        for row in range(5):
            if bool(mask[row, column]) != value:
                counts.append(0)
                value = not value
            counts[-1] += 1
    assert torch.equal(RunLengths(tuple(counts), (5, 4), "it").mask(5, 4), mask)
    with pytest.raises(InputError, match="run lengths for an image of 4×5 pixels, but it has 20 pixels for 5×4"):
        RunLengths(tuple(counts), (5, 4), "it").mask(4, 5)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_masks_of_any_mode(mode: str, tmp_path: Path) -> None:
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[2:4, 3:7] = 1
    image = Image.fromarray(mask * 255)
    if mode == "I;16":
        image = Image.fromarray(mask.astype(np.uint16))
    elif mode == "P":  # as data sets have their classes: an index that looks black without its palette
        image = Image.frombytes("P", (8, 6), mask.tobytes())
        image.putpalette([0, 0, 0, 128, 0, 0])
    elif mode != "L":
        image = image.convert(mode)
    image.save(tmp_path / "m.png")
    assert torch.equal(MaskFile(tmp_path / "m.png").mask(6, 8), torch.from_numpy(mask > 0))
    with pytest.raises(InputError, match=r"a mask of the image's size, 6×9, but .* has 6×8"):
        MaskFile(tmp_path / "m.png").mask(6, 9)


# --- to the network's input ---


@pytest.mark.parametrize(
    ("height", "width", "resize", "size"),
    [
        (60, 90, 32, (24, 24)),
        (90, 60, 24, (24, 24)),
        (41, 67, 30, (20, 28)),
        (10, 14, 32, (32, 32)),
        (50, 50, (20, 30), (20, 20)),
    ],
)
def test_carried_masks_are_where_the_center_of_a_pixel_lies(
    height: int, width: int, resize: Any, size: tuple[int, int]
) -> None:
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(0)) > 0.5
    found = carried(mask, Preprocessing(size=size, resize=resize))
    if isinstance(resize, int):  # the short side becomes this long
        tall, wide = (
            (resize, int(resize * width / height)) if height <= width else (int(resize * height / width), resize)
        )
    else:
        tall, wide = resize
    top, left = round((tall - size[0]) / 2), round((wide - size[1]) / 2)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = (top + i + 0.5) * height / tall, (left + j + 0.5) * width / wide
            if min(abs(y - round(y)), abs(x - round(x))) > 1e-4:  # else the center is between two pixels
                assert found[i, j] == mask[int(y), int(x)], (i, j)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (120, 50)])
def test_an_object_is_where_the_photo_shows_it(height: int, width: int, orientation: int, tmp_path: Path) -> None:
    """The photo is white at the object and black elsewhere, and goes through all that photos go through."""
    upright = np.zeros((height, width, 3), dtype=np.uint8)
    upright[20:43, 17:38] = 255
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]  # as stored, to be turned back by the viewer
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(np.rot90(upright, turns))).save(tmp_path / "a.png", exif=exif)
    preprocessing = Preprocessing(size=(32, 32), resize=36)
    assert upright_size(str(tmp_path / "a.png"), preprocessing) == (height, width)
    seen = as_float(load_image(str(tmp_path / "a.png"), preprocessing)).mean(0)
    found = carried(box(17, 20, 38, 43).mask(height, width), preprocessing)
    sure = (seen < 0.05) | (seen > 0.95)
    assert sure.float().mean() > 0.8
    assert torch.equal(found[sure], (seen > 0.5)[sure])
    assert ((seen > 0.5) != found).sum() <= 24  # a pixel's width along the edge, at most


def test_arrays_have_a_size(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 20, 30), dtype=np.float32))
    bands = Preprocessing(size=(8, 8), resize=8, mean=(0.5,) * 5, std=(0.5,) * 5)
    assert upright_size(str(tmp_path / "a.npy"), bands) == (20, 30)


# --- files ---


def table(tmp_path: Path, *rows: str, header: str = "image,target,x0,y0,x1,y1") -> str:
    (tmp_path / "boxes.csv").write_text("\n".join([header, *rows]) + "\n")
    return str(tmp_path / "boxes.csv")


def test_boxes_of_a_table(tmp_path: Path, classifier: Classifier) -> None:
    source = table(tmp_path, "a.jpg,dog,1,2,5.5,9", "cats/b.jpg,0,0,0,4,4", "", header="Image, target,x0,y0,x1,y1")
    first, second = read_objects(source, classifier)
    assert (first.image, first.target, second.image, second.target) == ("a.jpg", 1, "cats/b.jpg", 0)
    assert first.shape.mask(10, 10).sum() == 4 * 7
    (tmp_path / "a.jpg").touch()  # beside the table, whatever the current folder
    assert read_objects(source, classifier)[0].image == str(tmp_path / "a.jpg")
    excel = table(tmp_path, "1;2;a.jpg;dog;5;9", header="x0;y0;image;target;x1;y1")
    assert len(read_objects(excel, classifier)) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a.jpg,dog,5,2,5,9"], "Expected x0 < x1 and y0 < y1 in row 2 of .*, but got 5, 2, 5, 9"),
        (["a.jpg,dog,0,0,1,1", "a.jpg,dog,5,9,6,2"], "Expected x0 < x1 and y0 < y1 in row 3 of"),
        (["a.jpg,dog,0,0,inf,1"], "Expected x0 < x1"),
        (["a.jpg,dog,0,0,nan,1"], "Expected x0 < x1"),
        (["a.jpg,dog,0,0,one,1"], "Expected numbers x0, y0, x1 and y1 in row 2"),
        (["a.jpg,dog,0,0"], "Expected numbers x0, y0, x1 and y1 in row 2"),
        (["a.jpg,dog,0,0,1,1,2"], r"Expected 6 cells in each row of .*boxes\.csv, as in its header, but row 2 has 7"),
        (["a.jpg,doge,0,0,1,1"], "name of one of 5 classes, but got 'doge'.*dog.* It is the target in row 2"),
        (["a.jpg,17,0,0,1,1"], "class index from 0 to 4, but got 17.*row 2"),
        ([",dog,0,0,1,1"], "Expected an image and its target in row 2"),
        (["a.jpg,,0,0,1,1"], "Expected an image and its target in row 2"),
        ([], "Expected objects of the classes of .*, but .* has none"),
    ],
)
def test_tables_with_mistakes(rows: list[str], message: str, tmp_path: Path, classifier: Classifier) -> None:
    with pytest.raises(InputError, match=message):
        read_objects(table(tmp_path, *rows), classifier)


def test_other_files(tmp_path: Path, classifier: Classifier) -> None:
    with pytest.raises(InputError, match=r"a COCO file FILE\.json or a folder of masks, but .* lacks x1, y1"):
        read_objects(table(tmp_path, header="image,target,x0,y0"), classifier)
    with pytest.raises(InputError, match=r"Expected one column 'target' in .*boxes\.csv, but there are several"):
        read_objects(table(tmp_path, header="image,target,Target,x0,y0,x1,y1"), classifier)
    with pytest.raises(InputError, match=r"Expected boxes or masks, but .*gone\.csv cannot be read"):
        read_objects(str(tmp_path / "gone.csv"), classifier)
    long = table(tmp_path, f"{'a' * 200_000},dog,0,0,1,1")
    with pytest.raises(InputError, match=r"boxes\.csv cannot be read: field larger than"):
        read_objects(long, classifier)
    with pytest.raises(InputError, match=r"Expected masks <item id>\.png"):
        read_masks(tmp_path)


@pytest.mark.parametrize("corners", [(-2, 0, 5, 5), (0, -1, 5, 5), (0, 0, 13, 5), (0, 0, 5, 11)])
def test_boxes_outside_of_their_image(corners: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="inside of their image of 10×12 pixels, but a box reaches from x"):
        box(*corners).mask(10, 12)
    assert box(-0.4, 0, 12.6, 10.9).mask(10, 12).all()  # rounded


def coco(tmp_path: Path, *annotations: dict[str, Any], **image: Any) -> str:
    whole = {
        "images": [{"id": 7, "file_name": "a.jpg", **image}, {"id": 8, "file_name": "b.jpg"}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "giraffe"}, {"id": 47, "name": "Cup"}],
        "annotations": list(annotations),
    }
    (tmp_path / "coco.json").write_text(json.dumps(whole))
    return str(tmp_path / "coco.json")


def masks(source: str, classifier: Classifier, height: int = 10, width: int = 12) -> list[Tensor]:
    return [marked.shape.mask(height, width) for marked in read_objects(source, classifier)]


def test_annotations_of_coco(tmp_path: Path, classifier: Classifier) -> None:
    dog, cup, giraffe = ({"image_id": image, "category_id": id} for image, id in ((7, 18), (8, 47), (7, 3)))
    found = read_objects(
        coco(
            tmp_path,
            {**dog, "bbox": [1, 2, 4, 3]},
            {**dog, "bbox": [0, 0, 12, 10], "segmentation": [[1, 2, 5, 2, 5, 5, 1, 5], [8, 8, 9, 8, 9, 9, 8, 9]]},
            {**giraffe, "bbox": [0, 0, 1, 1]},  # no class of the network
            {**cup, "segmentation": {"size": [10, 12], "counts": [10, 20, 90]}, "iscrowd": 1},
        ),
        classifier,
    )
    assert [(marked.image, marked.target) for marked in found] == [("a.jpg", 1), ("a.jpg", 1), ("b.jpg", 4)]
    first, second, third = (marked.shape.mask(10, 12) for marked in found)
    assert first[2:5, 1:5].all()
    assert first.sum() == 12
    assert second.sum() == 13
    assert third[:, 1:3].all()
    assert third.sum() == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": {"size": [10, 12], "counts": "PPYo0"}}, "has compressed run lengths .RLE.. Decode them"),
        ({"bbox": [1, 2, 0, 3]}, "a box with a width and a height in annotation 5"),
        ({"segmentation": [[1, 2, 3, 4]]}, "polygons of at least three corners"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "in COCO's format, but it is invalid"),
        ({"image_id": 99}, "in COCO's format, but it is invalid"),
        ({"category_id": 99}, "in COCO's format, but it is invalid"),
        ({"bbox": None}, "in COCO's format, but it is invalid"),
    ],
)
def test_annotations_with_mistakes(
    change: dict[str, Any], message: str, tmp_path: Path, classifier: Classifier
) -> None:
    with pytest.raises(InputError, match=message):
        masks(coco(tmp_path, {"id": 5, "image_id": 7, "category_id": 18, "bbox": [1, 2, 4, 3], **change}), classifier)


def test_annotations_of_another_size_of_the_image(tmp_path: Path, classifier: Classifier) -> None:
    dog = {"id": 5, "image_id": 7, "category_id": 18, "bbox": [1, 2, 4, 3]}
    with pytest.raises(
        InputError, match=r"pixels of the image file itself, 10×12, but annotation 5 .* is for an image of 20×24"
    ):
        masks(coco(tmp_path, dog, height=20, width=24), classifier)
    (tmp_path / "coco.json").write_text('{"images": []}')
    with pytest.raises(InputError, match="Expected COCO's images, annotations and categories"):
        read_objects(str(tmp_path / "coco.json"), classifier)
    (tmp_path / "coco.json").write_text("[1]")
    with pytest.raises(InputError, match="Expected COCO's images, annotations and categories"):
        read_objects(str(tmp_path / "coco.json"), classifier)


def test_objects_find_their_images(tmp_path: Path, photo: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = str(photo("x/cats/1.png")), str(photo("y/1.png"))
    third = str(photo("y/2.png"))
    here = [Marked(image, 0, box(0, 0, 1, 1)) for image in ("cats/1.png", second, "2.png", "gone.png")]
    found = by_image(here, [first, second, third])
    assert {path: [marked.image for marked in several] for path, several in found.items()} == {
        first: ["cats/1.png"],
        second: [second],
        third: ["2.png"],
    }
    with pytest.raises(InputError, match=r"Expected 1\.png to match one image, but it matches .*1\.png, .*1\.png"):
        by_image([Marked("1.png", 0, box(0, 0, 1, 1))], [first, second])
    assert not by_image([Marked("ts/1.png", 0, box(0, 0, 1, 1))], [first])  # not the end of a name
    monkeypatch.chdir(tmp_path)
    assert list(by_image([Marked(first, 0, box(0, 0, 1, 1))], ["x/cats/1.png"])) == ["x/cats/1.png"]
