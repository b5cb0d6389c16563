from __future__ import annotations

import csv
import io

import pytest
import torch

from fgvis_lightning.experiments.evaluation_tables import summary
from fgvis_lightning.experiments.judgements import Judgement
from fgvis_lightning.experiments.statistics import sign_flip

METRICS = ["deletion", "insertion", "size"]


def judgements(images: int) -> list[Judgement]:
    """Of four methods: ours, one that is always worse, one that is as often better as worse, and a copy of ours."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(images):
        own, noise = torch.rand(2, generator=generator).tolist()
        for method, value in (
            ("ours", own),
            ("worse", own + 0.2 + noise / 10),
            ("noisy", own + (-1) ** number * (0.3 + noise)),
            ("copy", own),
        ):
            values = {"deletion": value, "insertion": value}
            if method in ("ours", "worse"):
                values["size"] = value / 10
            found.append(Judgement(str(number), f"{number}.png", 0, method, values, [1.0], [1.0]))
    return found


def test_what_is_significant_is_marked() -> None:
    methods = ["ours", "worse", "noisy", "copy"]
    table, text = summary(judgements(12), methods, "ours", METRICS, "rise")
    rows = {(row["method"], row["metric"]): row for row in csv.DictReader(io.StringIO(table.csv()))}
    p = 2 / 2**12
    worse = rows["worse", "deletion"]
    assert (float(worse["p"]), float(worse["p corrected"])) == pytest.approx((p, 3 * p))
    assert float(rows["worse", "size"]["p corrected"]) == pytest.approx(p), "one method alone has a size"
    differences = [
        one.values["deletion"] - other.values["deletion"]
        for one, other in zip(judgements(12)[2::4], judgements(12)[::4], strict=True)
    ]
    noisy = sign_flip(torch.tensor(differences), [str(number) for number in range(12)])
    assert float(rows["noisy", "deletion"]["p"]) == pytest.approx(noisy)
    assert float(rows["noisy", "deletion"]["p corrected"]) == pytest.approx(min(1, 2 * noisy))
    assert float(rows["copy", "deletion"]["p corrected"]) == 1
    assert rows["ours", "deletion"]["p"] == rows["ours", "deletion"]["difference"] == ""
    assert ("copy", "size") not in rows
    means, told, differing = text.partition("\nDifferences from ours")
    assert "*" not in means
    assert "Holm's correction for the methods compared with ours, separately for each metric" in differing
    lines = {line.split(" | ")[0].strip("| "): line for line in differing.splitlines() if line.startswith("|")}
    assert [lines[name].count("]*") for name in ("worse", "noisy", "copy")] == [3, 0, 0]
    assert told


def test_five_images_are_too_few() -> None:
    _, text = summary(judgements(5), ["ours", "worse"], "ours", METRICS, "rise")
    assert "]*" not in text
    assert "+0.2" in text


def test_one_method_has_no_differences() -> None:
    ours = [one for one in judgements(3) if one.method == "ours"]
    table, text = summary(ours, ["ours"], "ours", METRICS, "rise")
    assert "Differences" not in text
    assert text.startswith("| method | deletion ↓ | insertion ↑ | size ↓ |")
    assert len(table.rows) == 3
