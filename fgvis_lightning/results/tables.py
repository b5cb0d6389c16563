"""Tables, as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

UNDEFINED = "undefined"


class Table:
    """Rows under the names of their columns."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.rows: list[tuple[object, ...]] = []

    def add(self, row: Iterable[object]) -> None:
        """Add a row, a value for each column."""
        self.rows.append(tuple(row))

    def csv(self) -> str:
        """The whole table, with its values as they are; NaN is undefined."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([self.columns, *(map(_plain, row) for row in self.rows)])
        return text.getvalue()

    def markdown(self) -> str:
        """The whole table, with numbers to three digits; NaN is undefined."""
        head = [_cell(name) for name in self.columns], ["---"] * len(self.columns)
        lines = [*head, *([_cell(value) for value in row] for row in self.rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plain(value: object) -> object:
    """A value as CSV has it: a text that a spreadsheet would take for a formula gets an apostrophe."""
    if value != value:  # NaN is not itself
        return UNDEFINED
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _cell(value: object) -> str:
    if value != value:
        return UNDEFINED
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")
