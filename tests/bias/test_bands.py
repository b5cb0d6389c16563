"""What stands for color where a network takes one channel, or many."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fgvis_lightning import InputError
from fgvis_lightning.bias import (
    Bands,
    BandStatistic,
    Color,
    ColorStatistic,
    Gamma,
    Inversion,
    MeanOfBands,
    Rotation,
    Tone,
    ToneStatistic,
)
from fgvis_lightning.cli import main
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.report.pictures import evidence_by_channel


class Looks(nn.Module):
    """Class 0 asks for a bright first channel, class 1 for a dark one."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 2, 4, stride=4, bias=False)
        with torch.no_grad():
            self.first.weight.zero_()
            self.first.weight[0, 0] = 0.5
            self.first.weight[1, 0] = -0.5

    def forward(self, x: Tensor) -> Tensor:
        return 8 * self.first(x).relu().mean((2, 3))


def classifier_of(count: int, **says: object):  # type: ignore[no-untyped-def]
    settings = {"mean": [0.5] * count, "std": [1.0] * count, "size": (16, 16), **says}
    return load_classifier(Looks(count), **settings)  # type: ignore[arg-type]


def test_the_pair_goes_by_the_networks_channels() -> None:
    color = Color()
    assert color.suited(classifier_of(3)) is color
    assert isinstance(color.suited(classifier_of(1)), Tone)
    bands = color.suited(classifier_of(5))
    assert isinstance(bands, Bands)
    assert bands.count == 5
    assert isinstance(color.suited(classifier_of(3, channels="all")), Bands)
    assert color.suited(classifier_of(3, channels="gray")) is color  # a network of RGB that gets gray photos


def test_bands_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.rand(2, 4, 3, 5, generator=generator), torch.rand(2, 4, 3, 5, generator=generator)
    reference = torch.tensor([0.2, 0.4, 0.6, 0.8])[:, None, None]
    found = BandStatistic(4)(images, weights, reference)
    for image, weight, values in zip(images, weights, found, strict=True):
        together = 0.0
        for y in range(3):
            for x in range(5):
                above = sum(float(weight[k, y, x]) for k in range(4) if image[k, y, x] > reference[k])
                below = sum(float(weight[k, y, x]) for k in range(4) if image[k, y, x] < reference[k])
                together += 2 * min(above, below)
        assert values[:4].tolist() == pytest.approx([float(band.mean()) for band in weight], rel=1e-5)
        assert values[4:8].tolist() == pytest.approx([float(band.sum() / weight.sum()) for band in weight], rel=1e-5)
        assert float(values[8]) == pytest.approx(together / float(weight.sum()), rel=1e-5)


