"""The lines that a run ends with."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch
from command_line import fit

from fgvis_lightning.method.games import GAMES
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.lines import MOST, item_lines
from fgvis_lightning.results.numbers import percent, probability


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
        "                          score on the  score without",
        "item             class           image   the evidence  evidence  level",
        "a@top1-cat       cat             0.750          0.094    12.5 %  reached",
        "longer@top1-dog  dog?            0.750          0.094    12.5 %  missed",
        "none             class 3         0.750          0.094    12.5 %",
    ]


def test_little_is_not_nothing(tmp_path: Path) -> None:
    score = torch.tensor([0.0001])
    (tmp_path / "explanations").mkdir()
    for id, mask in (("whole", torch.zeros(1, 3, 50, 50)), ("faint", torch.ones(1, 3, 50, 50))):
        mask[0, 0, 0, 0] -= float(id == "faint")
        found = Explanation(mask, torch.tensor([3]), score, score, GAMES["deletion"], feasible=torch.tensor([True]))
        found.save(tmp_path / "explanations" / f"{id}.safetensors")
    assert item_lines(tmp_path, ["whole", "faint"])[2:] == [
        "whole  class 3        <0.001         <0.001   100.0 %  whole image",
        "faint  class 3        <0.001         <0.001    0.01 %  reached",
    ]


def test_numbers_as_texts() -> None:
    shares = (0, 1e-9, 4e-6, 0.0002, 0.00123, 0.999, 1)
    assert list(map(percent, shares)) == ["0.0 %", "<0.0001 %", "0.0004 %", "0.02 %", "0.1 %", "99.9 %", "100.0 %"]
    scores = (0, 1e-9, 0.0004, 0.0005, 0.951, 0.9994, 0.9995, 1)
    texts = ["0.000", "<0.001", "<0.001", "0.001", "0.951", "0.999", ">0.999", "1.000"]
    assert list(map(probability, scores)) == texts


def test_there_are_none_for_many_items(tmp_path: Path) -> None:
    assert item_lines(tmp_path, [str(number) for number in range(MOST + 1)]) == []
    assert item_lines(tmp_path, []) == []


def test_a_run_ends_with_them(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(output, folder, "--data.targets", "[predicted, 1, 0]")
    printed = capsys.readouterr().out
    assert re.search("score on the  score on the\n.* image   explanation  evidence  level\n", printed)
    listed = [line.split()[0] for line in printed.splitlines() if line.startswith("photo_")]
    assert len(listed) == 9
    with (output / "summary.csv").open(newline="") as file:
        assert listed == [row["id"] for row in csv.DictReader(file)]
