from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import NETWORK
from PIL import Image

from fgvis_lightning.cli import main
from fgvis_lightning.experiments.pointing import COLOR, outlined, within_reach
from fgvis_lightning.experiments.statistics import wilson
from fgvis_lightning.metrics import energy_pointing_game, pointing_game
from fgvis_lightning.results.load import load_item

PhotoMaker = Callable[..., Path]
HERE = (32, 40)  # height and width of the photos: resized by 1/2, then 2 columns of 20 are cut off at either side


@pytest.fixture
def results(photo: PhotoMaker, tmp_path: Path) -> Path:
    """A comparison of two methods over three photos, each for two classes."""
    for i in range(3):
        photo(f"in/{i}.png", *HERE, seed=i)
    methods = {
        "gradient": {"class_path": "fgvis_lightning.baselines.Gradient"},
        "center": {"class_path": "methods.Center"},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"methods": methods}, sort_keys=False))
    (tmp_path / "classes.txt").write_text("cat\ndog\nbus\ncar\ncup\n")
    main(
        [
            *(
                "compare",
                "--config",
                str(tmp_path / "c.yaml"),
                "--output",
                str(tmp_path / "results"),
                *network(tmp_path),
            ),
            *("--data.images", str(tmp_path / "in"), "--data.targets", "[cat, 3]"),
            *("--trainer.accelerator", "cpu", "--crop", "0"),
        ]
    )
    return tmp_path / "results"


def network(tmp_path: Path) -> list[str]:
    return [*NETWORK, "--model.classifier.resize", "16", "--model.classifier.classes", str(tmp_path / "classes.txt")]


def boxes(tmp_path: Path, *rows: str) -> str:
    (tmp_path / "boxes.csv").write_text("\n".join(["image,target,x0,y0,x1,y1", *rows]) + "\n")
    return str(tmp_path / "boxes.csv")


def pointing(results: Path, truth: str, *more: str) -> Path:
    output = results.parent / "pointing"
    own = ["--results", str(results), "--truth", truth, "--output", str(output)]
    main(["pointing", *own, *network(results.parent), "--tolerance", "3", *more])
    return output


