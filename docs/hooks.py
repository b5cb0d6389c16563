"""Generated parts of the documentation: formulas, and the pages of commands and configurations.

Formulas become MathML, which browsers render natively. A command's options come from its own parser, so every command
in `fgvis_lightning.cli.commands.COMMANDS` gets a page.
"""

from __future__ import annotations

import argparse
import ast
import html
import re
from pathlib import Path
from textwrap import dedent, indent
from typing import Any, get_args

import yaml
from latex2mathml.converter import convert
from mkdocs.structure.files import File
from parsers import options_of  # beside this file

from fgvis_lightning.cli import COMMANDS

ROOT = Path(__file__).parent.parent
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
LIGHTNING = ("trainer", "optimizer", "lr_scheduler")
"""Groups of Lightning's own options."""
SOURCE = re.compile(r"\[`([\w.]+)`\]\((?:\.\./)+(fgvis_lightning/[\w/]+)\.py\)")
HELP = re.compile(r"`python train\.py (?:(\w+) )?--help`")
ELSEWHERE = re.compile(r"^\*Outside of the site, .*?\*\n\n", re.MULTILINE | re.DOTALL)
"""What only readers of the sources need to know."""
EXAMPLES = {
    "fit": "--config configs/quickstart.yaml",
    "predict": "--data.images photo.jpg",
    "report": "results/quickstart",
    "compare": "--config configs/comparison.yaml",
    "evaluate": "--results results/comparison",
    "benchmark": "--config configs/benchmark_cheap.yaml",
    "pointing": "--results results/mine --truth boxes.csv",
    "bias": "--config configs/color_bias.yaml",
    "adversarial": "--config configs/adversarial.yaml",
    "sanity": "--config configs/sanity.yaml",
}
"""The arguments of each command's example."""


