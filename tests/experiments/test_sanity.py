from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import NETWORK
from PIL import Image
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from toy_networks import Tiny

from fgvis_lightning.baselines import RISE, Gradient
from fgvis_lightning.cli import main
from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.experiments.randomization import randomized
from fgvis_lightning.metrics import max_sensitivity
from fgvis_lightning.networks.load import load_classifier

PhotoMaker = Callable[..., Path]
GRADIENT = "fgvis_lightning.baselines.Gradient"


def sanity(tmp_path: Path, methods: dict[str, Any], *more: str, output: str = "out") -> Path:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"methods": methods}, sort_keys=False))
    own = ["--config", str(tmp_path / "s.yaml"), "--images", str(tmp_path / "in"), "--device", "cpu"]
    main(["sanity", *own, *NETWORK, "--output", str(tmp_path / output), *more])
    return tmp_path / output


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_command(photo: PhotoMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        photo(f"in/{i}.png", seed=i)
    methods = {
        "gradient": {"class_path": "fgvis_lightning.baselines.Gradient"},
        "center": {"class_path": "methods.Center"},
        "FGVis": {"class_path": "fgvis_lightning.baselines.FGVisMethod", "init_args": {"iterations": 5}},
    }
    output = sanity(tmp_path, methods, "--steps", "2")
    table = rows(output / "sanity.csv")
    assert [(row["method"], row["layers drawn anew"]) for row in table] == [
        (name, step) for name in methods for step in ("2", "4", "another class")
    ]
    found = {(row["method"], row["layers drawn anew"]): float(row["rank correlation"]) for row in table}
    assert all(found["center", step] == pytest.approx(1) for step in ("2", "4", "another class"))
    assert found["gradient", "4"] < 0.9
    for figure in ("sanity", "maps"):
        with Image.open(output / f"{figure}.png") as picture:
            assert picture.width > 500
    assert (output / "sanity.md").read_text() in capsys.readouterr().out


def test_ceiling_and_floor_stand_beside_every_number(photo: PhotoMaker, tmp_path: Path) -> None:
    for i in range(4):
        photo(f"in/{i}.png", seed=i)
    rise = {"class_path": "fgvis_lightning.baselines.RISE", "init_args": {"masks": 40, "cells": 4}}
    methods = {
        "gradient": {"class_path": GRADIENT},
        "center": {"class_path": "methods.Center"},
        "drawn": {"class_path": "methods.Drawn"},
        "image": {"class_path": "methods.Drawn", "init_args": {"image": 2.0}},
        "RISE": rise,
    }
    table = rows(sanity(tmp_path, methods, "--steps", "1") / "sanity.csv")
    by = {row["method"]: row for row in table if row["layers drawn anew"] == "4"}
    classifier = load_classifier(Tiny(), size=(16, 16))
    paths = sorted((tmp_path / "in").iterdir())
    x = classifier.preprocessing.normalize(
        torch.stack([as_float(load_image(str(path), classifier.preprocessing)) for path in paths])
    )
    targets = classifier.network(x).argmax(1)
    for name, method in (("gradient", Gradient()), ("RISE", RISE(masks=40, cells=4))):
        other = RISE(masks=40, cells=4, seed=1000) if name == "RISE" else method
        original, again = (one(classifier.network, x, targets).flatten(1).numpy() for one in (method, other))
        ((_, random),) = randomized(classifier.network, 1, 0)
        last = other(random, x, targets).flatten(1).numpy()
        slow = {
            "rank correlation": [spearmanr(original[i], last[i]).statistic for i in range(4)],
            "ceiling": [spearmanr(original[i], again[i]).statistic for i in range(4)],
            "floor": [spearmanr(original[i], again[(i + 1) % 4]).statistic for i in range(4)],
        }
        for column, values in slow.items():
            assert float(by[name][column]) == pytest.approx(sum(values) / 4, abs=1e-5), (name, column)
    assert (by["gradient"]["ceiling"], by["gradient"]["ceiling by"]) == ("1.0", "deterministic")
    assert by["RISE"]["ceiling by"] == "another seed"
    assert by["gradient"]["says"].startswith("below the ceiling")
    assert float(by["center"]["floor"]) == pytest.approx(1)
    assert by["center"]["says"] == "not below the ceiling, not above the floor"  # what all photos have in common
    # Maps of random numbers and the image depend on no network: as far from themselves as from their ceiling.
    for name in ("drawn", "image"):
        assert float(by[name]["rank correlation"]) == pytest.approx(float(by[name]["ceiling"]))
        assert by[name]["says"].startswith("not below the ceiling")
    assert float(by["drawn"]["ceiling"]) < 0.3
    assert by["image"]["says"].endswith(", above the floor")
    text = (tmp_path / "out" / "sanity.md").read_text()
    assert "| gradient | 4 | " in text
    assert " | 1.000 [1.000, 1.000] | deterministic | " in text


def test_one_photo_has_neither_interval_nor_floor(photo: PhotoMaker, tmp_path: Path) -> None:
    photo("in/a.png")
    output = sanity(tmp_path, {"g": {"class_path": GRADIENT}}, "--steps", "1", "--targets", "top2")
    assert {row["floor"] for row in rows(output / "sanity.csv")} == {"undefined"}
    assert {row["says"] for row in rows(output / "sanity.csv")} == {"no verdict from a single image"}


def test_two_photos_are_one_pair(photo: PhotoMaker, tmp_path: Path) -> None:
    """So their floor has no interval: twice the same number is no evidence of it."""
    for i in range(2):
        photo(f"in/{i}.png", seed=i)
    first, *_ = rows(sanity(tmp_path, {"g": {"class_path": GRADIENT}}, "--steps", "1") / "sanity.csv")
    assert -1 < float(first["floor"]) < 1
    assert first["floor from"] == "undefined"
    assert first["says"] == "below the ceiling"


def test_smooth_and_efficient(photo: PhotoMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        photo(f"in/{i}.png", seed=i)
    methods = {
        "gradient": {"class_path": GRADIENT},
        "flat": {"class_path": "methods.Center", "init_args": {"sharpness": 0.0}},
    }
    few = ["--tests", "[smprt, emprt]", "--samples", "3", "--steps", "4"]
    output = sanity(tmp_path, methods, *few)
    assert not (output / "sanity.csv").exists()
    smooth = [row for row in rows(output / "smooth.csv") if row["method"] == "gradient"]
    assert [row["layers drawn anew"] for row in smooth] == ["1", "2", "3", "4", "another class"]
    assert {row["ceiling by"] for row in smooth} == {"another seed"}  # of the noise
    assert 0.3 < float(smooth[0]["ceiling"]) < 1
    assert all((output / f"{name}.png").exists() for name in ("smooth", "smooth_maps"))
    gradient, flat = rows(output / "complexity.csv")
    rise = float(gradient["random"]) / float(gradient["trained"]) - 1
    assert float(gradient["relative rise"]) == pytest.approx(rise, abs=0.1)  # of the means, and the mean
    assert float(gradient["by another seed"]) == 0
    assert -1 <= float(gradient["correlation with the outputs' entropy"]) <= 1
    assert flat["trained"] == flat["random"] == "0.0"
    assert flat["relative rise"] == flat["correlation with the outputs' entropy"] == "undefined"
    assert (output / "complexity.md").read_text() in capsys.readouterr().out
    # What is asked for is what is done.
    again = sanity(tmp_path, methods, *few, "--order", "top_down", "--noise", "0", "--bins", "7", output="again")
    changed = [row for row in rows(again / "smooth.csv") if row["method"] == "gradient"]
    assert {row["ceiling"] for row in changed} == {"1.0"}
    assert changed[0]["rank correlation"] != smooth[0]["rank correlation"]
    assert float(rows(again / "complexity.csv")[0]["trained"]) < 2 < float(gradient["trained"])
    spread = sanity(tmp_path, methods, "--tests", "[emprt]", "--weights", "spread", output="spread")
    assert rows(spread / "complexity.csv")[0]["random"] != gradient["random"]
    two = sanity(tmp_path, methods, "--tests", "[emprt]", "--steps", "1", output="two")
    assert rows(two / "complexity.csv")[0]["correlation with the outputs' entropy"] == "undefined"  # of two networks


def test_max_sensitivity(photo: PhotoMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        photo(f"in/{i}.png", seed=i)
    methods = {"gradient": {"class_path": GRADIENT}, "center": {"class_path": "methods.Center"}}
    output = sanity(tmp_path, methods, "--tests", "[max_sensitivity]", "--changes", "3", "--targets", "1")
    gradient, center = rows(output / "sensitivity.csv")
    classifier = load_classifier(Tiny(), size=(16, 16))
    paths = [str(tmp_path / f"in/{i}.png") for i in range(3)]
    images = torch.stack([load_image(path, classifier.preprocessing, upscale=True) for path in paths])
    x = classifier.preprocessing.normalize(as_float(images))
    expected = max_sensitivity(partial(Gradient(), classifier.network), x, torch.tensor([1, 1, 1]), samples=3)
    assert float(gradient["max-sensitivity"]) == pytest.approx(float(expected.mean()), rel=1e-3)
    assert float(center["max-sensitivity"]) == 0  # the same map for every image
    assert sorted(path.name for path in output.iterdir()) == ["config.yaml", "sensitivity.csv", "sensitivity.md"]
    assert (output / "sensitivity.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        ["--samples", "0"],
        ["--changes", "0"],
        ["--noise", "-1"],
        ["--noise", ".inf"],
        ["--bins", "1"],
        ["--tests", "[]"],
    ],
)
def test_what_cannot_be(
    wrong: list[str], photo: PhotoMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("in/a.png")
    with pytest.raises(SystemExit) as stopped:
        sanity(tmp_path, {"g": {"class_path": GRADIENT}}, *wrong)
    assert stopped.value.code == 2
    assert (
        "Expected some of the tests mprt, smprt, emprt, max_sensitivity, samples and changes of at least 1"
        in capsys.readouterr().err
    )


def test_control_of_random_labels(photo: PhotoMaker, tmp_path: Path) -> None:
    """The same weights give the same maps; others, others; and what has no ranks is undefined."""
    photo("in/a.png", seed=1)
    flat = {"class_path": "methods.Center", "init_args": {"sharpness": 0.0}}
    methods = {"g": {"class_path": GRADIENT}, "flat": flat}
    networks = {"trained": Tiny(), "random labels": Tiny(seed=5)}
    for name, network in networks.items():
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    for name in networks:
        weights = "--model.classifier.checkpoint", str(tmp_path / "trained.pth")
        control = "--random_labels", str(tmp_path / f"{name}.pth")
        output = sanity(tmp_path, methods, "--steps", "1", *weights, *control, output=name)
        table = {(row["method"], row["layers drawn anew"]): row for row in rows(output / "sanity.csv")}
        assert len(table) == 6
        found = table["g", "random labels"]["rank correlation"]
        assert float(found) == pytest.approx(1) if name == "trained" else float(found) < 0.9
        assert table["flat", "random labels"]["rank correlation"] == "undefined"
        assert table["flat", "random labels"]["says"] == "no ranks: a map is constant"
        assert "| flat | random labels | undefined |" in (output / "sanity.md").read_text()
