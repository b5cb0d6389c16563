from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import NETWORK
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file
from toy_networks import Tiny

from fgvis_lightning import explain, load_explanation
from fgvis_lightning.cli import main
from fgvis_lightning.data.images import load_image
from fgvis_lightning.experiments import evaluation
from fgvis_lightning.experiments.judgements import Judgement, Judgements
from fgvis_lightning.experiments.judging import of_pictures
from fgvis_lightning.experiments.measured import METRICS
from fgvis_lightning.metrics import (
    PROFILES,
    auc,
    curves,
    highlight,
    infidelity,
    insertion_curve,
    new_edges,
    road,
    road_curves,
    sensitivity_n,
)
from fgvis_lightning.metrics.profiles import ZERO
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.results import figures
from fgvis_lightning.results.attribution import Attribution

PhotoMaker = Callable[..., Path]


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def results(photo: PhotoMaker, tmp_path: Path) -> Path:
    """A comparison of two methods over three photos."""
    for i in range(3):
        photo(f"in/{i}.png", seed=i)
    methods = {
        "gradient": {"class_path": "fgvis_lightning.baselines.Gradient"},
        "FGVis": {"class_path": "fgvis_lightning.baselines.FGVisMethod", "init_args": {"iterations": 8}},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"methods": methods}, sort_keys=False))
    main(
        [
            *("compare", "--config", str(tmp_path / "c.yaml"), "--output", str(tmp_path / "results"), *NETWORK),
            *("--data.images", str(tmp_path / "in"), "--trainer.accelerator", "cpu", "--crop", "0"),
        ]
    )
    return tmp_path / "results"


def evaluate(results: Path, *more: str) -> Path:
    output = results.parent / "evaluation"
    main(["evaluate", "--results", f"[{results}]", "--output", str(output), *NETWORK, "--device", "cpu", *more])
    return output


