from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from attacking import attack, gated
from command_line import CPU, NETWORK
from PIL import Image
from torch import Tensor
from toy_networks import Tiny

from fgvis_lightning import InputError, load_explanation, load_explanations
from fgvis_lightning.api import explain_with
from fgvis_lightning.baselines import FGVisMethod
from fgvis_lightning.cli import main
from fgvis_lightning.data.images import load_image
from fgvis_lightning.data.items import list_items
from fgvis_lightning.experiments.adversarial import OPTIMIZERS, SignSGD
from fgvis_lightning.experiments.adversarial_tables import strongest
from fgvis_lightning.experiments.attack import RANDOM, AttackMethod
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.results.tables import Table

PhotoMaker = Callable[..., Path]
FIVE = [*NETWORK, "--model.classifier.classes", "[a, b, c, d, e]"]


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_counts_what_the_plain_network_says_of_the_masks(photo: PhotoMaker, tmp_path: Path) -> None:
    paths, output = [photo(f"in/{i}.png", seed=i) for i in range(3)], tmp_path / "out"
    arguments = [
        *("adversarial", "--data.images", str(tmp_path / "in"), "--data.targets", "absent2", "--output", str(output)),
        *FIVE,
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
        # Where the class is to go the mask is not the evidence.
        assert (table[game, defense]["highest on the way"] == "undefined") == (game == "repression")
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
            *FIVE,
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


def adversarial(output: Path, images: Path, *more: str) -> list[dict[str, str]]:
    """Run the command for generation, and read its table."""
    where = ["--data.images", str(images), "--output", str(output), "--games", "[generation]"]
    main(["adversarial", *where, *CPU, *more])
    return rows(output / "adversarial.csv")


def reached(folder: Path) -> list[float]:
    """The highest score of each pair, on the way or at the end."""
    found = [max(one.highest, one.score_explanation) for one in load_explanations(folder) if one.highest is not None]
    return [float(one) for one in found]


def test_attacks_are_those_of_a_plain_loop(photo: PhotoMaker, tmp_path: Path) -> None:
    """Whatever optimizes from wherever: the last masks, and the most that masks on the way reached."""
    path, output = str(photo("in/a.png")), tmp_path / "out"
    starts: dict[str, Callable[[Tensor], Tensor]] = {
        "0": torch.zeros_like,
        "0.5": partial(torch.full_like, fill_value=0.5),
        "1": torch.ones_like,
    }
    options = ["--data.targets", "absent2", "--optimizers", "[adam, momentum]", "--iterations", "25"]
    table = adversarial(output, tmp_path / "in", *FIVE, *options, "--starts", "[0, 0.5, 1]")
    assert len(table) == 2 * 3 * 2
    classifier = load_classifier(Tiny(), size=(16, 16))
    mean, std = (torch.tensor(v)[:, None, None] for v in (classifier.preprocessing.mean, classifier.preprocessing.std))
    x = ((load_image(path, classifier.preprocessing) / 255 - mean) / std)[None].repeat(2, 1, 1, 1)
    targets = classifier.network(x[:1])[0].argsort(descending=True)[[3, 4]]
    earlier = 0
    for row in table:
        made, start = OPTIMIZERS[row["optimizer"]], row["start"]
        gate, word = {"on": ("strict", "defended"), "off": ("none", "undefended")}[row["defense"]]
        assert made is not None
        expected = attack(gated(classifier.network, gate, x), x, targets, made, starts[start], 25)
        folder = output / f"generation_{word}_{row['optimizer']}_from_{start}"
        for one, highest in zip(load_explanations(folder), reached(folder), strict=True):
            place = targets.tolist().index(int(one.targets))
            torch.testing.assert_close(one.mask[0], expected.mask[place], rtol=0, atol=2e-3)
            assert highest == pytest.approx(
                float(expected.highest[place]), abs=1e-3
            )  # the loop judges the last one, too
            earlier += highest > float(one.score_explanation) + 0.001
        assert float(row["highest on the way"]) == pytest.approx(float(expected.highest.max()), abs=1e-3)
        assert float(row["on top on the way"]) == expected.top.float().mean()
    assert earlier > 0, "some mask on the way was better than the last one"


def draw(images: Tensor, targets: list[int], restart: int = 1, batch_size: int = 8) -> Tensor:
    """Masks as a random start has them: of attacks whose steps are nothing."""
    still = partial(torch.optim.SGD, lr=0.0)
    made = AttackMethod(
        game="generation", lam=0.0, iterations=1, patience=0, optimizer=still, start=RANDOM, restart=restart
    )
    model = made.module(load_classifier(Tiny(), size=tuple(images.shape[2:])), "", {})
    return explain_with(model, images, targets, batch_size, accelerator="cpu").mask


def test_random_starts_follow_from_image_class_and_restart() -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = draw(images, [0, 1, 1])
    assert 0 <= masks.min() < 0.01
    assert 0.99 < masks.max() <= 1
    counts = masks.histc(10, 0, 1)
    assert ((counts / masks.numel() - 0.1).abs() < 0.01).all()  # 3 standard deviations
    assert torch.equal(draw(images, [0, 1, 1], batch_size=2), masks), "whatever else is in the batch"
    assert torch.equal(draw(images.flip(0), [1, 1, 0]), masks.flip(0))
    others = draw(images[:1], [2]), draw(images[:1], [0], restart=2), masks[1:2], masks[2:]
    for one, other in combinations([masks[:1], *others], 2):
        assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.1


def test_as_a_method_an_attack_is_one_from_its_start() -> None:
    images, targets = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])
    options: dict[str, Any] = {"game": "generation", "lam": 0.0, "iterations": 3, "patience": 0}
    network = load_classifier(Tiny(), size=(12, 12)).network
    own, same, other = (
        method(network, images, targets)
        for method in (FGVisMethod(**options), AttackMethod(**options), AttackMethod(start=0.7, **options))
    )
    assert torch.equal(own, same)
    assert other.mean() - own.mean() > 0.3


