"""Former names of options."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from command_line import CPU, fit

from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.renamed import with_new_names


@pytest.mark.parametrize("form", ["{} {}", "{}={}"])
def test_options_are_replaced_and_pointed_out(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = form.format("--model.size", "[16,16]").split(" ")
    expected = form.format("--model.classifier.size", "[16,16]").split(" ")
    assert with_new_names(["fit", *given, "--model.seeds", "1"]) == ["fit", *expected, "--model.seeds", "1"]
    assert capsys.readouterr().err == (
        "fgvis: --model.size is now --model.classifier.size. The former name works until version 0.2.\n"
    )


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ("--model.reduce", "reduce"),
        ("--model.reduce.region", "reduce.region"),
        ("--model.inputs", "inputs"),
        ("--data.channels", "channels"),
    ],
)
def test_short_names_need_no_group(given: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = f"--model.classifier.{option}"
    assert with_new_names([given, "x", f"{given}=y"]) == [expected, "x", f"{expected}=y"]
    assert capsys.readouterr().err == ""


def test_short_names_work_in_files(folder: Path, output: Path, tmp_path: Path) -> None:
    config = tmp_path / "short.yaml"
    config.write_text("data: {channels: rgb}\nmodel:\n")
    assert "classifier:\n    channels: rgb" in with_new_names(["--config", str(config)])[1]
    config.write_text("data: {channels: rgb}\nmodel: {inputs: {}}\n")
    fit(output, folder, "--config", str(config), *CPU)
    model = yaml.safe_load((output / "config.yaml").read_text())["model"]
    assert (model["classifier"]["channels"], model["classifier"]["inputs"]) == ("rgb", {})


@pytest.mark.parametrize(
    "option", ["--model.classifier.size", "--model.gates", "--model.network.gate", "--data.classes"]
)
def test_other_options_are_left_alone(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert with_new_names([option, "1"]) == [option, "1"]
    assert capsys.readouterr().err == ""


def test_files_with_former_names_work(
    folder: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "old.yaml"
    config.write_text("model:\n  size: [16, 16]\n  gate: restoring\n  defense: {fold: false}\n")
    fit(output, folder, "--config", str(config), *CPU)
    model = yaml.safe_load((output / "config.yaml").read_text())["model"]
    assert (model["classifier"]["size"], model["defense"]["gate"]) == ([16, 16], "restoring")
    assert model["defense"]["fold"] is False
    assert f"model.gate in {config} is now model.defense.gate" in capsys.readouterr().err


def test_what_is_no_configuration_is_left_to_the_parser(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("model: [")
    (tmp_path / "file.yaml").write_text("model: other.yaml\ndata: {channels: rgb}")
    for path in (tmp_path / "broken.yaml", tmp_path / "file.yaml", tmp_path / "missing.yaml"):
        assert with_new_names(["--config", str(path)]) == ["--config", str(path)]


@pytest.mark.parametrize("group", ["model: 5", "data: [x]", "trainer: 5", "writer: 3"])
def test_groups_without_options_are_refused(group: str, tmp_path: Path) -> None:
    config = tmp_path / "number.yaml"
    config.write_text(group)
    with pytest.raises(InputError, match=f"Expected options below {group.partition(':')[0]} in {config}, .* but got"):
        with_new_names([f"--config={config}"])
