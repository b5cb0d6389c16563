"""The examples of the documentation: Python runs, configurations and command lines are read by the program's parsers.

A comment before a block says what is special: ``<!-- slow -->`` (it takes a real network), ``<!-- not run: why -->``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image

import fgvis_lightning
from fgvis_lightning.cli import COMMANDS, main
from fgvis_lightning.experiments.renamed import SHORT

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(
    r"^(?P<note>(?: *<!--[^\n]*-->\n)*)(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = {"python", "yaml", "console", "bash", "text", "csv", ""}
TINY = [
    "--model.network",
    "my_project.networks.Tiny",
    "--model.classifier.size",
    "[32, 32]",
    "--model.classifier.classes",
    "classes.txt",
]

NETWORKS = """
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn


class Detector(nn.Module):
    channels = 3

    def __init__(self, width=64, classes=3):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(self.channels, width, 5, stride=4), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 8, 3), nn.ReLU(),
        )
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class Tiny(Detector):
    def __init__(self):
        super().__init__(4, 40)


class GrayDetector(Detector):
    channels = 1


class SixBands(Detector):
    channels = 6


class OneOutput(Detector):
    def __init__(self):
        super().__init__(classes=1)


class Heartbeats(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv1d(12, 8, 9), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)
        )


class WithAge(Detector):
    def forward(self, x, age):
        return super().forward(x) + age / 100


class TwoHeads(Detector):
    def forward(self, x):
        logits = super().forward(x)
        return logits.mean(1), logits


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class ByHand(Detector):
    def __init__(self):
        super().__init__()
        self.features[2] = Swish()


class LitWidth(pl.LightningModule):
    def __init__(self, width):
        super().__init__()
        self.save_hyperparameters()
        self.network = Detector(width)

    def forward(self, x):
        return self.network(x)


class LitDetector(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = Detector()
"""


class Block(NamedTuple):
    """An example: where it is, what it is written in, and the comments before it."""

    where: str
    language: str
    code: str
    note: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start("code"))
        code = "".join(row.removeprefix(fence["indent"]) for row in fence["code"].splitlines(keepends=True))
        found.append(Block(f"{page.relative_to(ROOT)}:{line}", fence["language"], code, fence["note"]))
    return found


ALL = [block for page in PAGES for block in blocks(page)]
WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


def command_lines(block: Block) -> Iterator[list[str]]:
    """What a reader would type, as words."""
    text = block.code.replace("\\\n", " ")
    for line in text.splitlines():
        if block.language == "console" and not line.startswith("$ "):
            continue  # what is printed
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words:
            yield words


def arguments(words: list[str]) -> list[str] | None:
    """Command and arguments, where the program is called."""
    return words[2:] if words[:2] == ["python", "train.py"] else None


COMMAND_LINES = [
    pytest.param(words, block, id=f"{block.where}-{number}")
    for block in ALL
    if block.language in ("console", "bash") and "not run" not in block.note
    for number, words in enumerate(command_lines(block))
]


@pytest.fixture(scope="module")
def parsers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parsers", ROOT / "docs" / "parsers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples find where they run: photos, the configurations, a project with networks."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "configs").symlink_to(ROOT / "configs")
    rows = ["path,target"]
    for number in range(4):
        label = ("school bus", "minivan")[number % 2]
        blocks_of_color = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        path = folder / "photos" / label / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blocks_of_color.repeat(8, 0).repeat(8, 1)).save(path)
        rows.append(f"{path},{label}")
    (folder / "photos.csv").write_text("\n".join(rows))
    boxes = [f"{row},30,20,90,80" for row in rows[1:]]
    (folder / "boxes.csv").write_text("\n".join(["image,target,x0,y0,x1,y1", *boxes]))
    (folder / "classes.txt").write_text("\n".join(["school bus", "minivan", *(f"class {n}" for n in range(38))]))
    project = folder / "my_project"
    project.mkdir()
    (project / "__init__.py").touch()
    (project / "networks.py").write_text(NETWORKS)
    (folder / "xrays").mkdir()
    gray = np.random.default_rng(0).integers(0, 4096, (96, 96), dtype=np.uint16)
    Image.fromarray(gray).save(folder / "xrays" / "chest.png")
    (folder / "fields").mkdir()
    np.save(folder / "fields" / "wheat.npy", np.random.default_rng(0).random((6, 96, 96), dtype=np.float32))
    examples = [block.code for block in blocks(ROOT / "CONTRIBUTING.md") if block.language == "python"]
    (project / "methods.py").write_text(examples[0])
    (project / "bias.py").write_text(examples[-1])
    return folder


@pytest.fixture
def there(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world, as the current folder, its project ready for import."""
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(world)
    if not (world / "detector.pth").exists():
        networks: Any = importlib.import_module("my_project.networks")
        module = networks.LitDetector()
        torch.save(module.network.state_dict(), "detector.pth")
        torch.save(
            {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.5.0", "epoch": 9, "global_step": 1},
            "epoch=9.ckpt",
        )
        whole = pl.Trainer(accelerator="cpu", logger=False, max_epochs=0)
        whole.strategy.connect(networks.LitWidth(4))
        whole.save_checkpoint("width.ckpt")
        quick = ["--model.iterations", "2", "--trainer.accelerator", "cpu"]
        main(["fit", "--output", "results/mine", "--data.images", "photos", *TINY, *quick])
    return world


def test_there_are_examples() -> None:
    assert len(WITH_PYTHON) > 5
    assert len(COMMAND_LINES) > 20
    assert {block.language for block in ALL} <= LANGUAGES
    # A fence that is not understood would be passed over.
    for page in PAGES:
        assert len(re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)) == 2 * len(blocks(page))


PYTHON = [
    pytest.param(page, slow, id=f"{page.relative_to(ROOT)}{'-slow' * slow}", marks=[pytest.mark.slow] * slow)
    for page in WITH_PYTHON
    for slow in (False, True)
    if any(not slow or "slow" in block.note for block in blocks(page))
]


@pytest.mark.parametrize(("page", "slow"), PYTHON)
def test_python_runs(page: Path, slow: bool, there: Path) -> None:
    """The blocks of a page one after the other, in one namespace, as in a notebook."""
    chosen = [block for block in blocks(page) if block.language == "python"]
    namespace: dict[str, Any] = {"__name__": "example"}
    torch.manual_seed(0)
    for block in chosen:
        if slow or "slow" not in block.note:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.code, block.where, "exec"), namespace)