def fails(capsys: pytest.CaptureFixture[str], results: Path, truth: str, *more: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        pointing(results, truth, *more)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_each_number_is_that_of_the_item(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = boxes(
        tmp_path,
        "in/0.png,cat,8,4,20,16",
        "in/1.png,cat,20,0,40,32",
        "in/1.png,cat,4,0,8,32",  # two objects of one class
        "in/2.png,car,4,8,36,24",
        "in/2.png,dog,0,0,40,32",  # a class that is not explained
        "in/0.png,car,0,0,3,32",  # cut away
        "elsewhere.png,car,0,0,9,9",
    )
    output = pointing(results, truth)
    # Two pixels of the photo are one of the map, whose left edge is two pixels of the photo's left edge: 4 = 2 · 2.
    where = {"0": [(2, 2, 8, 8)], "1": [(8, 0, 16, 16), (0, 0, 2, 16)], "2": [(0, 4, 16, 12)]}
    found = rows(output / "pointing_items.csv")
    assert [(row["id"], row["method"]) for row in found] == [
        (id, method)
        for id in ("0@cat", "1@cat", "2@car")
        for method in ("gradient", "center", "uniform map, random point", "center of the picture")
    ]
    for row in found:
        mask = torch.zeros(1, 16, 16, dtype=torch.bool)
        for x0, y0, x1, y1 in where[row["id"][0]]:
            mask[:, y0:y1, x0:x1] = True
        assert float(row["share of the picture"]) == pytest.approx(float(mask.float().mean()))
        assert int(row["objects"]) == len(where[row["id"][0]])
        if row["method"] in ("center", "gradient"):
            item = load_item(results / row["method"] / "explanations" / f"{row['id']}.safetensors")
            assert float(row["hit"]) == float(pointing_game(item.saliency(), mask, 3))
            assert float(row["energy inside"]) == pytest.approx(float(energy_pointing_game(item.saliency(), mask)))
        elif row["method"].startswith("uniform"):
            flat = torch.zeros(16 * 16, 16, 16)
            flat.view(256, 256).fill_diagonal_(1)  # every point once
            every = pointing_game(flat, mask.expand(256, -1, -1), 3)
            assert float(row["hit"]) == pytest.approx(float(every.mean()))
            assert float(row["energy inside"]) == pytest.approx(
                float(energy_pointing_game(torch.ones(1, 16, 16), mask))
            )
        else:
            point = torch.zeros(1, 16, 16)
            point[0, 8, 8] = 1
            assert float(row["hit"]) == float(pointing_game(point, mask, 3))
            assert row["energy inside"] == "undefined"
    table = {row["method"]: row for row in rows(output / "pointing.csv")}
    own = [row for row in found if row["method"] == "gradient"]
    hits, energy = (sum(float(row[column]) for row in own) / 3 for column in ("hit", "energy inside"))
    above = sum(float(row["energy inside"]) - float(row["share of the picture"]) for row in own) / 3
    assert float(table["gradient"]["hits"]) == pytest.approx(hits)
    low, high = wilson(3 * hits, 3)
    assert (float(table["gradient"]["hits from"]), float(table["gradient"]["hits to"])) == pytest.approx((low, high))
    assert float(table["gradient"]["energy inside"]) == pytest.approx(energy)
    assert float(table["gradient"]["energy above the object's share"]) == pytest.approx(above)
    assert float(table["uniform map, random point"]["energy above the object's share"]) == 0
    printed = capsys.readouterr().out
    assert "3 items by gradient, center" in printed
    assert "left out: 2 items without an object of their class" in printed
    assert "left out: 1 items whose objects are outside of the crop" in printed
    assert "left out: 1 objects outside of the crop" in printed
    assert (output / "pointing.md").read_text() in printed
    with Image.open(output / "pointing.png") as picture:
        assert picture.width > 500


def test_masks_and_annotations_agree_with_boxes(results: Path, tmp_path: Path) -> None:
    expected = rows(
        pointing(results, boxes(tmp_path, "in/0.png,cat,8,4,20,16", "in/0.png,car,8,4,20,16")) / "pointing_items.csv"
    )
    mask = np.zeros(HERE, dtype=np.uint8)
    mask[4:16, 8:20] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "0.png")  # of whatever class
    assert rows(pointing(results, str(tmp_path / "masks"), "--sheet", "0") / "pointing_items.csv") == expected
    Image.fromarray(255 - mask).save(tmp_path / "masks" / "0@cat.png")  # of one item
    changed = rows(pointing(results, str(tmp_path / "masks"), "--sheet", "0") / "pointing_items.csv")
    for before, after in zip(expected, changed, strict=True):
        share, other = (float(row["share of the picture"]) for row in (before, after))
        assert other == pytest.approx(1 - share if before["id"] == "0@cat" else share)
    annotation = {"image_id": 1, "segmentation": [[8, 4, 20, 4, 20, 16, 8, 16]], "bbox": [0, 0, 1, 1]}
    coco = {
        "images": [{"id": 1, "file_name": "0.png", "height": HERE[0], "width": HERE[1]}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "car"}, {"id": 3, "name": "zebra"}],
        "annotations": [{**annotation, "category_id": id} for id in (1, 2, 3)],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    assert rows(pointing(results, str(tmp_path / "coco.json"), "--sheet", "0") / "pointing_items.csv") == expected


def test_maps_of_ones_own(results: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    saliency = np.zeros((16, 16), dtype=np.float32)
    saliency[3, 4] = 1
    np.save(tmp_path / "mine" / "0@cat.npy", saliency)
    output = pointing(results, boxes(tmp_path, "0.png,cat,8,4,20,16"), "--maps", f"{{mine: {tmp_path / 'mine'}}}")
    table = {row["method"]: row for row in rows(output / "pointing.csv")}
    assert (table["mine"]["hits"], table["mine"]["energy inside"]) == ("1.0", "1.0")
    assert table["mine"]["energy inside from"] == "undefined"  # of one image


def test_several_items_of_an_image_are_no_more_images(results: Path, tmp_path: Path) -> None:
    truth = boxes(tmp_path, *(f"in/{i}.png,{name},4,0,36,32" for i in range(2) for name in ("cat", "car")))
    table = {row["method"]: row for row in rows(pointing(results, truth) / "pointing.csv")}
    assert (table["gradient"]["items"], table["gradient"]["images"]) == ("4", "2")
    assert table["gradient"]["hits"] == "1.0"
    assert float(table["gradient"]["hits from"]) == pytest.approx(wilson(2, 2)[0])


def test_mistakes(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], photo: PhotoMaker) -> None:
    good = boxes(tmp_path, "in/0.png,cat,8,4,20,16")
    assert "Expected folders in --results, and --tolerance" in fails(capsys, results, good, "--tolerance", "-1")
    assert "found no explanations in" in fails(capsys, tmp_path / "in", good)
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / "other.npy", np.zeros((16, 16)))
    assert "Expected items that all methods have" in fails(
        capsys, results, good, "--maps", f"{{mine: {tmp_path / 'mine'}}}"
    )
    assert "cannot be read" in fails(capsys, results, str(tmp_path / "gone.csv"))
    assert "'doge'" in fails(capsys, results, boxes(tmp_path, "in/0.png,doge,8,4,20,16"))
    assert "x0 < x1" in fails(capsys, results, boxes(tmp_path, "in/0.png,cat,8,4,8,16"))
    outside = fails(capsys, results, boxes(tmp_path, "in/0.png,cat,8,4,50,16"))
    assert "inside of their image of 32×40 pixels, but row 2 of" in outside
    nothing = fails(capsys, results, boxes(tmp_path, "in/9.png,cat,8,4,20,16"))
    assert "has none for 6 items (6 items without an object of their class" in nothing
    assert "6 items" in fails(capsys, results, boxes(tmp_path, *(f"in/{i}.png,dog,8,4,20,16" for i in range(3))))
    assert "1 items whose objects are outside of the crop" in fails(
        capsys, results, boxes(tmp_path, "0.png,cat,0,0,3,9")
    )
    good = boxes(tmp_path, "in/0.png,cat,8,4,20,16")
    error = fails(capsys, results, good, "--model.classifier.resize", "20")
    assert "Expected the network that made 0@cat, but the input differs: resize 16 there and 20 here" in error
    photo("in/0.png", *HERE, seed=9)
    assert "has changed" in fails(capsys, results, good)
    (tmp_path / "in" / "0.png").unlink()
    assert "does not exist" in fails(capsys, results, good)


@pytest.mark.parametrize("tolerance", [0, 1, 2, 5])
def test_within_reach_is_where_a_point_is_a_hit(tolerance: int) -> None:
    mask = torch.zeros(9, 12, dtype=torch.bool)
    mask[2:4, 5:7] = mask[8, 0] = True
    found = within_reach(mask, tolerance)
    for i in range(9):
        for j in range(12):
            near = [math.dist((i, j), where) for where in mask.nonzero().tolist()]
            assert found[i, j] == any(distance < tolerance or distance == 0 for distance in near)


def test_outlines_lie_on_the_edge() -> None:
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[5:15, 10:30] = True  # cut at the right
    picture = outlined(torch.zeros(3, 20, 30), mask)
    line = (picture == torch.tensor(COLOR)[:, None, None]).all(0)
    assert line[10, [9, 10, 29]].all()
    assert not line[10, [5, 11, 20, 28]].any()
    assert (picture[:, ~line] == 0).all()