def test_of_several_restarts_the_best_counts(photo: PhotoMaker, tmp_path: Path) -> None:
    photo("in/a.png")
    photo("in/b.png", seed=1)
    output = tmp_path / "out"
    options = ["--data.targets", "absent2", "--optimizers", "[momentum, solver]", "--iterations", "4"]
    table = adversarial(output, tmp_path / "in", *FIVE, *options, "--starts", "[own, random]", "--restarts", "3")
    defended = {(row["optimizer"], row["start"]): row for row in table if row["defense"] == "on"}
    drawn = "random (best of 3)"
    assert list(defended) == [("momentum", "own"), ("momentum", drawn), ("solver", "own")]
    folders = [
        output / f"generation_defended_momentum{end}" for end in ("_from_random", "_from_random_2", "_from_random_3")
    ]
    each = list(zip(*map(reached, folders), strict=True))
    assert all(len(set(three)) == 3 for three in each)
    assert float(defended["momentum", drawn]["highest on the way"]) == pytest.approx(max(map(max, each)))
    last = zip(
        *([float(one.score_explanation) for one in load_explanations(folder)] for folder in folders), strict=True
    )
    assert float(defended["momentum", drawn]["mean score"]) == pytest.approx(sum(map(max, last)) / 4, abs=1e-6)

    pairs = rows(output / "adversarial_pairs.csv")
    assert len(pairs) == 2 * 2 * 4, "one row for a pair, whatever the number of starts"
    own = output / "generation_defended_momentum"
    of_momentum = [pair for pair in pairs if (pair["optimizer"], pair["defense"]) == ("momentum", "on")]
    assert [pair["id"] for pair in of_momentum] == [one.ids[0] for one in load_explanations(own)]
    for pair, from_own, three in zip(of_momentum, reached(own), each, strict=True):
        assert float(pair["highest on the way"]) == pytest.approx(max(from_own, *three))
        assert pair["start"] == ("own" if from_own > max(three) else drawn)


