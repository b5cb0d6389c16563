"""Files that commands write into their folders: the configuration, tables, figures."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text

from fgvis_lightning.errors import InputError
from fgvis_lightning.names import printable
from fgvis_lightning.results.layout import FONT
from fgvis_lightning.results.tables import Table
from fgvis_lightning.results.tensor_files import EXPLANATIONS, write_whole

CONFIG = "config.yaml"


def check_owner(output: Path, command: str) -> None:
    """Raise `InputError` for the folder of another command, whose ``config.yaml`` and tables this one would replace.

    The folder need not exist. The command, e.g. ``fgvis compare``, is in the first line of a ``config.yaml``.
    """
    line = ""
    with suppress(OSError, ValueError), (output / CONFIG).open(encoding="utf-8", errors="replace") as file:
        line = file.readline().strip()
    owner = line.removeprefix("# ") if line.startswith("# fgvis ") else None
    if owner is None and (output / EXPLANATIONS).is_dir():
        owner = "fgvis fit"
    if owner not in (None, command):
        raise InputError(
            f"Expected --output to be a folder of {command}, but {printable(str(output))} holds results of {owner}. "
            f"Choose another one, also inside it."
        )


def write_config(output: Path, command: str, text: str) -> None:
    """Write a command's configuration, which also marks the folder as its own; only in the first process.

    Raises:
        InputError: see `check_owner`, which long commands call before they begin.
    """
    check_owner(output, command)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / CONFIG, f"# {command}\n{text}".encode(), "rank0")


def save_table(path: Path, table: Table, markdown: str | None = None) -> None:
    """Save a table as CSV and as Markdown, which may be another table's; ``path`` has no suffix."""
    write_whole(path.with_name(f"{path.name}.csv"), table.csv().encode())
    write_whole(path.with_name(f"{path.name}.md"), (markdown or table.markdown()).encode())


def save_figure(path: Path, figure: Figure) -> None:
    """Save a figure in the panels' typeface as PDF and as PNG; ``path`` has no suffix."""
    figure.draw_without_rendering()  # makes the labels of the axes
    for text in figure.findobj(Text):
        size = 1.1 * float(text.get_fontsize())  # a book face looks smaller than others
        text.set(fontfamily=FONT, fontsize=size, linespacing=1.05)
    with rc_context({"mathtext.fontset": "stix", "pdf.fonttype": 42}):
        for suffix in (".pdf", ".png"):
            figure.savefig(path.with_name(path.name + suffix))