def on_config(config: Any) -> Any:
    """Add a page for each command to the navigation."""
    for entry in config.nav:
        if "Commands" in entry:
            entry["Commands"] = ["commands/index.md", *(f"commands/{name}.md" for name in COMMANDS)]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    pages = {
        "contributing.md": root_page("CONTRIBUTING.md"),
        "changelog.md": root_page("CHANGELOG.md"),
        "commands/index.md": overview(),
        **{f"commands/{name}.md": page(name) for name in COMMANDS},
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def root_page(name: str) -> str:
    """A page from the root of the repository."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """Link to the generated pages, omit what is for readers of the sources, and rank answers first in the search.

    In the sources, links lead to what GitHub shows: a name to its module, a page of the root to its file.
    """
    kind = page.file.src_uri.split("/")[0]
    boost = {"how-to": 2, "faq.md": 2, "method.md": 2, "reference": 0.2}.get(kind)
    if boost is not None:
        page.meta.setdefault("search", {"boost": boost})
    if page.is_homepage:
        page.meta["hide"] = ["toc"]
    up = "../" * page.file.src_uri.count("/")
    text = SOURCE.sub(reference, ELSEWHERE.sub("", text))
    text = HELP.sub(lambda found: f"[{found[0]}]({up}commands/{found[1] or 'index'}.md)", text)
    return re.sub(rf"\]\({re.escape(up)}\.\./([A-Z]+\.md)", lambda found: f"]({up}{found[1].lower()}", text)


def reference(found: re.Match[str]) -> str:
    """The link from a name to its place in the reference: ``[`games.zero`](../fgvis_lightning/method/games.py)``."""
    module = found[2].replace("/", ".")
    name = found[1].removeprefix(f"{module.rpartition('.')[2]}.")
    return f"[`{found[1]}`][{module}.{name}]"


def on_page_content(text: str, **_: Any) -> str:
    """Convert Arithmatex's TeX to MathML, and link pictures to themselves."""
    text = FORMULA.sub(lambda found: mathml(found[3], block=found[2] == "["), text)
    text = re.sub(r'(<p>)(<img [^>]*src="([^"]+)"[^>]*>)(?=</p>)', r'\1<a href="\3">\2</a>', text)
    return text.replace("::</p>", ":</p>")  # docstrings mark code as reStructuredText does


def mathml(tex: str, block: bool) -> str:
    """A formula as MathML."""
    made: str = convert(html.unescape(tex), display="block" if block else "inline")
    return f'<div class="formula">{made}</div>' if block else made


# --- commands ---


def docstring(module: str) -> str:
    """A module's docstring, without running the module."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def overview() -> str:
    """The page that lists the commands."""
    rows = "\n".join(f"| [`{name}`]({name}.md) | {text} |" for name, (_, text) in COMMANDS.items())
    return f"""# Commands

Run `python train.py COMMAND …`. Options can be given on the command line, in a YAML file (`--config FILE`), or both;
later values override earlier ones. `--print_config` prints the resulting configuration, and every run writes it to
`config.yaml` in its results folder.

| command | purpose |
|---|---|
{rows}

Nested options have dots on the command line and indentation in YAML: `--model.game preservation` is

```yaml
model:
  game: preservation
```

The [exit code](../how-to/sweeps.md#exit-codes) tells how a command ended.
"""


def page(command: str) -> str:
    """The page of one command: its purpose, an example, its files, its options."""
    if command == "fit":
        text = "Explain images: a sweep over items, each with its own mask. "
        text += "[Getting started](../getting-started.md#files-in-the-results-folder) lists the files it writes."
    else:
        text = docstring(COMMANDS[command][0]) + "\n"
        text = re.sub(r"^``python train\.py \w+[^`]*``: (.)", lambda found: found[1].upper(), text)
        text = re.sub(r"::\n\n((?: {4}.*\n?)+)", lambda found: f".\n\nIt writes\n\n{table(dedent(found[1]))}", text)
    purpose, _, more = text.partition("\n\n")
    lines = [f"# {command}", "", purpose, "", "## Example", ""]
    lines += ["```console", f"$ python train.py {command} {EXAMPLES[command]}", "```", ""]
    configs = sorted(
        path
        for path in (ROOT / "configs").glob("*.yaml")
        if f"train.py {command} --config" in path.read_text(encoding="utf-8")
    )
    own = [path for path in configs if f"configs/{path.name}" in EXAMPLES[command]]
    for path in own:
        lines += shown(path, unfolded=True)
    if more:
        lines += ["## What it does", "", more.strip(), ""]
    if others := [path for path in configs if path not in own]:
        lines += ["## More configurations", "", "Each of these files can be run as is, too.", ""]
        for path in others:
            lines += shown(path)
    lines += ["## Options", ""]
    foreign: list[str] = []
    for name, (title, options) in groups(options_of(command)).items():
        described = [line for option in options for line in describe(option)]
        if command == "fit" and name in LIGHTNING:
            foreign += [f"**{title}**", "", *described]
        else:
            lines += [f"### {name or 'General'}", "", f"{title}." if name else "", "", *described]
    if foreign:
        lines += ["### trainer", "", "Lightning's own options: devices, duration, loggers, callbacks, precision.", ""]
        lines += ['??? note "All options of the trainer"', "", indent("\n".join(foreign), "    ")]
    return "\n".join(lines) + "\n"


def shown(config: Path, unfolded: bool = False) -> list[str]:
    """A configuration as a block that can be folded; a long one is always folded at first."""
    text = config.read_text(encoding="utf-8")
    mark = "???+" if unfolded and text.count("\n") < 40 else "???"
    return [f'{mark} example "configs/{config.name}"', "", indent(f"```yaml\n{text}```", "    "), ""]


def table(listing: str) -> str:
    """A two-column listing of files and their content as a Markdown table."""
    rows: list[list[str]] = []
    for line in listing.splitlines():
        file, _, text = line.partition("  ")
        if file:
            rows.append([file, text.strip()])
        else:
            rows[-1][1] += f" {text.strip()}"
    return "\n".join(["| file | content |", "|---|---|", *(f"| `{file}` | {text} |" for file, text in rows)]) + "\n"


def groups(parser: Any) -> dict[str, tuple[str, list[Any]]]:
    """Group name → title and options, in the parser's order; the name is the part of the options before the dot."""
    found: dict[str, tuple[str, list[Any]]] = {}
    for group in parser._action_groups:
        title = (group.title or "").replace("``", "`").rstrip(".:")
        for action in filter(is_shown, group._group_actions):
            # Lightning's fit() has its own arguments.
            name = LIGHTNING[0] if title.startswith("Runs the full") else prefix(action)
            known, options = found.setdefault(name, (title, []))
            # An option that a command adds to a class's options has no title.
            found[name] = (title if known.endswith(("options", "arguments")) else known), [*options, action]
    return found


def prefix(action: Any) -> str:
    """``model`` for ``--model.lam``; empty for ``--output``."""
    return action.dest.rpartition(".")[0].split(".")[0]


def is_shown(action: Any) -> bool:
    """Whether users set this option; the path of a file with a group's options, for example, is hidden."""
    kind = type(action).__name__
    hidden = ("_ActionConfigLoad", "_ActionHelpClassPath", "ActionLink", "_ActionSubCommands")
    return kind not in hidden and action.help != argparse.SUPPRESS


def describe(action: Any) -> list[str]:
    """One option as an entry of a definition list, with its own link."""
    spellings = [option for option in action.option_strings if not option.endswith("+")]
    name = max(spellings, key=len) if spellings else action.metavar or action.dest.upper()
    kind = getattr(action, "_typehint", None)
    facts = [f"`{spelled(kind)}`"] if kind is not None else []
    if action.required and "required" not in facts and action.default is None:
        facts.append("required")
    elif action.default not in (None, argparse.SUPPRESS):
        facts.append(f"default `{yaml.safe_dump(plain(action.default), default_flow_style=True).splitlines()[0]}`")
    about = f'<span class="type">{", ".join(facts)}</span>' if facts else ""
    text = escaped(" ".join((action.help or "").split())) or "…"
    return [f"[`{name}`](#{name}){{ #{name} }} {about}".rstrip(), f":   {text}", ""]


def plain(value: Any) -> Any:
    """A default as plain YAML data."""
    return value.as_dict() if hasattr(value, "as_dict") else value


def spelled(kind: Any) -> str:
    """A type in source notation: ``float | 'auto'``."""
    text = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    text = re.sub(r"\b(?:typing|collections\.abc|pathlib|[\w.]+)\.(?=\w)", "", text)
    text = re.sub(r"Optional\[((?:[^\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])*)\]", r"\1 | None", text)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda found: " | ".join(found[1].split(", ")), text)
    while (changed := re.sub(r"Union\[((?:[^\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])*)\]", union, text)) != text:
        text = changed
    return text.replace("NoneType", "None")


def union(found: re.Match[str]) -> str:
    """``A | B`` of ``Union[A, B]``."""
    return " | ".join(re.split(r", (?![^\[]*\])", found[1]))


def escaped(text: str) -> str:
    """Escape ``<`` outside code, so that it does not begin a tag."""
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(part if part.startswith("`") else html.escape(part, quote=False) for part in parts)
