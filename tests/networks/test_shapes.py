"""Networks of other shapes: signals, volumes, dense outputs, and further inputs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import CPU
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fgvis_lightning import DefendedCNN, explain, load_explanations
from fgvis_lightning.cli import main
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.reduce import SegmentationLogits, looking, pixel_log_odds
from fgvis_lightning.results.notebook import draw
from fgvis_lightning.results.shapes import middle_slices

QUICK: dict[str, Any] = {"iterations": 20, "seeds": 1, "accelerator": "cpu", "patience": 0}


def fit(output: Path, folder: Path, *network: str) -> None:
    few = ["--model.iterations", "2", "--model.seeds", "1"]
    main(["fit", *network, *few, *CPU, "--output", str(output), "--data.images", str(folder)])


class Where(nn.Module):
    """One convolution of any dimension; class 1 is what is bright in the first half of the last dimension."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
        self.conv = kind(1, 1, 1, bias=False)
        nn.init.constant_(self.conv.weight, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).relu()
        first = h[..., : h.shape[-1] // 2].flatten(1).mean(1)
        return torch.stack([0 * first, 8 * first - 2], 1)


class Pixels(nn.Module):
    """A segmentation network that looks at each pixel alone: class k is channel k."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.conv.weight = nn.Parameter(torch.eye(3)[:, :, None, None])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": 4 * self.conv(x).relu()}


class WithAge(nn.Module):
    """Takes an age (B,1), too, which its second class goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor, age: Tensor, scale: float = 100.0) -> Tensor:
        h = self.conv(x).relu().mean((1, 2, 3))
        return torch.stack([h, age[:, 0] / scale], 1)


def seen_by(network: nn.Module, x: Tensor, target: int) -> Tensor:
    with torch.no_grad():
        return network(x).softmax(1)[:, target]


@pytest.mark.parametrize(("dimensions", "shape"), [(1, (40,)), (3, (4, 5, 12))])
@pytest.mark.parametrize("game", ["preservation", "deletion"])
def test_the_evidence_of_signals_and_volumes_is_where_it_must_be(
    dimensions: int, shape: tuple[int, ...], game: Any
) -> None:
    x = 1 + torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    network = Where(dimensions)
    found = explain(network, x, 1, game=game, **QUICK)
    assert found.mask.shape == x.shape
    assert found.saliency().shape == (2, *shape)
    half = shape[-1] // 2
    share = found.evidence[..., :half].flatten(1).sum(1) / found.evidence.flatten(1).sum(1)
    assert (share >= 0.95).all()
    torch.testing.assert_close(found.score_image, seen_by(network, x, 1))
    torch.testing.assert_close(found.score_explanation, seen_by(network, x * found.mask, 1))
    one = explain(partial(network), x[0], 1, game=game, **QUICK)
    assert one.mask.shape == (1, 1, *shape)


@pytest.mark.parametrize("reference", ["blurred", "noise", "black"])
@pytest.mark.parametrize(("dimensions", "shape"), [(1, (40,)), (3, (4, 5, 12))])
def test_every_reference_takes_them(dimensions: int, shape: tuple[int, ...], reference: str) -> None:
    x = torch.rand(1, 1, *shape)
    assert explain(Where(dimensions), x, 1, reference=reference, **QUICK).mask.shape == x.shape


def test_blur_keeps_what_is_constant_and_lowers_a_peak() -> None:
    from fgvis_lightning.method.games import blurred

    x = torch.ones(1, 2, 6, 7, 50)
    blur = blurred(x, x, torch.Generator())
    assert blur is not None
    torch.testing.assert_close(blur, x)
    x[0, 0, 3, 3, 25] = 9
    assert 1 < blurred(x, x, torch.Generator())[0, 0, 3, 3, 25] < 9


def test_signals_and_volumes_are_drawn(tmp_path: Path) -> None:
    signal = explain(Where(1), torch.rand(1, 40), 1, **QUICK)
    width, height = draw(signal).size
    assert width == 900
    assert 100 < height < 300
    assert signal._repr_png_() is not None
    volume = explain(Where(3), torch.rand(1, 4, 5, 12), 1, **QUICK)
    assert draw(volume).width > 900
    (tmp_path / "explanations").mkdir()
    signal.save(tmp_path / "explanations" / "signal.safetensors", 0, {})
    (again,) = load_explanations(tmp_path)
    torch.testing.assert_close(again.mask, signal.mask)


def test_middle_slices_are_those() -> None:
    volume = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    picture = middle_slices(volume, torch.full((2, 1, 1), -1.0))
    assert picture.shape == (2, 4, 5 + 5 + 4)
    torch.testing.assert_close(picture[:, :, :5], volume[:, 1])
    torch.testing.assert_close(picture[:, :3, 5:10], volume[:, :, 2])
    torch.testing.assert_close(picture[:, :3, 10:], volume[..., 2])
    assert (picture[:, 3, 5:] == -1).all()