@pytest.mark.parametrize("block", [pytest.param(b, id=b.where) for b in ALL if b.language == "yaml"])
def test_configurations_are_read(block: Block, parsers: ModuleType, there: Path) -> None:
    config = yaml.safe_load(block.code)
    file = there / "example.yaml"
    file.write_text(block.code)
    named = re.match(r"# python train\.py (\w+)", block.code)
    command = named[1] if named else "fit"
    more = [] if "data" in config else ["--data.images", "photos/"]
    read = parsers.parse([command, "--config", str(file), *more])
    assert _holds(read.as_dict(), config)


KINDS = [b for b in ALL if b.language == "yaml" and b.where.startswith("docs/kinds/")]


@pytest.mark.parametrize("block", [pytest.param(b, id=b.where) for b in KINDS])
def test_every_kind_of_network_is_explained(block: Block, there: Path, tmp_path: Path) -> None:
    if "hf:" in block.code and not (there / "models").exists():
        transformers = pytest.importorskip("transformers")
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
        transformers.ResNetForImageClassification(config).save_pretrained(there / "models" / "flowers")
        transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(there / "models" / "flowers")
    (there / "example.yaml").write_text(block.code)
    quick = ["--model.iterations", "2", "--model.seeds", "1", "--trainer.accelerator", "cpu"]
    main(["fit", "--config", "example.yaml", *quick, "--output", str(tmp_path)])
    assert list((tmp_path / "explanations").iterdir())


