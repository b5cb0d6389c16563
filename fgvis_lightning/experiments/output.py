"""Tables and figures as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from fgvis_lightning.results.tables import Table
from fgvis_lightning.results.tensor_files import write_whole


def save_table(path: Path, table: Table) -> None:
    """As CSV and as Markdown; ``path`` without a suffix."""
    write_whole(path.with_suffix(".csv"), table.csv().encode())
    write_whole(path.with_suffix(".md"), table.markdown().encode())


def save_figure(path: Path, figure: Figure) -> None:
    """As vector and as bitmap; ``path`` without a suffix."""
    for suffix in (".pdf", ".png"):
        figure.savefig(path.with_suffix(suffix))
