from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import shtab
import yaml

import fgvis_lightning
from fgvis_lightning.cli import COMMANDS, main
from fgvis_lightning.experiments.outline import options_of, outline_of
from fgvis_lightning.experiments.parsing import explained

SCREEN = 45, 80  # lines and columns


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(SCREEN[1]))
    text = printed(capsys, command, "--help")
    lines = text.splitlines()
    assert len(lines) <= SCREEN[0]
    assert max(map(len, lines)) <= SCREEN[1]
    assert text.startswith(f"usage: fgvis {command}")
    parser = importlib.import_module(COMMANDS[command][0]).make_parser()
    shown = set(re.findall(r"^  (--[\w.]+)", text, re.MULTILINE))
    assert shown
    assert shown <= set(options_of(outline_of(parser)))
    assert "SUPPRESS" not in text
    whole = printed(capsys, command, "--help_all")
    assert set(re.findall(r"--[\w.]+", whole)) > shown


@pytest.mark.parametrize(
    ("command", "needed"),
    [("fit", "--data.images …"), ("evaluate", "--results …"), ("sanity", "--images … --methods …")],
)
def test_help_says_what_a_command_needs(command: str, needed: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "--help"])
    assert "usage: fgvis completion SHELL" in capsys.readouterr().out
    assert f"usage: fgvis {command} {needed} [options]" in printed(capsys, command, "--help")


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    assert set(re.findall(r"^  (\w+)", text, re.MULTILINE)) == {*COMMANDS, "completion"}
    main([])
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_a_configuration_is_commented_and_runs_as_it_is(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = printed(capsys, command, "--data.images", "photo.png", "--model.network", "resnet18", "--print_config")
    above = text[: text.index("batch_size:")].splitlines()
    assert any("together" in line and line.strip().startswith("#") for line in above[-4:])
    config = yaml.safe_load(text)
    assert config["data"]["images"] == "photo.png"
    file = tmp_path / "config.yaml"
    file.write_text(text)
    again = printed(capsys, command, "--config", str(file), "--print_config")
    assert yaml.safe_load(again) == config


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["fit"], "Expected --data.images, but got nothing. --help shows"),
        (["fit", "--data.images", "x", "--modle.game", "deletion"], "got --modle.game. Nearest: --model.game"),
        (["compare", "--data.imags", "x"], "got --data.imags. Nearest: --data.images"),
        (["evaluate", "--result", "x"], "got --result. Nearest: --results"),
        (["fit", "--data.images", "x", "photo.png"], "options that begin with --, but got 'photo.png'"),
        (["fit", "--data.images", "x", __file__], "glob or list in quotes, such as 'photos/*.jpg'"),  # by the shell
        (
            ["fit", "--data.images", "x", "--model.iterations", "many"],
            "--model.iterations: Expected a whole number, but",
        ),
        (
            ["fit", "--data.images", "x", "--model.game", "delete"],
            "--model.game: Expected one of preservation, deletion",
        ),
        (["fit", "--data.images", "x", "--output", "~/results"], "only shells replace ~"),  # as in a configuration
        (["sanity", "--images", "x"], "Expected --methods, but got nothing"),
        (["fti"], "Expected a command, fit, predict, report, compare"),
        (["explain", "--output", "x", __file__], f"To explain a photo: fgvis fit --data.images {__file__}"),
        (["completion", "bsh"], "Nearest: bash"),
        (["completion"], "Expected shell to be"),
    ],
)
def test_a_mistake_is_told_in_one_line(args: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = complaint(capsys, *args)
    assert told in error
    assert error.startswith("fgvis: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{class_path: toy_networks.Tiny, init_args: {clases: 5}}", "arguments that the class has, but got clases"),
        ("{class_path: toy_networks.Nope, init_args: {classes: 5}}", "toy_networks.Nope: module 'toy_networks' has no"),
    ],
)
def test_a_class_that_cannot_be_made_is_named(
    given: str, told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And not the end of its arguments."""
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {{network: {given}}}")
    error = complaint(capsys, "predict", "--config", str(config), "--data.images", "x")
    assert error.startswith("fgvis: --model.network: Expected ")
    assert told in error
    assert "}" not in error
    method = given.replace("toy_networks.Tiny", "methods.Center").replace("toy_networks.Nope", "methods.Nope")
    config.write_text(f"methods: {{mine: {method}}}")
    error = complaint(capsys, "compare", "--config", str(config), "--data.images", "x")
    assert error.startswith("fgvis: --methods: Expected ")
    assert told.replace("toy_networks", "methods") in error


def test_own_classes_are_found_from_a_configuration_elsewhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser reads a configuration, such as that of a results folder, from its own folder."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_project.py").write_text("from torch import nn\n\n\nclass Net(nn.Linear):\n    pass\n")
    config = tmp_path / "results" / "config.yaml"
    config.parent.mkdir()
    arguments = {"in_features": 3, "out_features": 2}
    network = {"class_path": "own_project.Net", "init_args": arguments}
    config.write_text(yaml.safe_dump({"model": {"network": network}}))
    text = printed(capsys, "predict", "--config", "results/config.yaml", "--data.images", "x", "--print_config")
    assert yaml.safe_load(text)["model"]["network"]["init_args"].items() >= arguments.items()


def test_another_complaint_stays_as_it_is() -> None:
    assert explained("something\n  else", []) == "something else"


def test_version_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fgvis_lightning", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"fgvis-lightning {fgvis_lightning.__version__}\n"


@pytest.mark.parametrize("shell", shtab.SUPPORTED_SHELLS)
def test_completion_knows_every_command_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", shell])
    text = capsys.readouterr().out
    for command, (module, _) in COMMANDS.items():
        assert command in text
        for option in options_of(outline_of(importlib.import_module(module).make_parser())):
            assert option.removeprefix("--") in text


def test_bash_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["completion", "bash"])
    script = tmp_path / "fgvis.bash"
    script.write_text(capsys.readouterr().out)

    def complete(*words: str) -> set[str]:
        ask = f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_fgvis; "
        done = subprocess.run(
            ["bash", "-c", ask + 'echo "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True
        )
        return set(done.stdout.split())

    assert complete("fgvis", "co") == {"compare", "completion"}
    assert complete("fgvis", "fit", "--model.it") == {"--model.iterations"}
    assert complete("fgvis", "fit", "--model.game", "d") == {"deletion"}


def test_an_option_of_another_command_in_a_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: {images: photos}")
    error = complaint(capsys, "sanity", "--config", str(config))
    assert "Expected an option of this command, but got --data.images. Nearest: --images" in error