def _holds(whole: Any, part: Any) -> bool:
    """Whether what was written is what was read."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and _holds(whole[key], value) for key, value in part.items())
    return isinstance(part, dict | list) or str(whole) == str(part) or whole == part or not isinstance(whole, str | int)


@pytest.mark.parametrize(("words", "block"), COMMAND_LINES)
def test_command_lines_are_read(words: list[str], block: Block, parsers: ModuleType, there: Path) -> None:
    """Each is one of the program, with options that exist."""
    given = arguments(words)
    assert given is not None, f"{block.where}: not a command of this program; say why it is not run"
    parsers.parse(given)


RUN = [case for case in COMMAND_LINES if case.values[0][:3] == ["python", "train.py", "fit"]]  # type: ignore[index]
RUN = [case for case in RUN if not re.search(r"/data/|devices|literature", " ".join(case.values[0]))]  # type: ignore[arg-type]


@pytest.mark.parametrize(("words", "block"), RUN)
def test_command_lines_run(words: list[str], block: Block, there: Path, tmp_path: Path) -> None:
    """With a tiny network and two iterations in place of what is written."""
    quick = ["--model.iterations", "2", "--trainer.accelerator", "cpu", "--output", str(tmp_path), *TINY]
    given = arguments(words)
    assert given is not None
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        main([*given, *quick])
    assert list((tmp_path / "explanations").iterdir())


POINTING = [case for case in COMMAND_LINES if case.values[0][:3] == ["python", "train.py", "pointing"]]  # type: ignore[index]


@pytest.mark.parametrize(("words", "block"), POINTING)
def test_pointing_runs(words: list[str], block: Block, there: Path, tmp_path: Path) -> None:
    """On what the line before it makes, with a tiny network."""
    lines = [line for line in command_lines(block) if line[2] == "fit"]
    quick = ["--model.iterations", "2", "--trainer.accelerator", "cpu"]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        for line in lines:
            main([*line[2:], *quick, *TINY])
        main([*words[2:], *TINY, "--output", str(tmp_path)])
    assert "| 4 | 4 |" in (tmp_path / "pointing.md").read_text()


def test_the_citation_is_of_this_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["title"] == fgvis_lightning.__name__
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]][0::5] == ["Wagner", "Behnke"]


def test_pages_name_options_that_exist(parsers: ModuleType) -> None:
    """``--model.lam`` in a sentence is as easily outdated as in an example."""
    known = set(SHORT)
    for command in COMMANDS:
        known |= set(parsers.options_of(command)._option_string_actions)
    foreign = {
        "--check",
        "--figure",
        "--help",
        "--logdir",
        "--strict",
        "--signal",
        "--ntasks-per-node",
        "--nproc_per_node",
        "--print_config",
    }
    for benchmark in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r'add_argument\("(--\w+)"', benchmark.read_text(encoding="utf-8")))
    for page in PAGES:
        for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", re.sub(FENCE, "", page.read_text(encoding="utf-8"))):
            assert option in known | foreign, f"{page.relative_to(ROOT)}: there is no option {option}"


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that makes the commands' pages."""
    pytest.importorskip("mkdocs", reason="comes with the extra docs")
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("hooks")


def test_every_option_is_on_its_commands_page(parsers: ModuleType, hooks: Any) -> None:
    for command in COMMANDS:
        page = hooks.page(command)
        given = parsers.options_of(command)._option_string_actions
        # Those that follow from others (--output) are not for users.
        named = [option for option, action in given.items() if type(action).__name__ != "ActionLink"]
        own = {"--help", "--help_all", "--print_config", "--print_shtab", "-h", "-c"}
        shown = [option for option in named if option not in own and not option.endswith(("+", ".help"))]
        shown = [option for option in shown if type(given[option]).__name__ != "_ActionConfigLoad"]  # a group's file
        assert shown
        assert not [option for option in shown if f"`{option}`" not in page]


@pytest.mark.usefixtures("there")
def test_every_commands_page_begins_with_an_example(parsers: ModuleType, hooks: Any) -> None:
    for command in COMMANDS:
        shown = hooks.page(command)
        (line,) = re.findall(r"^\$ python train\.py (.*)$", shown.partition("## Options")[0], re.MULTILINE)
        words = shlex.split(line)
        assert words[0] == command
        parsers.parse(words)


def test_links_lead_somewhere_on_github_and_on_the_site() -> None:
    """Both name a heading's anchor, by different rules."""
    for page in [*PAGES, ROOT / "README.md", ROOT / "CHANGELOG.md"]:
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(FENCE, "", page.read_text(encoding="utf-8"))):
            if link.startswith("https:"):
                continue
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), f"{page.relative_to(ROOT)}: there is no {link}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", re.sub(FENCE, "", target.read_text(encoding="utf-8")), re.MULTILINE)
                assert anchor in set(map(on_github, headings)), f"{page.relative_to(ROOT)}: GitHub has no {link}"
                assert anchor in set(map(on_the_site, headings)), f"{page.relative_to(ROOT)}: the site has no {link}"


def on_github(heading: str) -> str:
    """The anchor of a heading there: every letter is kept, and every space becomes a hyphen."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def on_the_site(heading: str) -> str:
    """The anchor of a heading there: ASCII only, and spaces are joined."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def test_pictures_are_small() -> None:
    for picture in (ROOT / "docs").glob("gallery*.jpg"):
        assert picture.stat().st_size < 300_000, picture.name
        with Image.open(picture) as image:
            assert image.width <= 2000


def test_pages_of_the_site_do_not_name_what_is_not_there() -> None:
    for page in PAGES:
        for config in re.findall(r"configs/[\w.]+\.(?:yaml|csv)", page.read_text(encoding="utf-8")):
            assert (ROOT / config).exists(), f"{page.relative_to(ROOT)}: there is no {config}"
