"""What need not be imported is not: Lightning alone takes seconds."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from torch import nn

import fgvis_lightning
from fgvis_lightning.cli import COMMANDS, main, outlines
from fgvis_lightning.cli.commands import configurations_first
from fgvis_lightning.cli.outlines import outline, remembered
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.outline import check_names, options_of, outline_of, short_help
from fgvis_lightning.experiments.parsing import Parser

HEAVY = {
    *("torch", "torchvision", "pytorch_lightning", "lightning_fabric", "torchmetrics", "jsonargparse", "numpy", "PIL"),
    *("matplotlib", "captum", "timm", "tensorboard", "transformers", "skimage", "scipy", "safetensors", "yaml"),
}
ROOT = Path(__file__).parent.parent.parent
FIT = COMMANDS["fit"][0]


def run(*command: str, cache: Path) -> tuple[set[str], str]:
    """The heavy libraries that Python has loaded at the command's end, and all that it has printed."""
    tell = "import atexit, sys; atexit.register(lambda: print('loaded', *sys.modules, file=sys.stderr)); "
    if command[0] == "fgvis":
        start = "sys.argv[0] = 'fgvis'; from fgvis_lightning.cli import main; main()"
        program = [sys.executable, "-c", tell + start, *command[1:]]
    else:
        program = [sys.executable, "-c", tell + command[0]]
    done = subprocess.run(
        program, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": str(cache)}
    )
    text, _, loaded = done.stderr.rpartition("loaded ")
    return HEAVY & {name.split(".")[0] for name in loaded.split()}, done.stdout + text


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which every command's outline is."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for module, _ in COMMANDS.values():
            outline(module)
    return folder


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["fgvis", "--help"], "usage: fgvis COMMAND"),
        (["fgvis", "--version"], f"fgvis-lightning {fgvis_lightning.__version__}"),
        (["fgvis", "fti"], "Nearest: fit"),
        (["fgvis", "completion"], "Expected shell to be"),
        (["fgvis", "completion", "bash"], "--model.iterations"),
        (["fgvis", "completion", "zsh"], "--model.iterations"),
        (["fgvis", "fit", "--help"], "usage: fgvis fit --data.images"),
        (["fgvis", "report", "-h"], "usage: fgvis report FOLDER"),
        (["fgvis", "fit", "--modle.game", "deletion"], "got --modle.game. Nearest: --model.game"),
        (["import fgvis_lightning"], ""),
        (["from fgvis_lightning import InputError"], ""),
        (["import fgvis_lightning; print(dir(fgvis_lightning))"], "load_explanations"),
    ],
)
def test_these_load_no_library(command: list[str], told: str, cache: Path) -> None:
    loaded, text = run(*command, cache=cache)
    assert told in text
    assert loaded == set()


def test_a_train_script_answers_as_soon(cache: Path) -> None:
    loaded, text = run("import runpy; runpy.run_path('train.py', run_name='__main__')", cache=cache)
    assert "usage: python train.py COMMAND" in text, "the name that was called"
    assert loaded == set()


def test_names_load_what_they_need_beyond_lightning(cache: Path) -> None:
    lightning = "import sys, pytorch_lightning; print(*{name.partition('.')[0] for name in sys.modules}); "
    loaded, before = run(f"{lightning}from fgvis_lightning import FGVis, explain, DefendedCNN", cache=cache)
    assert "pytorch_lightning" in before.split()
    assert not (loaded - {*before.split()}) & {"matplotlib", "captum", "tensorboard", "skimage", "transformers"}


def test_every_public_name_is_there() -> None:
    assert sorted(fgvis_lightning._MODULES) == sorted(fgvis_lightning.__all__)
    names: dict[str, object] = {}
    exec("from fgvis_lightning import *", names)
    for name, module in fgvis_lightning._MODULES.items():
        home = importlib.import_module(f"fgvis_lightning.{module}")
        assert names[name] is getattr(fgvis_lightning, name) is getattr(home, name)
        assert name in dir(fgvis_lightning)
    with pytest.raises(AttributeError, match="module 'fgvis_lightning' has no attribute 'FGVsi'"):
        _ = fgvis_lightning.FGVsi
    with pytest.raises(ImportError, match="FGVsi"):
        exec("from fgvis_lightning import FGVsi")


def test_public_names_serve_as_class_path() -> None:
    parser = ArgumentParser()
    parser.add_argument("--module", type=pl.LightningModule)
    config = parser.parse_args(["--module", "fgvis_lightning.FGVis", "--module.network", "toy_networks.Tiny"])
    assert isinstance(parser.instantiate(config).module, fgvis_lightning.FGVis)
    assert pickle.loads(pickle.dumps(fgvis_lightning.FGVis)) is fgvis_lightning.FGVis
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    defended = fgvis_lightning.DefendedCNN(network.eval())
    again = pickle.loads(pickle.dumps(defended))
    assert torch.equal(next(again.parameters()), next(defended.parameters()))


