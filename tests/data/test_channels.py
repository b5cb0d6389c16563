"""Gray, multispectral and other images: read, explained where the evidence is known, and drawn."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor, rgb_to_grayscale

from fgvis_lightning import InputError, explain, load_explanations
from fgvis_lightning.cli import main
from fgvis_lightning.data.images import load_image
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.networks.preprocessing import Preprocessing
from fgvis_lightning.results.figures import as_rgb, each_channel, explanation_panel
from fgvis_lightning.results.notebook import draw

SIDE = 12


class Bands(nn.Module):
    """Class k's logit is 30 times the mean of band k in the left half of the image; there are as many classes."""

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(count, count, 1)
        self.head = nn.Linear(2 * count, count, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(count)[:, :, None, None])
            self.conv.bias.fill_(0)  # type: ignore[union-attr]
            self.head.weight.copy_(torch.eye(count).repeat_interleave(2, 1) * torch.tensor([30.0, 0]).repeat(count))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(self.conv(x).relu(), (1, 2)).flatten(1))


def bands(count: int, strong: int) -> Tensor:
    """Noise (C,H,W) with a strong band."""
    image = 0.1 * torch.rand(count, SIDE, SIDE, generator=torch.Generator().manual_seed(strong))
    image[strong] += 0.5
    return image


def at(count: int, **options: Any) -> Preprocessing:
    return Preprocessing((SIDE, SIDE), SIDE, mean=(0.0,) * count, std=(1.0,) * count, **options)


@pytest.mark.parametrize("count", [4, 6])
def test_evidence_is_in_the_band_that_decides(count: int) -> None:
    images = torch.stack([bands(count, strong) for strong in range(count)])
    found = explain(Bands(count), images, normalize=((0.0,) * count, (1.0,) * count), iterations=40, seeds=1)
    assert found.mask.shape == images.shape
    assert found.targets.tolist() == list(range(count))
    assert found.feasible is not None
    assert found.feasible.all()
    for strong, evidence in enumerate(found.evidence):
        assert evidence[strong, :, : SIDE // 2].sum() > 0.95 * evidence.sum()
    panel = explanation_panel(found, 1, images[1], torch.zeros(count, 1, 1), "a class")
    assert f"evidence by channel, 1 to {count}, brightened" in [axes.get_title("left") for axes in panel.axes]


def test_gray_networks_have_gray_masks() -> None:
    network = timm.create_model("resnet10t", in_chans=1, num_classes=3).eval()
    found = explain(network, torch.rand(1, 1, 64, 64), iterations=2, seeds=1)
    assert found.mask.shape == (1, 1, 64, 64)
    classifier = load_classifier(network)
    assert classifier.preprocessing.mean == (0.459,)  # 0.299 · 0.485 + 0.587 · 0.456 + 0.114 · 0.406
    assert "as gray" in classifier.described
    with pytest.raises(
        InputError, match=r"Expected images of shape \(B,1,H,W\) or \(1,H,W\), but got \(1, 3, 64, 64\)"
    ):
        explain(network, torch.rand(1, 3, 64, 64), iterations=2)
    six = load_classifier(timm.create_model("resnet10t", in_chans=6, num_classes=3)).preprocessing
    assert six.mean == 2 * (0.485, 0.456, 0.406)
    assert "the network's 6 channels are unknown" in load_classifier(Bands(6)).described


def test_photos_become_gray_by_luma(tmp_path: Path) -> None:
    photo = Image.fromarray(torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8).numpy())
    photo.save(tmp_path / "a.png")
    gray = rgb_to_grayscale(pil_to_tensor(photo)).int()
    read = load_image(str(tmp_path / "a.png"), at(1))
    assert read.shape == (1, SIDE, SIDE)
    assert (read.int() - gray).abs().max() <= 1
    assert torch.equal(load_image(str(tmp_path / "a.png"), at(3, channels="gray")), read.expand(3, -1, -1))
    assert torch.equal(explain_input(photo, 1), read / 255)


