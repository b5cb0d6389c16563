from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import NETWORK
from matplotlib.figure import Figure
from PIL import Image
from toy_networks import Tiny

from fgvis_lightning import load_explanation
from fgvis_lightning.baselines import Gradient
from fgvis_lightning.cli import main
from fgvis_lightning.data.images import load_image
from fgvis_lightning.data.items import Item
from fgvis_lightning.experiments import comparison
from fgvis_lightning.method.games import GAMES
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.networks.preprocessing import IMAGENET_MEAN
from fgvis_lightning.results.attribution import Attribution
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.figures import grid
from fgvis_lightning.results.load import load_item

PhotoMaker = Callable[..., Path]
ROOT = Path(__file__).parents[2]
BASELINES = "fgvis_lightning.baselines"
METHODS = {
    "gradient": {"class_path": f"{BASELINES}.Gradient"},
    "in the middle": {"class_path": "methods.Center", "init_args": {"sharpness": 2.0}},
    "FGVis": {"class_path": f"{BASELINES}.FGVisMethod", "init_args": {"iterations": 4, "patience": 0}},
}


def arguments(folder: Path, output: Path, methods: object, *more: str) -> list[str]:
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({"methods": methods}, sort_keys=False))
    return [
        *("compare", "--config", str(config), "--output", str(output), "--data.images", str(folder)),
        *("--data.batch_size", "2", *NETWORK),
        *("--trainer.accelerator", "cpu", "--crop", "8", *more),
    ]


def compare(folder: Path, output: Path, *more: str, methods: object = METHODS) -> None:
    main(arguments(folder, output, methods, *more))


