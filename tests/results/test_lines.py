"""The lines that a run ends with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import fit

from fgvis_lightning.method.games import GAMES
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.lines import MOST, item_lines


def save(folder: Path, id: str, feasible: bool | None, **metadata: str) -> None:
    score = torch.tensor([0.75])
    mask = torch.full((1, 3, 4, 4), 0.875)
    known = None if feasible is None else torch.tensor([feasible])
    found = Explanation(mask, torch.tensor([3]), score, score / 8, GAMES["deletion"], feasible=known)
    (folder / "explanations").mkdir(exist_ok=True)
    found.save(folder / "explanations" / f"{id}.safetensors", 0, metadata)


def test_each_item_has_a_line_of_columns(tmp_path: Path) -> None:
    save(tmp_path, "a@top1-cat", True, name="cat")
    save(tmp_path, "longer@top1-dog", False, name="dog\n")
    save(tmp_path, "none", None)
    (tmp_path / "explanations" / "broken.safetensors").write_text("no")
    assert item_lines(tmp_path, ["a@top1-cat", "longer@top1-dog", "none", "broken", "missing"]) == [
        "item             class    image  without it  evidence  level",
        "a@top1-cat       cat      0.750       0.094    12.5 %  reached",
        "longer@top1-dog  dog?     0.750       0.094    12.5 %  missed",
        "none             class 3  0.750       0.094    12.5 %",
    ]


def test_there_are_none_for_many_items(tmp_path: Path) -> None:
    assert item_lines(tmp_path, [str(number) for number in range(MOST + 1)]) == []
    assert item_lines(tmp_path, []) == []


def test_a_run_ends_with_them(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(output, folder)
    printed = capsys.readouterr().out
    assert "explanation  evidence" in printed
    assert len([line for line in printed.splitlines() if line.startswith("photo_")]) == 3
