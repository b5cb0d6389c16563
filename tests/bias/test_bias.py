from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import colored
import pytest
import torch
import yaml
from command_line import NETWORK
from PIL import Image
from torch import Tensor, nn
from toy_networks import Tiny

from fgvis_lightning import InputError
from fgvis_lightning.bias import ChannelSwap, Color, ColorStatistic, Desaturation, HueRotation, Position, imbalance
from fgvis_lightning.cli import main
from fgvis_lightning.data.images import load_image
from fgvis_lightning.experiments.statistics import bootstrap, resampled
from fgvis_lightning.networks.load import load_classifier

PhotoMaker = Callable[..., Path]
ROOT = Path(__file__).parents[2]
GRAY = torch.full((3, 1, 1), 0.5)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))


def test_swaps_are_permutations(images: Tensor) -> None:
    assert torch.equal(ChannelSwap("RGB")(images), images)
    for fed in map("".join, permutations("RGB")):
        swap = ChannelSwap(fed)
        assert torch.equal(swap(images), torch.stack([images[:, "RGB".index(color)] for color in fed], 1))
        back = next(other for other in map(ChannelSwap, map("".join, permutations("RGB"))) if _undoes(other, swap))
        assert torch.equal(back(swap(images)), images)
    with pytest.raises(InputError, match="the letters R, G and B, but got 'RRB'"):
        ChannelSwap("RRB")


def _undoes(other: ChannelSwap, swap: ChannelSwap) -> bool:
    return [swap.taken[place] for place in other.taken] == [0, 1, 2]


def test_a_network_of_bgr_is_fed_what_the_swap_says(images: Tensor) -> None:
    """Wagner et al. feed RGB and GRB to a network of BGR."""
    seen: list[Tensor] = []

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.mean((2, 3))

    classifier = load_classifier(Looks(), order="BGR", mean=(0, 0, 0), std=(1, 1, 1))
    for fed in ("RGB", "GRB"):
        classifier.network(ChannelSwap(fed, "BGR")(images))
        assert torch.equal(seen.pop(), torch.stack([images[:, "RGB".index(color)] for color in fed], 1))
    classifier.network(images)
    assert torch.equal(seen.pop(), images.flip(1))
    assert Color().averages(classifier) == {"mean of RGB and GRB": ["RGB", "GRB"]}
    assert sorted(change.name for change in Color().interventions(classifier)) == ["BRG", "GBR", "GRB", "RBG", "RGB"]
    plain = load_classifier(Looks())
    assert Color().averages(plain) == {"mean of BGR and BRG": ["BGR", "BRG"]}
    assert classifier.fingerprint() != plain.fingerprint()
    with pytest.raises(InputError, match=r"the letters R, G and B, e\.g\. BGR, but got 'BRR'"):
        load_classifier(Looks(), order="BRR")


def test_controls(images: Tensor) -> None:
    gray = Desaturation()(images)
    assert torch.equal(gray[:, 0], gray[:, 2])
    assert torch.allclose(HueRotation(180)(HueRotation(180)(images)), images, atol=1e-5)
    red = torch.tensor([1.0, 0, 0])[None, :, None, None]
    assert torch.allclose(HueRotation(120)(red), torch.tensor([0, 1.0, 0])[None, :, None, None], atol=1e-5)
    with pytest.raises(InputError, match="from -180 to 180, but got 200"):
        HueRotation(200)