def fails(capsys: pytest.CaptureFixture[str], results: Path, *more: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        evaluate(results, *more)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_each_number_is_that_of_the_item(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = evaluate(results, "--metrics", "all")
    classifier = load_classifier(Tiny(), size=(16, 16))
    mean, std = (torch.tensor(v)[:, None, None] for v in (classifier.preprocessing.mean, classifier.preprocessing.std))
    found = {(row["id"], row["method"]): row for row in rows(output / "evaluation_items.csv")}
    assert len(found) == 6
    for path in sorted((results / "FGVis" / "explanations").iterdir()):
        item, row = load_explanation(path), found[path.stem, "FGVis"]
        x = (load_image(item.metadata["image"], classifier.preprocessing)[None] / 255 - mean) / std
        scores = curves(classifier.network, x, item.saliency(), item.targets)
        for kind, curve in zip(("deletion", "insertion"), scores, strict=True):
            assert float(row[kind]) == pytest.approx(float(auc(curve)), abs=1e-5)
        gray = insertion_curve(
            classifier.network, x, item.saliency(), item.targets, replace(PROFILES["rise"], insertion=ZERO)
        )
        assert float(row["insertion from gray"]) == pytest.approx(float(auc(gray)), abs=1e-5)
        assert row["insertion from gray"] != row["insertion"]
        told = sensitivity_n(classifier.network, x, item.saliency(), item.targets).mean()
        assert float(row["sensitivity-n"]) == pytest.approx(float(told), abs=1e-3)
        told = infidelity(classifier.network, x, item.saliency(), item.targets)
        assert float(row["infidelity"]) == pytest.approx(float(told), rel=1e-2)
        told = road(*road_curves(classifier.network, x, item.saliency(), item.targets))
        assert float(row["ROAD"]) == pytest.approx(float(told), abs=1e-5)
        after = float(classifier.network(item.evidence * x).softmax(1)[0, item.targets])
        kept = after / float(item.score_image)
        assert float(row["p(e)"]) == pytest.approx(after, rel=1e-4)
        assert float(row["score kept"]) == pytest.approx(kept, rel=1e-4)
        assert float(row["average drop as is"]) == pytest.approx(max(0.0, 1 - kept), abs=1e-4)
        shown = classifier.preprocessing.background() + item.evidence * x * std
        image = load_image(item.metadata["image"], classifier.preprocessing)[None] / 255
        assert float(row["hallucination"]) == pytest.approx(float(new_edges(image, shown.clamp(0, 1))), abs=0.02)
        retained = float((item.evidence * x).abs().sum() / x.abs().sum())
        assert float(row["CP l1"]) == pytest.approx(kept / retained, rel=1e-4)
        assert float(row["CP entropy"]) > 0
        assert float(row["sparsity"]) == pytest.approx(float(item.sparsity), abs=1e-5)
        assert float(row["size"]) == pytest.approx(float(item.evidence.mean()), abs=1e-5)
        for name, scale in (("average drop", "maximum"), ("average drop min-max", "min-max")):
            logits = classifier.network(highlight(x, item.saliency(), scale))
            drop = 1 - float(logits.softmax(1)[0, item.targets] / item.score_image)
            assert float(row[name]) == pytest.approx(max(0.0, drop), abs=1e-4)
        assert list(row)[5:] == list(METRICS)
        assert found[path.stem, "gradient"]["sparsity"] == ""  # a map is no mask

    table = {(row["method"], row["metric"]): row for row in rows(output / "evaluation.csv")}
    for method in ("gradient", "FGVis"):
        values = [float(row["deletion"]) for (_, name), row in found.items() if name == method]
        row = table[method, "deletion"]
        assert float(row["mean"]) == pytest.approx(sum(values) / 3, rel=1e-5)
        assert float(row["from"]) <= float(row["mean"]) <= float(row["to"])
    pairs = [
        float(row["deletion"]) - float(found[id, "FGVis"]["deletion"])
        for (id, name), row in found.items()
        if name == "gradient"
    ]
    assert float(table["gradient", "deletion"]["difference"]) == pytest.approx(sum(pairs) / 3, abs=1e-5)
    assert table["FGVis", "deletion"]["difference"] == ""
    says = json.loads((output / "evaluation.json").read_text())
    assert says["profile"] == "rise"
    assert says["ties"] == "in an order drawn at random, seed 0"
    assert {"step", "deletion substrate", "kernel", "weights", "preprocessing"} <= set(says)
    for figure in ("curves", "extremes"):
        assert (output / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(output / f"{figure}.png") as picture:
            assert picture.width > 1000
    printed = capsys.readouterr().out
    assert "| method | deletion ↓ | insertion ↑ |" in printed
    assert "Differences from FGVis" in printed


def test_faint_evidence_is_brightened_among_the_extremes(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (results / "FGVis" / "explanations").iterdir():
        item = load_explanation(path)
        replace(item, mask=item.mask / 10).save(path)
    drawn: list[list[tuple[torch.Tensor, str]]] = []

    def grid(rows: list[list[tuple[torch.Tensor, str]]], *more: object) -> Figure:
        drawn.extend(rows)
        return figures.grid(rows, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation, "grid", grid)
    evaluate(results, "--extremes", "1")
    (picture, text), color = drawn[0][2], load_classifier(Tiny(), size=(16, 16)).preprocessing.background()
    assert "brightened ×" in text
    assert (picture - color).abs().max() > 0.2  # a tenth of the evidence would be gray


def test_maps_of_your_own_beside_them(results: Path) -> None:
    ids = [path.stem for path in sorted((results / "FGVis" / "explanations").iterdir())]
    own = results.parent / "own"
    own.mkdir()
    maps = {id: torch.rand(16, 16, generator=torch.Generator().manual_seed(n)) for n, id in enumerate(ids)}
    np.save(own / f"{ids[0]}.npy", maps[ids[0]].numpy())
    save_file({"saliency": maps[ids[1]][None]}, own / f"{ids[1]}.safetensors")
    output = evaluate(results, "--maps", f"{{mine: {own}}}", "--reference", "mine", "--profile", "xplique")
    found = [row for row in rows(output / "evaluation_items.csv") if row["method"] == "mine"]
    assert [row["id"] for row in found] == ids[:2]  # what all have
    assert {row["profile"] for row in found} == {"xplique"}
    classifier = load_classifier(Tiny(), size=(16, 16))
    mean, std = (torch.tensor(v)[:, None, None] for v in (classifier.preprocessing.mean, classifier.preprocessing.std))
    item = load_explanation(results / "FGVis" / "explanations" / f"{ids[1]}.safetensors")
    x = (load_image(item.metadata["image"], classifier.preprocessing)[None] / 255 - mean) / std
    deletion, _ = curves(classifier.network, x, maps[ids[1]][None], item.targets, "xplique")
    assert float(found[1]["deletion"]) == pytest.approx(float(auc(deletion, "xplique")), abs=1e-5)


def test_pixels_of_equal_value_from_the_top_left_by_name(results: Path) -> None:
    ids = [path.stem for path in sorted((results / "FGVis" / "explanations").iterdir())]
    own = results.parent / "own"
    own.mkdir()
    for id in ids:
        np.save(own / f"{id}.npy", np.eye(16))
    output = evaluate(results / "FGVis", "--maps", f"{{mine: {own}}}", "--ties", "first", "--extremes", "0")
    item = load_explanation(results / "FGVis" / "explanations" / f"{ids[0]}.safetensors")
    classifier = load_classifier(Tiny(), size=(16, 16))
    x = classifier.preprocessing.normalize(load_image(item.metadata["image"], classifier.preprocessing)[None] / 255)
    profile = replace(PROFILES["rise"], ties="first")
    found = {(row["id"], row["method"]): row for row in rows(output / "evaluation_items.csv")}
    for kind, curve in zip(
        ("deletion", "insertion"),
        curves(classifier.network, x, torch.eye(16)[None], item.targets, profile),
        strict=True,
    ):
        assert float(found[ids[0], "mine"][kind]) == pytest.approx(float(auc(curve)), abs=1e-5)
    assert json.loads((output / "evaluation.json").read_text())["ties"].startswith("those at the top left")


def test_metrics_that_are_asked_for(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    always = ["deletion", "insertion"]
    quick = ["--extremes", "0", "--profile", "xplique"]
    for asked, names in (
        ("[size, class kept]", [*always, "class kept", "size"]),
        ("sparsity", [*always, "sparsity"]),
        ("standard", [name for name, metric in METRICS.items() if metric.standard]),
    ):
        (row, *_) = rows(evaluate(results, "--metrics", asked, *quick) / "evaluation_items.csv")
        assert list(row)[5:] == names
    assert row["insertion from gray"] == row["insertion"]  # that of the profile
    assert "but got 'sise'. Nearest: size" in fails(capsys, results, "--metrics", "[sise]")


def test_a_folder_of_fit(results: Path) -> None:
    output = evaluate(results / "FGVis", "--extremes", "0")
    assert {row["method"] for row in rows(output / "evaluation.csv")} == {"FGVis"}
    assert not (output / "extremes.png").exists()


def test_the_task_changes_the_numbers(results: Path) -> None:
    """In the same folder, which keeps what was judged before."""
    quick = ["--extremes", "0", "--metrics", "[]"]
    many = ["--model.task", "multilabel", *quick]
    first, second, again = (rows(evaluate(results, *more) / "evaluation_items.csv") for more in (quick, many, quick))
    assert first == again
    assert all(one["deletion"] != other["deletion"] for one, other in zip(first, second, strict=True))


def test_a_map_is_judged_again_on_another_photo(tmp_path: Path) -> None:
    for name in ("map", "item"):
        (tmp_path / name).write_text("a")
    curve = [1.0, 1.0]
    one = Judgement("a", "a.png", 1, "mine", {"size": 0.5}, curve, curve)
    items = {"a": tmp_path / "item"}
    Judgements(tmp_path / "known", {}, items).add(one, tmp_path / "map")
    assert Judgements(tmp_path / "known", {}, items).get("mine", "a", tmp_path / "map") is not None
    (tmp_path / "item").write_text("another image or class")
    assert Judgements(tmp_path / "known", {}, items).get("mine", "a", tmp_path / "map") is None


def test_a_method_that_was_removed_is_left_out(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "methods.json").write_text(json.dumps({"FGVis": "FGVis"}))
    output = evaluate(results, "--extremes", "0")
    assert {row["method"] for row in rows(output / "evaluation.csv")} == {"FGVis"}
    assert "configuration no longer has them: gradient" in capsys.readouterr().out


def test_maps_of_another_network_are_told(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(results, "--extremes", "0", "--model.network", "toy_networks.Smooth")
    assert "The maps were made for Tiny, but are judged by Smooth." in capsys.readouterr().out


@pytest.mark.parametrize("hides", ["blurred", "black", ""])
def test_information_is_that_of_the_part_alone(hides: str) -> None:
    """A half that is kept has half of the image's information, whatever replaces the other half."""
    classifier = load_classifier(Tiny(), size=(16, 16))
    image = torch.full((3, 16, 16), 0.9)
    kept = torch.zeros(1, 16, 16)
    kept[..., :8] = 1
    rest = {"blurred": 0.8, "black": 0.0, "": 0.7}[hides]
    item = Attribution(
        kept,
        torch.tensor([1]),
        torch.tensor([0.5]),
        "m",
        explanation=(kept * image + (1 - kept) * rest)[None],
        hides=hides,
    )
    x = classifier.preprocessing.normalize(image)[None]
    found = of_pictures(classifier.network, x, [item], [image], item.targets, classifier.network(x), classifier, True)
    assert ("CP l1" in found) == bool(hides)
    if hides:
        assert float(found["CP l1"] / found["score kept"]) == pytest.approx(2, rel=1e-4)
    assert float(found["p(e)"]) < 1
    assert "hallucination" in found


def test_an_explanation_on_the_blurred_image() -> None:
    """Judged on it, as it was made."""
    network = Tiny().eval()
    classifier = load_classifier(network, size=(16, 16))
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    preprocessing = classifier.preprocessing
    normalize = preprocessing.mean, preprocessing.std
    found = explain(network, image, reference="blurred", iterations=10, seeds=1, normalize=normalize)
    item = replace(found, metadata={"settings": json.dumps({"reference": "blurred"})})
    x = preprocessing.normalize(image)[None]
    logits = classifier.network(x)
    measured = of_pictures(classifier.network, x, [item], [image], item.targets, logits, classifier, True)
    assert float(measured["p(e)"]) == pytest.approx(float(found.score_explanation), abs=1e-4)
    assert float(measured["score kept"] / measured["CP l1"]) == pytest.approx(
        float((found.mask * x).abs().sum() / x.abs().sum()), rel=1e-4
    )


def test_mistakes(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "found no explanations in" in fails(capsys, results.parent / "in")
    assert "Expected profile to be one of" in fails(capsys, results, "--profile", "raise")
    assert "Expected ties to be one of random, first" in fails(capsys, results, "--ties", "last")
    empty = results.parent / "empty"
    empty.mkdir()
    assert "Expected maps <item id>.npy" in fails(capsys, results, "--maps", f"{{mine: {empty}}}")
    np.save(empty / "other.npy", np.zeros((16, 16)))
    assert "Expected items that all methods have" in fails(capsys, results, "--maps", f"{{mine: {empty}}}")
    assert "got mine twice" not in fails(capsys, results, "--maps", f"{{FGVis: {empty}}}")
    (id,) = [path.stem for path in (results / "FGVis" / "explanations").iterdir()][:1]
    np.save(empty / f"{id}.npy", np.zeros((8, 16)))
    assert f"Expected maps of (16, 16), the network's input size, but that of {id} by mine has (8, 16)" in fails(
        capsys, results, "--maps", f"{{mine: {empty}}}"
    )
    np.save(empty / f"{id}.npy", np.full((16, 16), np.nan))
    assert f"Expected maps without NaN and infinity, but that of {id} by mine has some." in fails(
        capsys, results, "--maps", f"{{mine: {empty}}}"
    )
    assert "Expected --reference to be one of gradient, FGVis, but got 'FGViz'. Nearest: FGVis." in fails(
        capsys, results, "--reference", "FGViz"
    )
    assert "Expected --device to be a device of this machine, but got cuda:77" in fails(
        capsys, results, "--device", "cuda:77"
    )
    assert "but the input differs: resize 16 there and 20 here" in fails(
        capsys, results, "--model.classifier.resize", "20"
    )
    np.save(empty / f"{id}.npy", np.zeros((3, 16, 16)))
    assert "Expected a map (H,W), but" in fails(capsys, results, "--maps", f"{{mine: {empty}}}")
    for content in (b"no map", b""):
        (empty / f"{id}.npy").write_bytes(content)
        assert "Expected a map, but" in fails(capsys, results, "--maps", f"{{mine: {empty}}}")
