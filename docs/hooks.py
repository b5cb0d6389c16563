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
    """Redirect links out of the folder to the generated pages, and rank answers before listings in the search."""
    kind = page.file.src_uri.split("/")[0]
    boost = {"how-to": 2, "faq.md": 2, "method.md": 2, "reference": 0.2}.get(kind)
    if boost is not None:
        page.meta.setdefault("search", {"boost": boost})
    up = "../" * page.file.src_uri.count("/")
    return re.sub(rf"\]\({re.escape(up)}\.\./([A-Z]+\.md)", lambda found: f"]({up}{found[1].lower()}", text)


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

Run `python train.py COMMAND …` in a clone, or `fgvis COMMAND …` if the package is installed. Options can be given on
the command line, in a YAML file (`--config FILE`), or both; later values override earlier ones. `--print_config` prints
the resulting configuration, and every run writes it to `config.yaml` in its results folder.

| command | purpose |
|---|---|
{rows}

Nested options have dots on the command line and indentation in YAML: `--model.game preservation` is

```yaml
model:
  game: preservation
```

## Exit codes

| exit code | cause |
|---|---|
| 0 | everything is done |
| 1 | a process crashed, or the disk is full or read-only |
| 2 | a user's mistake, or images that could not be read; the message explains it |
| 75 | SIGTERM, such as a scheduler's preemption (EX_TEMPFAIL): run the same command again |
| 130 | Ctrl-C: run the same command again |
| 141 | standard output was closed, for example by `head`: run the same command again |
"""


def page(command: str) -> str:
    """The page of one command: its purpose, its files, its options."""
    if command == "fit":
        text = "Explain images: a sweep over items, each with its own mask.\n\n"
        text += "[Getting started](../getting-started.md#files-in-the-results-folder) lists the files it writes."
    else:
        text = docstring(COMMANDS[command][0]) + "\n"
        text = re.sub(r"^``python train\.py \w+[^`]*``: (.)", lambda found: found[1].upper(), text)
        text = re.sub(r"::\n\n((?: {4}.*\n?)+)", lambda found: f".\n\nIt writes\n\n{table(dedent(found[1]))}", text)
    lines = [f"# {command}", "", text, ""]
    examples = sorted(
        path.name
        for path in (ROOT / "configs").glob("*.yaml")
        if f"train.py {command} --config" in path.read_text(encoding="utf-8")
    )
    if examples:
        lines += ["## Configurations", "", "Each file of `configs/` can be run as is.", ""]
        for name in examples:
            shown = (ROOT / "configs" / name).read_text(encoding="utf-8")
            lines += [f'??? example "configs/{name}"', "", indent(f"```yaml\n{shown}```", "    "), ""]
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
