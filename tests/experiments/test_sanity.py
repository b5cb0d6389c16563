from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from command_line import NETWORK
from PIL import Image
from toy_networks import Tiny

from fgvis_lightning.cli import main
from fgvis_lightning.experiments.sanity import layers, randomized
from fgvis_lightning.networks.classifier import freeze

PhotoMaker = Callable[..., Path]
GRADIENT = "fgvis_lightning.baselines.Gradient"


def test_layers_are_drawn_anew_from_the_top_down() -> None:
    network = freeze(Tiny())
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    assert len(layers(network)) == 4  # convolution, batch normalization, convolution, linear layer
    copies = list(randomized(network, 4, seed=0))
    assert [count for count, _ in copies] == [1, 2, 3, 4]
    for count, copy in copies:
        for place, (trained, random) in enumerate(zip(layers(network), layers(copy), strict=True)):
            same = torch.equal(trained.weight, random.weight)  # type: ignore[arg-type]
            assert same == (place < 4 - count)
    # One more each time: what was random stays as it was drawn.
    assert torch.equal(copies[0][1].head.weight, copies[3][1].head.weight)  # type: ignore[union-attr, arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.named_buffers())


def test_drawn_weights_have_the_spread_of_the_trained() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(200, 200)).eval()
    with torch.no_grad():
        network[0].weight.normal_(0.5, 3.0, generator=torch.Generator().manual_seed(0))  # type: ignore[operator]
    ((_, random),) = randomized(network, 1, seed=1)
    weight = random[0].weight.detach()  # type: ignore[index]
    assert float(weight.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(weight.std()) == pytest.approx(3.0, rel=0.02)


def test_command(photo: PhotoMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        photo(f"in/{i}.png", seed=i)
    methods = {
        "gradient": {"class_path": "fgvis_lightning.baselines.Gradient"},
        "center": {"class_path": "methods.Center"},
        "FGVis": {"class_path": "fgvis_lightning.baselines.FGVisMethod", "init_args": {"iterations": 5}},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"methods": methods}, sort_keys=False))
    output = tmp_path / "out"
    main(
        [
            *("sanity", "--config", str(tmp_path / "s.yaml"), "--images", str(tmp_path / "in"), "--steps", "2"),
            *(*NETWORK, "--output", str(output)),
            *("--device", "cpu"),
        ]
    )
    rows = list(csv.DictReader((output / "sanity.csv").read_text().splitlines()))
    assert [(row["method"], row["layers drawn anew"]) for row in rows] == [
        (name, step) for name in methods for step in ("2", "4", "another class")
    ]
    found = {(row["method"], row["layers drawn anew"]): float(row["rank correlation"]) for row in rows}
    assert all(found["center", step] == pytest.approx(1) for step in ("2", "4", "another class"))
    assert found["gradient", "4"] < 0.9
    for figure in ("sanity", "maps"):
        with Image.open(output / f"{figure}.png") as picture:
            assert picture.width > 500
    assert (output / "sanity.md").read_text() in capsys.readouterr().out


def test_control_of_random_labels(photo: PhotoMaker, tmp_path: Path) -> None:
    """The same weights give the same maps; others, others; and what has no ranks is undefined."""
    photo("in/a.png", seed=1)
    flat = {"class_path": "methods.Center", "init_args": {"sharpness": 0.0}}
    methods = {"g": {"class_path": GRADIENT}, "flat": flat}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"methods": methods}))
    networks = {"trained": Tiny(), "random labels": Tiny(seed=5)}
    for name, network in networks.items():
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    for name in networks:
        main(
            [
                *("sanity", "--config", str(tmp_path / "s.yaml"), "--images", str(tmp_path / "in"), "--steps", "1"),
                *(
                    *NETWORK,
                    "--output",
                    str(tmp_path / name),
                ),
                *("--model.classifier.checkpoint", str(tmp_path / "trained.pth"), "--device", "cpu"),
                *("--random_labels", str(tmp_path / f"{name}.pth")),
            ]
        )
        rows = {
            (row["method"], row["layers drawn anew"]): row["rank correlation"]
            for row in csv.DictReader((tmp_path / name / "sanity.csv").read_text().splitlines())
        }
        assert len(rows) == 6
        if name == "trained":
            assert float(rows["g", "random labels"]) == pytest.approx(1)
        else:
            assert float(rows["g", "random labels"]) < 0.9
        assert rows["flat", "random labels"] == "undefined"
        assert "| flat | random labels |  | undefined |" in (tmp_path / name / "sanity.md").read_text()