def test_the_way_is_judged_by_the_networks_own_precision_or_not_at_all(photo: PhotoMaker, tmp_path: Path) -> None:
    photo("in/a.png")
    options = ["--data.targets", "absent2", "--iterations", "2", "--trainer.precision", "bf16-mixed"]
    table = adversarial(tmp_path / "out", tmp_path / "in", *FIVE, *options)
    assert {row["highest on the way"] for row in table} == {"undefined"}
    assert {row["highest"] for row in table} != {"undefined"}


def test_what_is_the_same_attack_is_run_once(photo: PhotoMaker, tmp_path: Path) -> None:
    photo("in/a.png")
    options = ["--data.targets", "absent1", "--games", "[preservation, generation]", "--iterations", "2"]
    given = ["--starts", "[own, 0.5, 0.5]", "--optimizers", "[sgd, sgd]"]
    table = adversarial(tmp_path / "out", tmp_path / "in", *FIVE, *options, *given)
    both = "generation or preservation"
    kinds = [(row["game"], row["start"]) for row in table if row["defense"] == "on"]
    assert kinds == [("preservation", "own"), ("generation", "own"), (both, "0.5")]
    alone = ["--data.targets", "absent1", "--games", "[preservation]", "--iterations", "2", "--starts", "[0.5]"]
    other = adversarial(tmp_path / "other", tmp_path / "in", *FIVE, *alone, "--optimizers", "[sgd]")
    assert [row["game"] for row in other] == ["preservation"] * 2
    for word in ("defended", "undefended"):
        one, same = (
            load_explanations(tmp_path / folder / f"{game}_{word}_sgd_from_0.5")[0]
            for folder, game in (("out", "generation"), ("other", "preservation"))
        )
        assert torch.equal(one.mask, same.mask)