def test_three_bands_are_measured_as_colors_are() -> None:
    images, weights = torch.rand(2, 2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    gray = torch.full((3, 1, 1), 0.5)
    bands, colors = BandStatistic(3), ColorStatistic()
    mine, theirs = bands(images, weights, gray), colors(images, weights, gray)
    assert torch.equal(mine[:, :6], theirs[:, :6])
    assert torch.equal(mine[:, 6], theirs[:, -1])
    assert torch.equal(bands.dependence(mine), colors.dependence(theirs))


def test_rotations_leave_no_band_in_its_place() -> None:
    names = torch.arange(4.0)[None, :, None, None]
    moved = [change(names).flatten().tolist() for change in Bands(4).interventions(classifier_of(4))]
    assert moved == [[3, 0, 1, 2], [2, 3, 0, 1], [1, 2, 3, 0]]
    many = Bands(200).interventions(classifier_of(200))
    assert [change.by for change in many if isinstance(change, Rotation)] == [1, 40, 80, 120, 160]
    assert MeanOfBands()(names).flatten().tolist() == [1.5] * 4
    for bad in (lambda: Rotation(0), lambda: Bands(1), lambda: Gamma(0)):
        with pytest.raises(InputError, match="but got"):
            bad()


def test_tones() -> None:
    images = torch.tensor([[0.1, 0.9], [0.5, 0.2]])[None, None]
    weights = torch.tensor([[0.5, 1.0], [0.25, 0.25]])[None, None]
    values = ToneStatistic()(images, weights, torch.full((1, 1, 1), 0.5))
    assert values[0].tolist() == pytest.approx([0.5, 1.25 / 2, 0.75 / 2])
    assert torch.allclose(Inversion()(Inversion()(images)), images)
    assert torch.allclose(Gamma(2)(Gamma(0.5)(images)), images)
    none = ToneStatistic()(images, torch.zeros_like(weights), torch.full((1, 1, 1), 0.5))
    assert none[0, 1:].isnan().all()  # nothing to have shares of


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_the_report_has_a_mean_for_each_band() -> None:
    evidence = torch.tensor([0.5, 0.25, 0, 1.0])[:, None, None].expand(-1, 3, 2)
    assert evidence_by_channel(evidence, "all") == {"band 1": 0.5, "band 2": 0.25, "band 3": 0, "band 4": 1}
    assert list(evidence_by_channel(evidence[:3], "rgb")) == ["red", "green", "blue"]
    assert list(evidence_by_channel(evidence, "rgb")) == [
        "band 1",
        "band 2",
        "band 3",
        "band 4",
    ]  # a stray file
    assert evidence_by_channel(evidence[:1], "gray") == {}  # the sparsity says it


@pytest.mark.parametrize("channels", [1, 5])
def test_command(channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The network looks at the first channel alone: there the evidence is, and shares are its own."""
    generator = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 20)):
        for number in range(3):
            pixels = generator.integers(0, 255, (16, 16, channels), dtype=np.uint8)
            pixels[..., 0] = level + generator.integers(0, 40, (16, 16))
            path = tmp_path / "images" / name / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            if channels == 1:
                Image.fromarray(pixels[..., 0]).save(path.with_suffix(".png"))
            else:
                np.save(path, pixels)
    many = [f"--model.classifier.{name}={[value] * channels}" for name, value in (("mean", 0.5), ("std", 1.0))]
    network_options = ["--model.network", "test_bands.Looks", f"--model.network.channels={channels}", *many]
    options = ["--data.images", str(tmp_path / "images"), "--model.classifier.size", "[16, 16]"]
    options += ["--model.classifier.classes", "[bright, dark]", "--trainer.accelerator", "cpu"]
    options += ["--model.classifier.bands", f"{[channels, 1, 1]}"]
    main(["bias", *options, *network_options, "--explainer.iterations", "20", "--output", str(tmp_path / "out")])
    assert f"takes {channels} channel(s);" in capsys.readouterr().out
    stays = {
        (row["class"], row["intervention"]): float(row["stay right"])
        for row in rows(tmp_path / "out" / "color_interventions.csv")
    }
    evidence = {
        (row["class"], row["statistic"]): float(row["evidence"])
        for row in rows(tmp_path / "out" / "color_evidence.csv")
    }
    for name in ("bright", "dark"):
        if channels == 1:
            assert stays[name, "negative"] == 0
            assert stays[name, "gamma 2"] == 1
        else:
            assert evidence[name, "band 1"] > 0.99
            for by in (1, 2, 3, 4):
                moved = [np.roll(np.load(path), by, 2) for path in (tmp_path / "images" / name).glob("*.npy")]
                pictures = torch.from_numpy(np.stack(moved)).movedim(3, 1) / 255
                says = Looks()(pictures - 0.5).argmax(1)
                share = float((says == ("bright", "dark").index(name)).float().mean())
                assert stays[name, f"bands moved by {by}"] == pytest.approx(share)
    if channels == 1:
        assert evidence["bright", "brighter"] + evidence["bright", "darker"] == pytest.approx(1)
    for figure in ("evidence", "agreement", "sheet"):
        with Image.open(tmp_path / "out" / f"color_{figure}.png") as picture:
            assert picture.width > 300