def test_color_statistic_against_a_loop(images: Tensor) -> None:
    """Pixel by pixel, hue by the standard library."""
    import colorsys

    weights = torch.rand(4, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    statistic = ColorStatistic()
    found = statistic(images, weights, GRAY)
    for image, weight, values in zip(images, weights, found, strict=True):
        by_hue, signed = [0.0] * 7, 0.0
        for y in range(6):
            for x in range(5):
                color, amount = image[:, y, x].tolist(), weight[:, y, x].tolist()
                hue, saturation, _ = colorsys.rgb_to_hsv(*color)
                by_hue[round(hue * 6) % 6 if saturation >= 0.15 else 6] += sum(amount)
                above = sum(a for a, c in zip(amount, color, strict=True) if c > 0.5)
                signed += 2 * min(above, sum(amount) - above)
        total = float(weight.sum())
        assert values[:3].tolist() == pytest.approx([float(channel.mean()) for channel in weight], rel=1e-5)
        assert values[3:6].tolist() == pytest.approx([float(channel.sum()) / total for channel in weight], rel=1e-5)
        assert values[6:13].tolist() == pytest.approx([amount / total for amount in by_hue], abs=1e-5)
        assert float(values[13]) == pytest.approx(signed / total, rel=1e-5)


def test_gray_images_have_no_preference(images: Tensor) -> None:
    gray = Desaturation()(images)
    statistic = ColorStatistic()
    values = statistic(gray, (gray - GRAY).abs(), GRAY)
    assert torch.allclose(statistic.dependence(values), torch.zeros(4), atol=1e-6)
    assert torch.equal(values[:, statistic.names.index("opponent")], torch.zeros(4))
    assert torch.equal(values[:, statistic.names.index("gray")], torch.ones(4))
    assert statistic(gray, torch.zeros_like(gray), GRAY)[:, 3:].isnan().all()  # nothing to have shares of


def test_imbalance() -> None:
    assert imbalance(torch.tensor([[1 / 3] * 3, [1, 0, 0], [0.5, 0.5, 0]])).tolist() == pytest.approx([0, 1, 0.5])


def test_position(images: Tensor) -> None:
    weights = torch.zeros_like(images)
    weights[..., 0] = 1
    weights[..., 2] = 5  # the middle column
    assert Position().statistic(images, weights, GRAY).tolist() == [[1, 0]] * 4
    mirror = Position().interventions(load_classifier(Tiny()))[0]
    assert torch.equal(mirror(mirror(images)), images)


def test_resampled_means_leave_out_what_is_undefined() -> None:
    nan = float("nan")
    values = torch.tensor([[1.0, nan], [3.0, 5.0], [8.0, nan]])
    mean, draws = resampled(values, ["a", "b", "c"], samples=50)
    assert mean.tolist() == [4, 5]
    assert draws[:, 1].isnan().all()  # one image says nothing of the next
    values[2, 1] = 7
    seen = resampled(values, ["a", "b", "c"])[1][:, 1]
    assert {round(value, 4) for value in seen[~seen.isnan()].tolist()} == {5, 5.6667, 6, 6.3333, 7}
    assert bootstrap(values[:, 1], ["a", "b", "c"])[0] == 6


def test_command_against_brute_force(photo: PhotoMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also: a class without images, and one that the network never gets right, are undefined."""
    classifier = load_classifier(Tiny(), size=(16, 16))
    names, listing, truth = ["a", "b", "c", "d", "e"], ["path,target"], []
    with torch.no_grad():
        for number in range(6):
            path = photo(f"{number}.png", seed=number)
            x = load_image(str(path), classifier.preprocessing) / 255
            says = {
                fed: int(classifier.network(classifier.preprocessing.normalize(ChannelSwap(fed)(x[None]))).argmax())
                for fed in ("RGB", "BGR")
            }
            listing.append(f"{path.name},{names[says['RGB']]}")
            truth.append(says)
    never = next(name for k, name in enumerate(names) if all(says["RGB"] != k for says in truth))
    empty = next(name for k, name in enumerate(names) if name != never and all(says["RGB"] != k for says in truth))
    wrong = photo("wrong.png", seed=9)
    (tmp_path / "images.csv").write_text("\n".join([*listing, f"{wrong.name},{never}"]) + "\n")
    main(
        [
            *("bias", "--data.images", str(tmp_path / "images.csv"), "--data.classes", f"[{','.join(names)}]"),
            *(
                *NETWORK,
                "--model.classifier.classes",
                f"[{','.join(names)}]",
            ),
            *("--explainer.iterations", "4", "--trainer.accelerator", "cpu", "--output", str(tmp_path / "out")),
            *("--published", f"{{{empty}: {{BGR: 0.5}}}}"),
        ]
    )
    table = {(row["class"], row["intervention"]): row for row in rows(tmp_path / "out" / "color_interventions.csv")}
    for k, name in enumerate(names):
        own = [says for says in truth if says["RGB"] == k]
        row = table[name, "BGR"]
        assert int(row["right"]) == len(own)
        if own:
            share = sum(says["BGR"] == k for says in own) / len(own)
            assert float(row["stay right"]) == pytest.approx(share)
        else:
            assert row["stay right"] == "undefined"
        assert int(row["images"]) == len(own) + (name == never)
    assert table[empty, "BGR"]["published"] == "0.5"
    ranking = rows(tmp_path / "out" / "color_ranking.csv")
    assert [row["by explanations"] for row in ranking if row["class"] in (never, empty)] == ["undefined"] * 2
    assert "order RGB" in capsys.readouterr().out
    for figure in ("evidence", "agreement", "sheet"):
        with Image.open(tmp_path / "out" / f"color_{figure}.png") as picture:
            assert picture.width > 300


def test_no_image_of_the_classes(photo: PhotoMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = photo("a.png")
    (tmp_path / "images.csv").write_text(f"path,target\n{path.name},0\n")
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                *("bias", "--data.images", str(tmp_path / "images.csv"), "--data.classes", "[3]"),
                *NETWORK,
                *("--output", str(tmp_path / "out")),
            ]
        )
    assert stopped.value.code == 2
    assert "Expected images of the classes 3, but" in capsys.readouterr().err


@pytest.mark.slow
def test_planted_color_is_found(tmp_path: Path) -> None:
    """Both measures put the class that has only a color first, and the one that has only a shape last."""
    torch.save(colored.train(200).state_dict(), tmp_path / "sees.pth")
    colored.write(tmp_path / "images", 16)
    main([*colored.arguments(tmp_path), "--output", str(tmp_path / "out")])
    found = {row["class"]: row for row in rows(tmp_path / "out" / "color_ranking.csv")}
    assert list(found) == ["color", "both", "shape"]
    for measure in ("by explanations", "by interventions"):
        color, both, shape = (float(found[name][measure]) for name in found)
        assert color > both > shape
    assert float(found["color"]["by interventions"]) > 0.8
    assert float(found["shape"]["by interventions"]) < 0.1
    for measure in ("explanations", "interventions"):
        assert float(found["color"][f"{measure} from"]) > float(found["shape"][f"{measure} to"])


@pytest.mark.slow
def test_a_network_that_sees_no_color_is_told_from_one_that_does(tmp_path: Path) -> None:
    torch.save(colored.train(colors=False).state_dict(), tmp_path / "does_not_see.pth")
    colored.write(tmp_path / "images", 16)
    main([*colored.arguments(tmp_path, colors=False), "--output", str(tmp_path / "out")])
    for row in rows(tmp_path / "out" / "color_ranking.csv"):
        assert float(row["by interventions"]) == 0
        assert float(row["explanations from"]) <= 0
        assert float(row["by explanations"]) < 0.1  # 0.05, and the class that a network knows by its color has 0.17


@pytest.mark.slow
def test_school_buses_with_random_weights(photo: PhotoMaker, tmp_path: Path) -> None:
    """The configuration, but for weights and images."""
    settings = yaml.safe_load((ROOT / "configs" / "color_bias_vgg16.yaml").read_text())
    settings["model"]["network"]["init_args"]["weights"] = None
    settings["model"]["classes"] = str(tmp_path / "classes.txt")
    names = load_classifier("packaged_efficientnet_lite0").classes
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    for name in ("school bus", "minivan", "moped"):
        photo(f"images/{name}/0.png", seed=1)
    main(
        [
            *("bias", "--config", str(tmp_path / "c.yaml"), "--data.images", str(tmp_path / "images")),
            *("--explainer.iterations", "2", "--model.classifier.size", "[32, 32]", "--output", str(tmp_path / "out")),
            *("--trainer.accelerator", "cpu"),
        ]
    )
    table = {(row["class"], row["intervention"]): row for row in rows(tmp_path / "out" / "color_interventions.csv")}
    assert table["school bus", "BGR"]["published"] == "0.095"
    assert table["minivan", "BRG"]["published"] == "0.952"
    assert ("moped", "BGR") not in table
    low, high = (float(table["school bus", "BGR"][f"published {end}"]) for end in ("from", "to"))
    assert (low, high) == pytest.approx((0.0377, 0.2207), abs=2e-3), "Wilson's interval of 4 of 42"
    assert table["school bus", "mean of BGR and BRG"]["published from"] == ""
    assert "0.095 [0.038, 0.220]" in (tmp_path / "out" / "color_interventions.md").read_text()
