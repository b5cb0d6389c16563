"""Networks with dense outputs, for segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_shapes import QUICK, fit
from torch import Tensor, nn
from torch.nn import functional as F

from fgvis_lightning import explain, load_explanations
from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.reduce import SegmentationLogits, looking, pixel_log_odds


class Pixels(nn.Module):
    """A segmentation network that looks at each pixel alone: class k is channel k."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.conv.weight = nn.Parameter(torch.eye(3)[:, :, None, None])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": 4 * self.conv(x).relu()}


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
    network = ["--model.network.class_path=test_dense.Pixels", "--model.classifier.size=[16,16]"]
    fit(output, folder, *network, "--model.reduce=test_dense.mean_logits")
    for found in load_explanations(output):
        assert found.metadata["network"] == "Pixels (mean_logits)"
        assert '"task": "multiclass"' in found.metadata["settings"]


def test_segmentation_from_the_command_line(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = ["--model.network.class_path=test_dense.Pixels", "--model.classifier.size=[16,16]"]
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


def test_one_channel_of_segmentation_is_two_classes() -> None:
    """A sigmoid at each pixel, as most networks of medical segmentation have it."""
    first, last = nn.Conv2d(3, 1, 1, bias=False), nn.Conv2d(1, 1, 1)
    first.weight = nn.Parameter(torch.tensor([0.0, 1.0, 0.0])[None, :, None, None])
    last.weight, last.bias = nn.Parameter(torch.full((1, 1, 1, 1), 10.0)), nn.Parameter(torch.tensor([-2.0]))
    network = nn.Sequential(first, nn.ReLU(), last)
    image, z = picture_of_two(), network(picture_of_two())
    as_it_is: Any = {**QUICK, "normalize": ((0.0,) * 3, (1.0,) * 3), "iterations": 60, "reduce": SegmentationLogits()}
    found = explain(network, image, 1, **as_it_is)
    torch.testing.assert_close(found.score_image, z[..., :6].mean().sigmoid()[None].detach())
    assert found.evidence[0, 1, :, :6].sum() > 0.99 * found.evidence.sum()
    other = explain(network, image, 0, **as_it_is)
    torch.testing.assert_close(other.score_image, (-z[..., 6:]).mean().sigmoid()[None].detach())