# --- what is remembered ---


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_remembered_is_what_the_parser_says(command: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    module = COMMANDS[command][0]
    parser = importlib.import_module(module).make_parser()
    found = remembered(module)
    assert found == outline_of(parser)
    assert short_help(found, 80) == short_help(outline_of(parser), 80)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How often a parser has been made; with an empty cache folder, and installed packages that a test may change."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    installed = tmp_path / "site-packages"
    installed.mkdir()
    monkeypatch.syspath_prepend(installed)
    outlines._made_of.cache_clear()  # as in a new process
    count = []

    def make_parser() -> Parser:
        count.append(1)
        parser = Parser(prog="fgvis fit", description="Explain.")
        parser.add_argument("--size", type=int, default=3)
        return parser

    monkeypatch.setattr(importlib.import_module(FIT), "make_parser", make_parser)
    yield lambda: len(count)
    monkeypatch.undo()
    outlines._made_of.cache_clear()


def test_a_parser_is_made_once(made: Callable[[], int], tmp_path: Path) -> None:
    assert remembered(FIT) is None
    first = outline(FIT)
    assert outline(FIT) == first == remembered(FIT)
    assert options_of(first) == ["--help", "--help_all", "--size"]
    assert made() == 1
    assert [path.suffix for path in (tmp_path / "cache/fgvis-lightning").iterdir()] == [".json"]


def test_it_is_made_anew_when_something_is_installed(made: Callable[[], int], tmp_path: Path) -> None:
    outline(FIT)
    installed = tmp_path / "site-packages"
    (installed / "lightning-99.dist-info").mkdir()
    os.utime(installed, ns=(1, 1))  # whatever the clock's resolution is
    assert remembered(FIT) is not None, "this process has imported what there was before"
    outlines._made_of.cache_clear()
    assert remembered(FIT) is None
    outline(FIT)
    assert made() == 2


def test_it_is_made_anew_when_a_module_changes(made: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    outline(FIT)
    state = outlines._made_of()
    with monkeypatch.context() as patch:
        patch.setattr(outlines, "_made_of", lambda: [*state, "changed"])
        assert remembered(FIT) is None
        outline(FIT)
    assert made() == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"made of": 1}', "\xff"])
def test_a_damaged_file_is_made_anew(content: str, made: Callable[[], int], tmp_path: Path) -> None:
    first = outline(FIT)
    (file,) = (tmp_path / "cache/fgvis-lightning").iterdir()
    file.write_bytes(content.encode("latin-1"))
    assert outline(FIT) == first == remembered(FIT)
    assert made() == 2


def test_without_a_cache_folder_it_is_made_each_time(
    made: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert outline(FIT) == outline(FIT)
    assert made() == 2


def test_a_mistake_makes_the_next_one_quick(made: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(["fit", "--sise", "3"])
        lines.append(capsys.readouterr().err)
        assert made() == 1
    assert all("got --sise" in line for line in lines)
    assert "Nearest: --size" in lines[1]


ACCEPTED = [
    ["fit", "--data.images+", "x", "--data.images=x", "-c", "y", "--ckpt_path", "z", "--print_config"],
    ["fit", "--model.network", "x.Y", "--model.network.init_args.depth", "3", "--model.network.help"],
    ["fit", "--model.gate", "strict", "--model.reduce", "x", "--data.channels=[a]", "--model.exempt+", "b"],
    ["fit", "--output", "--my folder", "--print_config=comments", "--trainer.logger.save_dir", "x"],
    ["fit", "--output", "x", "--", "--anything"],
    ["compare", "--methods.x", "y", "--methods", "{}", "--print_shtab", "bash"],
    ["report", "folder", "--limit=3"],
]


@pytest.mark.parametrize("args", ACCEPTED)
def test_what_may_be_right_is_left_to_the_parser(args: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    command, *rest = args
    check_names(rest, outline(COMMANDS[command][0]))


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["fit", "--data.images", "x", "--oops", "1"], "got --oops. Nearest: --output"),
        (["fit", "--model.gaem=deletion"], "got --model.gaem. Nearest: --model.game"),
        (["fit", "--trainer.oops", "1"], "got --trainer.oops."),
        (["compare", "--data.imags", "x"], "got --data.imags. Nearest: --data.images"),
        (["report", "x", "--outptu", "y"], "got --outptu. Nearest: --output"),
    ],
)
def test_mistakes_are_told_in_the_parsers_words(
    args: list[str], told: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    command, *rest = args
    module = COMMANDS[command][0]
    with pytest.raises(InputError) as quick:
        check_names(rest, outline(module))
    assert told in str(quick.value)
    with pytest.raises(InputError) as slow:
        importlib.import_module(module).make_parser().parse_args(rest)
    assert str(slow.value).replace(", --print_shtab", "") == str(quick.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        (["--output", "o", "--config", "c.yaml"], ["--config", "c.yaml", "--output", "o"]),
        (["--a", "1", "--config=c", "-c", "d", "--b"], ["--config=c", "-c", "d", "--a", "1", "--b"]),
        (["--a", "--config"], ["--a", "--config"]),  # reported by the parser
    ],
)
def test_options_change_a_configuration_wherever_it_stands(given: list[str], expected: list[str]) -> None:
    assert configurations_first(given) == expected
