"""Tables and figures as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from fgvis_lightning.results.tables import Table
from fgvis_lightning.results.tensor_files import write_whole


def save_table(path: Path, table: Table) -> None:
    """Save a table as CSV and as Markdown; ``path`` has no suffix."""
    write_whole(path.with_suffix(".csv"), table.csv().encode())
    write_whole(path.with_suffix(".md"), table.markdown().encode())


def save_figure(path: Path, figure: Figure) -> None:
    """Save a figure as PDF and as PNG; ``path`` has no suffix."""
    for suffix in (".pdf", ".png"):
        figure.savefig(path.with_suffix(suffix))
