from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch
from command_line import NETWORK
from toy_networks import Tiny

from fgvis_lightning import InputError, load_explanation
from fgvis_lightning.cli import main
from fgvis_lightning.data.images import load_image
from fgvis_lightning.data.items import list_items
from fgvis_lightning.experiments.adversarial import SignSGD, strongest
from fgvis_lightning.experiments.statistics import wilson
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.results.tables import Table

PhotoMaker = Callable[..., Path]


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_counts_what_the_plain_network_says_of_the_masks(photo: PhotoMaker, tmp_path: Path) -> None:
    paths, output = [photo(f"in/{i}.png", seed=i) for i in range(3)], tmp_path / "out"
    arguments = [
        *("adversarial", "--data.images", str(tmp_path / "in"), "--data.targets", "absent2", "--output", str(output)),
        *(
            *NETWORK,
            "--model.classifier.classes",
            "[a, b, c, d, e]",
        ),
        *("--trainer.accelerator", "cpu", "--iterations", "30", "--games", "[generation, repression]"),
    ]
    main(arguments)
    classifier = load_classifier(Tiny(), size=(16, 16))
    mean, std = (torch.tensor(v)[:, None, None] for v in (classifier.preprocessing.mean, classifier.preprocessing.std))
    table = {(row["game"], row["defense"]): row for row in rows(output / "adversarial.csv")}
    for game, defense in table:
        tops, scores, word = [], [], {"off": "undefended", "on": "defended"}[defense]
        for path in sorted((output / f"{game}_{word}" / "explanations").iterdir()):
            found = load_explanation(path)
            assert '"lam": 0.0' in found.metadata["settings"]
            assert f'"defended": {str(defense == "on").lower()}' in found.metadata["settings"]
            (source,) = (one for one in paths if one.stem == path.name.partition("@")[0])
            x = (load_image(str(source), classifier.preprocessing) / 255 - mean) / std
            evidence = found.mask[0] if game == "generation" else 1 - found.mask[0]
            before, after = (classifier.network(image[None])[0].softmax(0) for image in (x, evidence * x))
            assert int((before > before[found.targets]).sum()) >= 3  # of the less probable half
            tops.append(int(after.argmax() == found.targets))
            scores.append(float(after[found.targets]))
        assert len(tops) == 6
        assert float(table[game, defense]["false class on top"]) == pytest.approx(sum(tops) / 6)
        assert float(table[game, defense]["mean score"]) == pytest.approx(sum(scores) / 6, abs=1e-4)
    assert len(table) == 4
    assert len(rows(output / "adversarial_pairs.csv")) == 24
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    main(arguments)
    assert times == {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}


def test_a_row_for_each_optimizer(photo: PhotoMaker, tmp_path: Path) -> None:
    photo("in/a.png")
    output = tmp_path / "out"
    main(
        [
            *("adversarial", "--data.images", str(tmp_path / "in"), "--data.targets", "absent2"),
            *(
                *NETWORK,
                "--model.classifier.classes",
                "[a, b, c, d, e]",
            ),
            *("--trainer.accelerator", "cpu", "--iterations", "3", "--games", "[generation]"),
            *("--optimizers", "[default, sgd, adam, sign]", "--output", str(output)),
        ]
    )
    table = rows(output / "adversarial.csv")
    names = ("default", "sgd", "adam", "sign")
    assert [(row["optimizer"], row["defense"]) for row in table] == [(n, d) for n in names for d in ("off", "on")]
    assert [row["pairs"] for row in table] == ["2"] * 8
    assert len(rows(output / "adversarial_pairs.csv")) == 16
    masks = []
    for name, rule in zip(names, ("SGD {'", "SGD {'", "Adam {'", "SignSGD {'"), strict=True):
        folder = output / f"generation_undefended{'' if name == 'default' else f'_{name}'}" / "explanations"
        found = [load_explanation(path) for path in sorted(folder.iterdir())]
        assert all(f'"optimizer": "{rule}' in one.metadata["settings"] for one in found)
        assert all('"lam": 0.0' in one.metadata["settings"] for one in found)
        masks.append(torch.cat([one.mask for one in found]))
    assert all(not torch.equal(one, other) for one, other in combinations(masks, 2))
    assert set(masks[-1].unique().tolist()) <= {0.0, *(torch.tensor([0.03, 0.06, 0.09]).half().tolist())}


def test_sign_steps() -> None:
    a, b = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0])), torch.nn.Parameter(torch.ones(1))
    optimizer = SignSGD([a, b], lr=0.5)
    loss = optimizer.step(lambda: ((a * torch.tensor([1e-9, 0, -7.0])).sum().backward(), 5)[1])
    assert loss == 5
    assert a.tolist() == [0.5, 2, 3.5]
    assert b.tolist() == [1], "without a gradient"


def test_momentum_adds_former_gradients_up() -> None:
    a = torch.nn.Parameter(torch.zeros(2))
    optimizer = SignSGD([a], lr=0.5, momentum=0.5)
    for gradient in ([4.0, -4.0], [-1.0, 3.0], [-1.0, 3.0]):  # sums: 4, -4; 1, 1; -0.5, 3.5
        a.grad = torch.tensor(gradient)
        optimizer.step()
    assert a.tolist() == [-0.5, -0.5]


def test_the_strongest_attack_is_named() -> None:
    columns = "game", "optimizer", "defense", "pairs", "false class on top", "highest"
    table = Table(columns)
    assert strongest(table) == ""
    for row in (
        ("generation", "sgd", "off", 8, 1.0, 0.99),
        ("generation", "sgd", "on", 8, 0.125, 0.6),
        ("deletion", "adam", "on", 8, 0.125, 0.7),
        ("deletion", "sign", "on", 8, 0.0, 0.9),
    ):
        table.add(row)
    assert strongest(table) == (
        "Strongest against the defense: deletion by adam, 1 of 8 false classes on top, highest score 0.7."
    )


def test_interval_of_a_rate() -> None:
    """Newcombe, Statistics in Medicine 1998, table I: 81 of 263, and 0 of 20."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20)[1] == pytest.approx(1.0)


def test_absent_classes_are_the_less_probable_half(photo: PhotoMaker) -> None:
    classifier = load_classifier(Tiny(classes=11), classes=[f"c{k}" for k in range(11)])
    path = str(photo("a.png"))
    assert [item.target for item in list_items(path, "absent5", classifier)] == [-7, -8, -9, -10, -11]
    assert [item.target for item in list_items(path, "absent2", classifier)] == [-7, -11]
    assert [item.target for item in list_items(path, "absent1", classifier)] == [-7]
    with pytest.raises(InputError, match="from 1 to half of the classes, but got absent6 for 11 classes"):
        list_items(path, "absent6", classifier)
    with pytest.raises(InputError, match=r"0 classes of Tiny\. Their names can be given"):
        list_items(path, "absent1", load_classifier(Tiny()))
