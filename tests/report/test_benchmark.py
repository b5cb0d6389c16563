"""One command: maps of several methods for several networks, judged, on one page; stopped, it goes on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from command_line import NETWORK

from fgvis_lightning.cli import main
from fgvis_lightning.experiments import comparison
from fgvis_lightning.report.benchmark import _merged, _plan, make_parser

PhotoMaker = Callable[..., Path]
ROOT = Path(__file__).parents[2]
BASELINES = "fgvis_lightning.baselines"
METHODS = {
    "gradient": {"class_path": f"{BASELINES}.Gradient"},
    "RISE": {"class_path": f"{BASELINES}.RISE", "init_args": {"masks": 6}},
    "FGVis": {"class_path": f"{BASELINES}.FGVisMethod", "init_args": {"iterations": 4}},
    "random": {"class_path": f"{BASELINES}.Random"},
}
NETWORKS = {"wide": {"classifier": {"size": [16, 20]}}}


@pytest.fixture
def config(photo: PhotoMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    for i in range(3):
        photo(f"in/{i}.png", seed=i)
    options = {"data": {"images": str(tmp_path / "in")}, "evaluate": {"floors": True}, "methods": METHODS}
    path = tmp_path / "benchmark.yaml"
    path.write_text(yaml.safe_dump({**options, "networks": NETWORKS}, sort_keys=False))
    return path


def benchmark(config: Path, *more: str) -> Path:
    output = config.parent / "out"
    given = ["--config", str(config), "--output", str(output), *NETWORK, "--trainer.accelerator", "cpu"]
    main(["benchmark", *given, *more])
    return output


class Cells(HTMLParser):
    """The tables' rows, and the addresses of pictures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True
        if tag == "img":
            self.pictures.append(str(dict(attrs)["src"]))

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


@pytest.mark.slow
def test_one_page_and_it_goes_on(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = benchmark(config)
    page = Cells((output / "index.html").read_text(encoding="utf-8"))
    names = [row[0] for row in page.rows]
    assert names[1:4] == ["gradient", "RISE (cheap)", "FGVis"], "in the configuration's order"
    assert names.count("RISE (cheap)") == names.count("RISE (cheap) (another seed)") == 1
    assert names.count("random (another photo's)") == names.count("FGVis (another seed)") == 1
    assert "gradient (another seed)" not in names, "it draws nothing"
    assert all((output / address).is_file() for address in page.pictures)
    assert len(page.pictures) == 3
    evaluation = output / "wide" / "evaluation"
    with (evaluation / "evaluation.csv").open(newline="") as file:
        means = {(row["method"], row["metric"]): float(row["mean"]) for row in csv.DictReader(file)}
    (shown,) = [row for row in page.rows if row[0] == "gradient"]
    assert shown[1].split()[0] == f"{means['gradient', 'deletion']:.3f}"
    assert "16×20" in json.loads((evaluation / "evaluation.json").read_text())["preprocessing"]
    first = (output / "wide" / "evaluation" / "judgements.jsonl").read_text()

    for path in (output / "wide" / "maps" / "RISE_cheap").glob("explanations/*"):
        path.unlink()  # what is missing is made again, the rest is not
    kept = {path: path.stat().st_mtime_ns for path in output.glob("*/maps/*/explanations/*")}
    capfd.readouterr()
    benchmark(config)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    rows = Cells((output / "index.html").read_text(encoding="utf-8")).rows
    assert [row[:-1] for row in rows] == [row[:-1] for row in page.rows], "but for the seconds"
    again = (output / "wide" / "evaluation" / "judgements.jsonl").read_text()
    assert len(set(again.splitlines()) & set(first.splitlines())) == len(first.splitlines()) - 2 * 3


def test_options_of_networks_replace_those_of_model_one_by_one() -> None:
    model = {"network": {"class_path": "a", "init_args": {"x": 1}}, "classifier": {"size": 224, "order": "RGB"}}
    own = {"network": {"class_path": "b"}, "classifier": {"size": [8, 16]}}
    assert _merged(model, own) == {"network": {"class_path": "b"}, "classifier": {"size": [8, 16], "order": "RGB"}}
    assert model["classifier"] == {"size": 224, "order": "RGB"}


def test_mistakes_are_refused_before_anything_begins(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(changed: dict[str, object]) -> str:
        options = yaml.safe_load(config.read_text())
        config.write_text(yaml.safe_dump({**options, **changed}))
        with pytest.raises(SystemExit) as stopped:
            benchmark(config)
        assert stopped.value.code == 2
        assert not (config.parent / "out").exists()
        config.write_text(yaml.safe_dump(options))
        return capsys.readouterr().err

    assert "nonsense" in refused({"evaluate": {"nonsense": 1}})
    assert "nonsense" in refused({"networks": {"one": {"nonsense": 1}}})
    assert "nonsense" in refused({"methods": {"one": {"class_path": "nonsense.Method"}}})
    assert "differ as folder names" in refused({"networks": {"a b": {}, "a_b": {}}})


def test_the_configurations_are_read_and_name_the_same_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names = {}
    for path in sorted((ROOT / "configs").glob("benchmark*.yaml")):
        config = make_parser().parse_args(["--config", str(path)])
        for own in [*config.networks.values()] or [{}]:
            compare, _ = _plan(yaml.safe_load(make_parser().dump(config)), Path("out"), own)
            comparison.make_parser().parse_object(compare)
        names[path.stem] = list(config.methods)
    assert names["benchmark"] == names["benchmark_cheap"]
    assert (
        yaml.safe_load((ROOT / "configs" / "benchmark.yaml").read_text())["evaluate"]["reference"] in names["benchmark"]
    )