def fails(capsys: pytest.CaptureFixture[str], folder: Path, output: Path, *more: str, methods: object = METHODS) -> str:
    with pytest.raises(SystemExit) as stopped:
        compare(folder, output, *more, methods=methods)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def contents(output: Path) -> dict[Path, bytes]:
    return {path.relative_to(output): path.read_bytes() for path in output.rglob("*.safetensors")}


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_leaves_maps_figures_and_costs(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(folder, output)
    for method in ("gradient", "in_the_middle", "FGVis"):
        assert len(list((output / method / "explanations").iterdir())) == 3
        assert len(rows(output / method / "summary.csv")) == 3
    (path, *_) = sorted((output / "gradient" / "explanations").iterdir())
    found = load_item(path)
    assert isinstance(found, Attribution)
    assert found.method == "gradient"
    assert found.metadata["image"] == str(folder / "photo 0.png")

    mask = load_explanation(output / "FGVis" / "explanations" / path.name)
    assert torch.equal(mask.targets, found.targets)
    assert torch.equal(mask.score_image, found.score_image)
    for figure in ("comparison", "crop"):
        assert (output / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(output / f"{figure}.png") as picture:
            assert picture.width > 1000
    assert not (output / "discrimination.csv").exists()  # each image has one class

    costs = rows(output / "costs.csv")
    assert [(row["method"], row["images"]) for row in costs] == [(name, "3") for name in METHODS]
    per_image = [(float(row["forward passes per image"]), float(row["backward passes per image"])) for row in costs]
    assert per_image[:2] == [(1, 1), (3, 0)]
    assert per_image[2][0] > 4
    assert per_image[2][1] >= 4
    printed = capsys.readouterr().out
    assert (output / "costs.md").read_text() in printed
    assert "gradient: 3 of 3 items done" in printed
    assert str(output / "comparison.png") in printed


@pytest.mark.parametrize("order", [["ours", "other"], ["other", "ours"], ["other"]])
def test_the_crop_is_where_fgvis_has_most_evidence(order: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it stands; without it, where the last method has most."""
    monkeypatch.setattr(comparison, "_grid", lambda results, rows, *_: rows)
    classifier = load_classifier(Tiny(), size=(16, 16))
    found = {name: made(name == "ours") for name in order}
    result = comparison.Result(Item("", "", 0), 0, torch.zeros(3, 16, 16), found)
    rows: Any = comparison._crops([result], order, classifier, 4)
    photo, _ = rows[0]["photo"]
    framed = photo[:, 0, 0] if "ours" in order else photo[:, -1, -1]
    assert framed.tolist() == [1, 1, 0]


def made(ours: bool) -> Explanation | Attribution:
    """Evidence in the first pixel by FGVis, in the last one by another method."""
    evidence = torch.zeros(1, 3, 16, 16)
    evidence[..., *((0, 0) if ours else (-1, -1))] = 1
    target, score = torch.tensor([0]), torch.tensor([0.5])
    if ours:
        return Explanation(evidence, target, score, score, GAMES["preservation"])
    return Attribution(evidence.mean(1), target, score, "other")


def test_goes_on_where_it_was_and_computes_nothing_twice(folder: Path, output: Path) -> None:
    compare(folder, output)
    before, costs = contents(output), rows(output / "costs.csv")
    lost = output / "gradient" / "explanations"
    first, second, _ = sorted(lost.iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-4])
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    compare(folder, output)
    assert contents(output) == before
    again = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert again == {second}
    assert int(rows(output / "costs.csv")[0]["images"]) == 5
    assert rows(output / "costs.csv")[1:] == costs[1:]


def test_the_map_of_a_method_is_what_it_returns_for_the_images(folder: Path, output: Path) -> None:
    compare(
        folder,
        output,
        "--data.batch_size",
        "3",
        "--model.classifier.mean",
        "[0.5, 0.5, 0.5]",
        "--model.classifier.std",
        "[0.5, 0.5, 0.5]",
    )
    classifier = load_classifier(Tiny(), size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    paths = sorted(folder.iterdir())
    x = torch.stack([load_image(str(path), classifier.preprocessing) for path in paths]) / 127.5 - 1
    targets = classifier.network(x).argmax(1)
    expected = Gradient()(classifier.network, x, targets)
    files = sorted((output / "gradient" / "explanations").iterdir())
    found = torch.cat([load_item(path).saliency() for path in files])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_what_a_method_leaves_of_an_image_is_kept(
    folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = {"class_path": "methods.LeftHalf"}
    columns: list[str] = []

    def watched(rows: Any, names: Any, *more: Any) -> Figure:
        columns.extend(name for name in names if name not in columns)
        return grid(rows, names, *more)

    monkeypatch.setattr(comparison, "grid", watched)
    compare(folder, output, methods={"left": left, "gradient": METHODS["gradient"]})
    assert columns == ["image", "left", "left:\nexplanation", "gradient", "photo"]
    item, other = (load_item(next((output / name / "explanations").iterdir())) for name in ("left", "gradient"))
    assert isinstance(item, Attribution)
    assert isinstance(other, Attribution)
    assert other.explanation is None
    assert item.explanation is not None
    image = load_image(item.metadata["image"], load_classifier(Tiny(), size=(16, 16)).preprocessing) / 255
    assert item.explanation.shape == (1, 3, 16, 16)
    torch.testing.assert_close(item.explanation[0, ..., :8], image[..., :8], rtol=0, atol=3e-4)
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None].expand(3, 16, 8)
    torch.testing.assert_close(item.explanation[0, ..., 8:], mean, rtol=0, atol=3e-4)

    wrong = {**left, "init_args": {"rest": math.nan}}
    error = fails(capsys, folder, output.with_name("wrong"), methods={"left": wrong})
    assert "Expected left to return finite images of shape (2, 3, 16, 16), but got (2, 3, 16, 16) with NaN" in error


def test_another_parameter_is_another_configuration(
    folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(folder, output)
    before = contents(output)
    capsys.readouterr()
    other = {**METHODS, "in the middle": {"class_path": "methods.Center", "init_args": {"sharpness": 3.0}}}
    error = fails(capsys, folder, output, methods=other)
    assert "in_the_middle to be empty or to hold explanations of this configuration" in error
    assert "'sharpness': 2.0" in error
    assert contents(output) == before


def test_a_method_that_cannot_is_named_and_the_others_are_there(
    folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = {
        "guided": {"class_path": f"{BASELINES}.GuidedBackprop"},
        "flat": {"class_path": "methods.Flat"},
        "asks": {"class_path": "methods.Asks"},
        "stops early": {"class_path": "methods.StopsEarly"},
        "gradient": {"class_path": f"{BASELINES}.Gradient"},
    }
    error = fails(capsys, folder, output, "--model.network", "toy_networks.Smooth", methods=methods)
    assert "guided: Expected a network with ReLUs" in error
    assert "flat: Expected flat to return finite maps of shape (2, 16, 16), but got (16, 16)" in error
    assert "stops early: Expected stops early to return maps, but it raised StopIteration, as next() does" in error
    assert "gradient:" not in error
    assert "asks:" not in error
    assert len(list((output / "gradient" / "explanations").iterdir())) == 3
    assert (output / "comparison.png").exists()


def test_unreadable_images_are_named_once(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    error = fails(capsys, folder, output)
    assert error.count("broken.png") == 1
    assert "gradient, in the middle, FGVis: 1 of 4 items could not be read" in error
    assert len(list((output / "FGVis" / "explanations").iterdir())) == 3


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({}, "Expected methods to compare, but got none"),
        ({"a b": METHODS["gradient"], "a_b": METHODS["gradient"]}, "Expected names of methods that differ"),
        (
            {name: {"class_path": f"{BASELINES}.CheapRISE"} for name in ("RISE", "RISE (cheap)")},
            "Expected methods with different names, but got RISE (cheap) twice",
        ),
    ],
)
def test_methods_that_make_no_sense(
    folder: Path, output: Path, capsys: pytest.CaptureFixture[str], methods: object, message: str
) -> None:
    assert message in fails(capsys, folder, output, methods=methods)


def test_an_unknown_class_and_a_wrong_parameter(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "NoSuch" in fails(capsys, folder, output, methods={"a": {"class_path": f"{BASELINES}.NoSuch"}})
    wrong = {"a": {"class_path": "methods.Center", "init_args": {"softness": 1}}}
    assert "softness" in fails(capsys, folder, output, methods=wrong)


def test_several_classes_of_an_image_are_told_apart(folder: Path, output: Path) -> None:
    compare(folder, output, "--data.targets", "[0, 3]")
    pairs = rows(output / "discrimination_pairs.csv")
    assert len(pairs) == 3 * 4 * (5 + 5 + 6)  # images × pairs of classes × (shares; FGVis's own mask, too)
    table = rows(output / "discrimination.csv")
    assert [row["method"] for row in table].count("FGVis") == 6
    for row in table:
        mine = [
            float(pair["left of the score"])
            for pair in pairs
            if (pair["method"], pair["deleted"]) == (row["method"], row["deleted"])
            and pair["evidence of"] == pair["score of"]
        ]
        assert float(row["left of the own score"]) == pytest.approx(math.prod(mine) ** (1 / 6), rel=1e-4)
    # The middle is the same for every class.
    same = {(p["image"], p["score of"], p["deleted"]): [] for p in pairs}  # type: ignore[var-annotated]
    for pair in pairs:
        if pair["method"] == "in the middle":
            same[pair["image"], pair["score of"], pair["deleted"]].append(pair["left of the score"])
    assert all(len(set(values)) <= 1 for values in same.values())
    assert (output / "discrimination.png").exists()


@pytest.mark.slow
def test_two_devices_make_the_same_files(folder: Path, output: Path) -> None:
    compare(folder, output)
    other = output.parent / "other"
    command = arguments(folder, other, METHODS, "--trainer.devices", "2")
    run(command)
    for method in ("gradient", "in_the_middle", "FGVis"):
        ours, theirs = (sorted((each / method / "explanations").iterdir()) for each in (output, other))
        assert [path.name for path in ours] == [path.name for path in theirs]
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(load_item(one).saliency(), load_item(two).saliency(), rtol=1e-3, atol=1e-5)
    assert [row["images"] for row in rows(other / "costs.csv")] == ["3"] * 3
    assert (other / "comparison.png").exists()


@pytest.mark.slow
def test_goes_on_after_a_kill(folder: Path, output: Path) -> None:
    methods = {
        "gradient": METHODS["gradient"],
        "stops": {"class_path": "methods.Stops", "init_args": {"marker": str(output.parent / "marker")}},
        "FGVis": METHODS["FGVis"],
    }
    command = arguments(folder, output, methods)
    run(command, -9)
    assert len(list((output / "gradient" / "explanations").iterdir())) == 3
    assert len(list((output / "stops" / "explanations").iterdir())) == 2
    before = contents(output)
    run(command)
    after = contents(output)
    assert {path: after[path] for path in before} == before
    assert len(after) == 9


def run(command: list[str], code: int = 0) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
