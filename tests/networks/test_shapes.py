"""Networks of signals and volumes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import CPU
from torch import Tensor, nn

from fgvis_lightning import DefendedCNN, explain, load_explanations
from fgvis_lightning.cli import main
from fgvis_lightning.errors import InputError
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
    with pytest.raises(InputError, match=r"\(B,1,T\) or \(1,T\), but got \(2, 40\)"):
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
