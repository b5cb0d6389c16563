from __future__ import annotations

import csv
import io

from fgvis_lightning.results.tables import Table


def test_nothing_is_a_formula() -> None:
    table = Table(("name", "number"))
    names = ["=HYPERLINK(A1)", "+1", "-2", "@sum", "\tx", "plain"]
    for name in names:
        table.add((name, -0.5))
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert [row["name"] for row in rows] == [f"'{name}" for name in names[:-1]] + ["plain"]
    assert {row["number"] for row in rows} == {"-0.5"}