@pytest.mark.parametrize("gate", ["strict", "restoring"])
def test_gates_keep_a_planted_class_out(
    gate: str, photo: PhotoMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A photo of one color has no stripes: without gates a mask makes them from 0, where their neuron is awake."""
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 32), (255, 250, 240)).save(tmp_path / "in" / "plain.png")
    network = ["--model.network", "toy_networks.Planted", "--model.classifier.size", "[16, 16]"]
    options = ["--model.classifier.classes", "[plain, stripes]", "--data.targets", "absent1", "--iterations", "25"]
    attacks = ["--optimizers", "[adam, momentum]", "--starts", "[random, 0]", "--gate", gate]
    table = adversarial(tmp_path / "out", tmp_path / "in", *network, *options, *attacks)
    for row in table:
        fooled = row["defense"] == "off" and row["start"] == "0"
        assert float(row["on top on the way"]) == float(row["false class on top"]) == fooled, row
    pairs = rows(tmp_path / "out" / "adversarial_pairs.csv")
    assert [pair["start"] for pair in pairs if pair["defense"] == "off"] == ["0", "0"]
    settings = load_explanations(tmp_path / "out" / "generation_defended_adam_from_0")[0].metadata["settings"]
    assert f'"gate": "{gate}"' in settings
    assert '"start": 0.0' in settings
    said = capsys.readouterr().out
    assert "0 of 1 false classes on top on the way and 0 at the end" in said
    assert "All attacks together: 0 of 1." in said


def test_a_class_of_the_empty_image_is_not_counted(
    photo: PhotoMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To show what an empty image shows, a mask need only be empty."""
    (tmp_path / "in").mkdir()
    Image.new("RGB", (32, 32), (255, 127, 127)).save(tmp_path / "in" / "red.png")
    network = ["--model.network", "toy_networks.Colors", "--model.classifier.size", "[16, 16]"]
    options = ["--model.classifier.classes", "[red, green, neither]", "--iterations", "3"]
    table = adversarial(tmp_path / "out", tmp_path / "in", *network, *options, "--data.targets", "[green, neither]")
    assert [(row["pairs"], row["false class on top"], row["on top on the way"]) for row in table] == [
        ("1", "0.0", "0.0")
    ] * 2
    pairs = {row["class"]: row for row in rows(tmp_path / "out" / "adversarial_pairs.csv")}
    assert [pairs[name]["counted"] for name in ("green", "neither")] == ["True", "False"]
    assert float(pairs["neither"]["score on an empty image"]) == pytest.approx(torch.tensor([0, 0, 1.0]).softmax(0)[2])
    assert pairs["neither"]["on top on the way"] == "True"
    said = capsys.readouterr().out
    assert "Not counted: 1 of 2 pairs, whose class is on top on an empty image already." in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--starts", "[0, 1.5]"], "Expected starts from 0 to 1, own or random, but got 1.5."),
        (["--starts", "[.nan]"], "Expected starts from 0 to 1, own or random, but got nan."),
        (["--starts", "[middle]"], "--starts: Expected one of own, random or a number, but got middle"),
        (["--starts", "[]"], "Expected one or more --starts, but got an empty list."),
        (["--games", "[]"], "Expected one or more --games, but got an empty list."),
        (["--restarts", "0", "--starts", "[random]"], "Expected restarts from 1 to 1000, but got 0."),
        (
            ["--restarts", "2", "--starts", "[own, 0.5]"],
            "Expected random among --starts for 2 restarts, but got own, 0.5, for which all would be the same.",
        ),
        (["--gate", "iron"], "--gate: Expected one of strict, restoring, but got iron"),
    ],
)
def test_mistakes_get_one_line(
    options: list[str], message: str, photo: PhotoMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("in/a.png")
    with pytest.raises(SystemExit):
        adversarial(tmp_path / "out", tmp_path / "in", *options)
    assert capsys.readouterr().err == f"fgvis: {message}\n"


def test_the_strongest_attack_is_named() -> None:
    columns = "game", "optimizer", "start", "defense", "pairs", "false class on top", "highest"
    way = "on top on the way", "highest on the way"
    table, pairs = Table((*columns, *way)), Table(("id", "defense", "on top", way[0], "counted"))
    nan = float("nan")
    assert strongest(table, pairs) == ""
    for row in (
        ("generation", "sgd", "own", "off", 8, 1.0, 0.99, 1.0, 1.0),
        ("generation", "sgd", "own", "on", 8, 0.125, 0.6, 0.125, 0.6),
        ("deletion", "adam", "own", "on", 8, 0.125, 0.7, nan, nan),
        ("deletion", "sign", "own", "on", 8, 0.0, 0.9, nan, nan),
    ):
        table.add(row)
    for number in range(8):
        pairs.add((f"{number}", "off", True, True, True))
        pairs.add((f"{number}", "on", False, number < 1, True))
        pairs.add((f"{number}", "on", number < 2, nan, True))
    assert strongest(table, pairs) == (
        "Strongest against the defense: deletion by adam, 1 of 8 false classes on top, highest score 0.7. All attacks "
        "together: 2 of 8."
    )
    table.add(("generation", "adam", "random (best of 3)", "on", 8, 0.125, 0.3, 0.25, 0.65))
    assert strongest(table, pairs) == (
        "Strongest against the defense: generation by adam from random (best of 3), 2 of 8 false classes on top on the "
        "way and 1 at the end, highest score 0.65. All attacks together: 2 of 8."
    )
    pairs.add(("8", "on", True, True, False))
    assert strongest(table, pairs).endswith(
        "All attacks together: 2 of 8.\nNot counted: 1 of 9 pairs, whose class is on top on an empty image already."
    )


def test_absent_classes_are_the_less_probable_half(photo: PhotoMaker) -> None:
    classifier = load_classifier(Tiny(classes=11), classes=[f"c{k}" for k in range(11)])
    path = str(photo("a.png"))
    assert [item.target for item in list_items(path, "absent5", classifier)] == [-7, -8, -9, -10, -11]
    assert [item.target for item in list_items(path, "absent2", classifier)] == [-7, -11]
    assert [item.target for item in list_items(path, "absent1", classifier)] == [-7]
    with pytest.raises(InputError, match="from 1 to half of the classes, but got absent6 for 11 classes"):
        list_items(path, "absent6", classifier)
    with pytest.raises(InputError, match=r"0 classes of Tiny\. Set class names with --model"):
        list_items(path, "absent1", load_classifier(Tiny()))
