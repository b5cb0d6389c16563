"""Tables, as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

UNDEFINED = "undefined"


class Table:
    """A table with named columns."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.rows: list[tuple[Any, ...]] = []

    def add(self, row: Iterable[object]) -> None:
        """Add a row with one value for each column."""
        self.rows.append(tuple(row))

    def named(self) -> list[dict[str, Any]]:
        """The rows, each as column → value."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def csv(self) -> str:
        """The whole table with unrounded values; NaN becomes "undefined"."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([self.columns, *(map(_plain, row) for row in self.rows)])
        return text.getvalue()

    def markdown(self) -> str:
        """The whole table with numbers of three digits; NaN becomes "undefined"."""
        head = [_cell(name) for name in self.columns], ["---"] * len(self.columns)
        lines = [*head, *([_cell(value) for value in row] for row in self.rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plain(value: object) -> object:
    """A value for CSV; text that a spreadsheet would read as a formula gets an apostrophe."""
    if value != value:  # NaN differs from itself
        return UNDEFINED
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _cell(value: object) -> str:
    if value != value:
        return UNDEFINED
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")