def explain_input(image: Any, count: int) -> Tensor:
    from fgvis_lightning.data.inputs import as_images

    return as_images(image, at(count))[0]


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("kind", ["float32", "uint8", "uint16"])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif", "pages.tif"])
def test_files_of_many_channels(tmp_path: Path, suffix: str, kind: str, layout: str) -> None:
    image = bands(6, 2)
    scale = {"float32": 1, "uint8": 255, "uint16": 65535}[kind]
    array = (image * scale).numpy().astype(kind)
    array = array if layout == "first" else np.moveaxis(array, 0, -1)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    elif suffix == ".npz":
        np.savez(path, bands=array)
    elif suffix == ".tif":
        planar = "separate" if layout == "first" else "contig"
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig=planar)
    else:
        with tifffile.TiffWriter(path) as file:
            for page in (image * scale).numpy().astype(kind):
                file.write(page, photometric="minisblack")
    read = load_image(str(path), at(6))
    assert read.dtype == torch.float32
    assert torch.allclose(read, image, atol=1 / scale if scale > 1 else 1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two.npz", r"Expected one array in .*two\.npz, but it has a, b"),
        ("five.npy", r"of 6 channels, but .*five\.npy has 5×12×12"),
        ("both.npy", r"has 6×12×6 in both its first and last dimension"),
        ("objects.npy", r"cannot be decoded: .*[oO]bject"),
        ("words.npy", r"Expected numbers, but .*words\.npy has values of type"),
        ("nan.npy", r"Expected finite values"),
        ("large.npy", r"from 0 to 1, but it has 0 to 700\. Set the values of black and white"),
        ("broken.npy", "cannot be decoded"),
        ("broken.npz", "cannot be decoded"),
        ("broken.tif", "cannot be decoded"),
        ("none.npy", "does not exist"),
        ("rgb.png", r"of 6 channels, but .*rgb\.png has 12×12×3"),
    ],
)
def test_other_files_are_refused_in_a_line(tmp_path: Path, name: str, message: str) -> None:
    arrays = {
        "five": np.zeros((5, 12, 12)),
        "both": np.zeros((6, 12, 6)),
        "objects": np.array([[None] * 2] * 2),
        "words": np.array([[["a"] * 12] * 12] * 6),
        "nan": np.full((6, 12, 12), np.nan),
        "large": np.linspace(0, 700, 6 * 144).reshape(6, 12, 12),
    }
    path = tmp_path / name
    if path.stem in arrays:
        np.save(path, arrays[path.stem])
    elif name == "two.npz":
        np.savez(path, a=np.zeros(1), b=np.zeros(1))
    elif path.stem == "broken":
        path.write_bytes(b"\x93NUMPY nonsense")
    elif name == "rgb.png":
        Image.new("RGB", (SIDE, SIDE)).save(path)
    with pytest.raises(InputError, match=message):
        load_image(str(path), at(6))


def test_channels_that_cannot_be() -> None:
    with pytest.raises(InputError, match="gray, rgb or all, rgb with three of them, but got 'rgb' with 1"):
        at(1, channels="rgb")
    with pytest.raises(InputError, match="value for each channel"):
        load_classifier(Bands(), mean=(0.5,) * 6, std=(0.5,) * 3)


def test_every_channel_is_drawn_for_itself() -> None:
    picture = each_channel(torch.stack([torch.full((SIDE, SIDE), value / 10) for value in range(6)]))
    assert picture.shape == (3, SIDE, SIDE)
    assert [float(picture[0, 4 * row, 4 * column]) for row in range(3) for column in range(3)] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5]
    )


def test_more_bands_than_a_picture_has_room_for_are_drawn_without_it() -> None:
    found = explain(Bands(200), torch.rand(1, 200, SIDE, SIDE), iterations=1, seeds=1)
    assert draw(found).height > 100


def test_chosen_bands_stand_for_red_green_and_blue(tmp_path: Path) -> None:
    np.save(tmp_path / "field.npy", bands(6, 4).numpy())
    network = ["--model.network", "test_channels.Bands", "--model.classifier.size", f"[{SIDE}, {SIDE}]"]
    run = ["fit", *network, "--data.images", str(tmp_path / "field.npy"), "--trainer.accelerator=cpu"]
    run += ["--model.iterations=3", "--model.seeds=1"]
    main([*run, "--output", str(tmp_path / "out"), "--model.classifier.bands=[5,1,2]"])
    (found,) = load_explanations(tmp_path / "out")
    assert found.bands == (5, 1, 2)
    main(["report", str(tmp_path / "out")])
    main([*run, "--output", str(tmp_path / "out")])  # the masks do not depend on it
    image = bands(6, 4)
    torch.testing.assert_close(as_rgb(image, found.bands), image[[4, 0, 1]])
    remembered = explain(Bands(6), image, bands=(5, 1, 2), iterations=2, seeds=1)
    assert draw(remembered).tobytes() != draw(replace(remembered, bands=None)).tobytes()


def test_a_sweep_over_arrays(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for strong in range(3):
        np.save(tmp_path / "in" / f"field {strong}.npy", bands(6, strong).numpy())
    network = ["--model.network", "test_channels.Bands", "--model.classifier.size", f"[{SIDE}, {SIDE}]"]
    network += ["--model.classifier.mean", str([0.0] * 6), "--model.classifier.std", str([1.0] * 6)]
    output = tmp_path / "out"
    run = ["fit", *network, "--data.images", str(tmp_path / "in"), "--output", str(output), "--trainer.accelerator"]
    main([*run, "cpu", "--model.iterations", "30", "--model.seeds", "1", "--tensorboard.every_n_iterations", "10"])
    rows = list(csv.DictReader((output / "summary.csv").read_text().splitlines()))
    assert [(row["target"], row["feasible"]) for row in rows] == [(str(k), "true") for k in range(3)]
    for strong, found in enumerate(load_explanations(output)):
        assert found.evidence[0, strong, :, : SIDE // 2].sum() > 0.9 * found.evidence.sum()
    main(["report", str(output)])
    assert "does not get the size" not in (output / "report.html").read_text()
    main(["evaluate", "--results", str(output), *network, "--output", str(tmp_path / "judged"), "--device", "cpu"])
    table = list(csv.DictReader((tmp_path / "judged" / "evaluation.csv").read_text().splitlines()))
    assert table
    methods = "{gradient: fgvis_lightning.baselines.Gradient}"
    shown = ["--data.images", str(tmp_path / "in"), "--model.classifier.bands", "[6, 4, 1]", "--methods", methods]
    main(["compare", *network, *shown, "--output", str(tmp_path / "both"), "--trainer.accelerator", "cpu"])
    assert (tmp_path / "both" / "crop.png").exists()
