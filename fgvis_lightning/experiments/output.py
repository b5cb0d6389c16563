"""Tables and figures as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text

from fgvis_lightning.results.layout import FONT
from fgvis_lightning.results.tables import Table
from fgvis_lightning.results.tensor_files import write_whole


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