def test_another_shape_is_told_apart(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"\(B,1,T\) or \(1,T\), but got \(1, 2, 40\)"):
        explain(Where(1), torch.rand(2, 40), **QUICK)
    network = ["--model.network.class_path=test_shapes.Where", "--model.network.init_args.dimensions=1"]
    with pytest.raises(SystemExit):
        fit(output, folder, *network, "--model.classifier.size=[16,16]")
    assert "size of 1 for Where, whose first convolution takes signals (B,C,T), but" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fit(output, folder, *network, "--data.upscale=true")
    assert "to take images (B,C,H,W), but it takes signals (B,C,T). Use explain()" in capsys.readouterr().err


LAYERS: list[tuple[int, nn.Module]] = [
    *((1, layer) for layer in (nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveMaxPool1d(3), nn.ReflectionPad1d(1))),
    *((1, nn.Upsample(scale_factor=2, mode=mode)) for mode in ("nearest", "nearest-exact", "linear")),
    *((3, layer) for layer in (nn.MaxPool3d(2), nn.AvgPool3d(2), nn.AdaptiveMaxPool3d(2), nn.AdaptiveAvgPool3d(2))),
    *((3, layer) for layer in (nn.ReflectionPad3d(1), nn.ReplicationPad3d(1), nn.ConvTranspose3d(2, 2, 2))),
    *((3, nn.Upsample(scale_factor=2, mode=mode)) for mode in ("nearest", "nearest-exact", "trilinear")),
]


@pytest.mark.parametrize(("dimensions", "layer"), LAYERS, ids=lambda value: str(value).partition("(")[0])
def test_the_defense_knows_their_layers(dimensions: int, layer: nn.Module) -> None:
    x = torch.rand(2, 2, *[6] * dimensions)
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dimensions](2, 2, 3, padding=1)
    network = nn.Sequential(conv, nn.ReLU(), layer, nn.Flatten(), nn.LazyLinear(3)).eval()
    network(x)
    defended = DefendedCNN(network)
    torch.testing.assert_close(defended.record(x), network(x).detach())
    assert defended.coverage.gated == {"relu": 1}


# --- dense outputs ---


def picture_of_two() -> Tensor:
    """Green in the left half, blue in the right, a little red everywhere."""
    image = torch.full((1, 3, 8, 12), 0.1)
    image[:, 1, :, :6] = 0.9
    image[:, 2, :, 6:] = 0.8
    return image


def test_log_odds_of_pixels_are_exact() -> None:
    z = 40 * torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    others = torch.stack([z[:, [j for j in range(5) if j != k]].logsumexp(1) for k in range(5)], 1)
    torch.testing.assert_close(pixel_log_odds(z), z - others)
    z = torch.tensor([[1000.0, 0.0, -1000.0]]).requires_grad_()
    pixel_log_odds(z).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("game", ["preservation", "deletion"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_evidence_of_a_segmented_class_is_in_its_region(game: Any, seeds: int) -> None:
    quick = {**QUICK, "seeds": seeds, "normalize": ((0.0,) * 3, (1.0,) * 3)}
    image = picture_of_two()
    found = explain(Pixels(), image.expand(2, -1, -1, -1), [1, 2], reduce=SegmentationLogits(), game=game, **quick)
    green, blue = found.evidence.mean(1)
    assert green[:, :6].sum() >= 0.99 * green.sum() > 0
    assert blue[:, 6:].sum() >= 0.99 * blue.sum() > 0
    # The score is the sigmoid of the mean log-odds where the class is predicted on the image.
    for target, columns, row in ((1, slice(0, 6), 0), (2, slice(6, 12), 1)):
        for x, score in ((image, found.score_image), (image * found.mask[row], found.score_explanation)):
            p = Pixels()(x)["out"].softmax(1)[:, target, :, columns]
            torch.testing.assert_close(score[row], (p / (1 - p)).log().mean().sigmoid())


def test_a_given_region_is_the_one(tmp_path: Path) -> None:
    picture = np.zeros((16, 24), np.uint8)
    picture[:8, :8] = 255
    Image.fromarray(picture).save(tmp_path / "region.png")
    quick = {**QUICK, "normalize": ((0.0,) * 3, (1.0,) * 3)}
    for region in (tmp_path / "region.png", torch.from_numpy(picture / 255)):
        options = {**quick, "reduce": SegmentationLogits(region), "classes": ["red", "green", "blue"]}
        found = explain(Pixels(), picture_of_two(), "green", **options)
        assert found.evidence[..., :4, :4].sum() >= 0.99 * found.evidence.sum() > 0


def test_a_class_that_is_nowhere_is_judged_where_it_is_likeliest() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 0] = 5
    logits[0, 2, 1, 1] = 2
    scores = SegmentationLogits()(logits)
    torch.testing.assert_close(scores[0, 2], pixel_log_odds(logits)[0, 2, 1, 1])


def test_regions_are_those_of_the_rows_images() -> None:
    reduce = SegmentationLogits()
    first, other = torch.zeros(2, 2, 2, 2), torch.zeros(4, 2, 2, 2)
    first[0, 0], first[1, 1] = 3, 3
    other[:, 1] = 1
    with looking(reduce):
        reduce(first)
    scores = reduce(other)  # two rows for each image
    torch.testing.assert_close(scores[:2, 0], torch.full((2,), -1.0))
    torch.testing.assert_close(scores[2:, 1], torch.full((2,), 1.0))
    with pytest.raises(InputError, match="a whole number of rows for each of 2 images, but got 3"):
        reduce(other[:3])


@pytest.mark.parametrize(
    ("region", "message"),
    [("missing.png", "a picture of a region, but missing.png"), (torch.zeros(2, 2), "values above 0.5")],
)
def test_what_is_no_region_is_refused(region: str | Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SegmentationLogits(region)


def mean_logits(outputs: dict[str, Tensor]) -> Tensor:
    """Class scores of a user's own: the mean over the picture."""
    return outputs["out"].mean((2, 3))


def test_a_function_of_ones_own_reduces(folder: Path, output: Path) -> None:
    network = ["--model.network.class_path=test_shapes.Pixels", "--model.classifier.size=[16,16]"]
    fit(output, folder, *network, "--model.reduce=test_shapes.mean_logits")
    for found in load_explanations(output):
        assert found.metadata["network"] == "Pixels (mean_logits)"
        assert '"task": "multiclass"' in found.metadata["settings"]


def test_segmentation_from_the_command_line(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = ["--model.network.class_path=test_shapes.Pixels", "--model.classifier.size=[16,16]"]
    reduce = "--model.reduce=fgvis_lightning.networks.reduce.SegmentationLogits"
    fit(output, folder, *network, reduce)
    assert "task: multilabel" in capsys.readouterr().out
    assert all('"task": "multilabel"' in found.metadata["settings"] for found in load_explanations(output))


def test_dense_outputs_without_a_function_are_refused() -> None:
    with pytest.raises(InputError, match=r"Choose one with output|logits of shape"):
        explain(Pixels(), picture_of_two(), 1, **QUICK)
    with pytest.raises(InputError, match="Leave reduce out"):
        SegmentationLogits()(torch.zeros(1, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_torchvision_segments(name: str) -> None:
    from torchvision.models import segmentation

    torch.manual_seed(0)
    network = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=3).eval()
    image = torch.rand(1, 3, 48, 48)
    found = explain(network, image, 1, reduce=SegmentationLogits(), **{**QUICK, "iterations": 3})
    assert found.coverage is not None
    assert not found.coverage.gate_free
    with torch.no_grad():
        mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        logits = network((image - mean) / std)["out"]
    region = F.one_hot(logits.argmax(1), 3)[..., 1].bool()
    odds = pixel_log_odds(logits)[:, 1]
    expected = odds[region].mean() if region.any() else odds.max()
    torch.testing.assert_close(found.score_image, expected.sigmoid()[None], atol=1e-4, rtol=0)


# --- further inputs ---


def test_further_inputs_are_fixed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, image = WithAge().eval(), torch.rand(3, 3, 8, 8)
    np.save(tmp_path / "age.npy", np.array([63.0]))
    with torch.no_grad():
        mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        p = network((image - mean) / std, torch.full((3, 1), 63.0)).softmax(1)[:, 0]
    bound = partial(network, age=torch.tensor([[63.0]]), scale=100.0)
    for found in (
        explain(bound, image, 0, **QUICK),
        explain(network, image, 0, inputs={"age": [63]}, **QUICK),
        explain(network, image, 0, inputs={"age": str(tmp_path / "age.npy")}, **QUICK),
    ):
        torch.testing.assert_close(found.score_image, p)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "it has further inputs .*--model.classifier.inputs, or with functools.partial"),
        ({"inputs": {"age": "missing.npy"}}, "the input age as numbers or an .npy file, but got 'missing.npy'"),
    ],
)
def test_missing_inputs_are_pointed_out(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain(WithAge(), torch.rand(1, 3, 8, 8), 0, **QUICK, **given)
    with pytest.raises(InputError, match="by name, but got some by position"):
        explain(partial(WithAge(), torch.rand(1, 3, 8, 8)), torch.rand(1, 3, 8, 8), 0, **QUICK)
