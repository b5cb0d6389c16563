from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from fgvis_lightning import InputError
from fgvis_lightning.data.images import load_image, prepare
from fgvis_lightning.data.photos import FORMATS
from fgvis_lightning.networks.preprocessing import Preprocessing

SMALL = Preprocessing(size=(16, 16), resize=16)

PhotoMaker = Callable[..., Path]


def test_colors_survive_every_mode(photo: PhotoMaker, tmp_path: Path) -> None:
    rgb = Image.open(photo("rgb.png", 32, 32))
    expected = load_image(str(tmp_path / "rgb.png"), SMALL)
    assert expected.dtype == torch.uint8
    assert expected.shape == (3, 16, 16)
    for name, image in {"rgba": rgb.convert("RGBA"), "palette": rgb.quantize(256)}.items():
        image.save(tmp_path / f"{name}.png")
        difference = load_image(str(tmp_path / f"{name}.png"), SMALL).float() - expected.float()
        assert difference.abs().mean() < (0.01 if name == "rgba" else 3)
    for mode in ("L", "I;16", "1", "CMYK"):
        rgb.convert("L" if mode == "I;16" else mode).save(tmp_path / "m.tiff")
        assert load_image(str(tmp_path / "m.tiff"), SMALL).shape == (3, 16, 16)


def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    array = np.full((32, 32), 32768, dtype=np.uint16)
    Image.fromarray(array).save(tmp_path / "deep.png")
    assert load_image(str(tmp_path / "deep.png"), SMALL).unique().tolist() == [128]


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (200, 0, 0, 0)).save(tmp_path / "a.png")
    assert load_image(str(tmp_path / "a.png"), SMALL).unique().tolist() == [255]


def test_exif_orientation(photo: PhotoMaker, tmp_path: Path) -> None:
    image = Image.open(photo("a.png", 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270° to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    turned, upright = (load_image(str(tmp_path / f"{name}.png"), SMALL) for name in ("turned", "upright"))
    assert torch.equal(turned, upright)


def test_exif_orientation_of_bands(photo: PhotoMaker, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo("a.png", 32, 32)).convert("RGBA").save(tmp_path / "turned.png", exif=exif)
    bands = Preprocessing(size=(16, 16), resize=16, mean=(0.5,) * 4, std=(0.5,) * 4)
    file = load_image(str(tmp_path / "turned.png"), bands)
    assert torch.equal(prepare(Image.open(tmp_path / "turned.png"), bands, "the image"), file)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "does not exist"),
        ("text.png", "Pillow does not recognize the format of"),
        ("truncated.jpg", r"truncated\.jpg cannot be decoded"),
        ("folder.png", r"folder\.png is not a regular file"),
        ("pipe.png", r"pipe\.png is not a regular file"),
        ("drawing.png", "Pillow does not recognize the format of"),
        ("whole.jpg/below.png", r"below\.png cannot be read: |does not exist"),
        ("small.png", r"at least half the network's input of 16×16 pixels, but .*small\.png has 7×40.*upscale true"),
    ],
)
def test_images_that_cannot_be_used(name: str, message: str, photo: PhotoMaker, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    whole = photo("whole.jpg", 64, 64).read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    photo("small.png", 7, 40)
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n")
    with pytest.raises(InputError, match=message):
        load_image(str(tmp_path / name), SMALL)
    assert load_image(str(tmp_path / "small.png"), SMALL, upscale=True).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), r"a\.png cannot be read: Permission denied\."),
        (OSError(5, "Input/output error"), r"a\.png cannot be read: Input/output error\."),
        (OSError("broken data stream"), r"a\.png cannot be decoded: broken data stream"),
        (EOFError(), r"a\.png cannot be decoded: EOFError"),
        (IndexError("index out of range"), r"a\.png cannot be decoded: index out of range"),
        (MemoryError(), r"a\.png cannot be decoded: MemoryError"),
    ],
)
def test_whatever_pillow_raises_is_an_input_error(
    error: Exception, message: str, photo: PhotoMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: Image.Image) -> None:
        raise error

    path = photo("a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(InputError, match=f"Expected an image, but .*{message}"):
        load_image(str(path), SMALL)


@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize(
    ("height", "message"),
    [
        (25, None),
        (26, r"26×40 pixels|\(1040 pixels\)"),
        (50, r"50×40 pixels|\(2000 pixels\)"),
        (51, r"\(2040 pixels\)"),
    ],
)
def test_images_of_too_many_pixels(
    action: Any, height: int, message: str | None, photo: PhotoMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(photo("a.png", height, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # above, Pillow warns; above twice that, it raises
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        if message is None:
            assert load_image(path, SMALL).shape == (3, 16, 16)
            return
        with pytest.raises(InputError, match=rf"at most 0\.001 million .*a\.png is larger: .*({message}).*Scale"):
            load_image(path, SMALL)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert load_image(path, SMALL).shape == (3, 16, 16), "someone took the limit away"


def test_too_many_pixels_in_several_threads(photo: PhotoMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(photo("large.png", 32, 40)), str(photo("good.png", 20, 20))] * 50
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    filters = list(warnings.filters)

    def refused(path: str) -> bool:
        try:
            load_image(path, SMALL)
        except InputError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(refused, paths)) == [True, False] * 50
    assert list(warnings.filters) == filters, "they are the whole process's"


@pytest.mark.parametrize("size", [(48, 96), (96, 48), (30, 300)])
def test_a_crop_of_another_aspect_is_covered(size: tuple[int, int], photo: PhotoMaker, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    found = load_image(str(tmp_path / "white.png"), Preprocessing(size=size, resize=min(size)), upscale=True)
    assert found.shape == (3, *size)
    assert (found == 255).all()


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_gray_of_16_bits_in_either_order_of_bytes(order: str, tmp_path: Path) -> None:
    gray = (np.arange(64 * 64).reshape(64, 64) * 16).astype(order)
    Image.fromarray(gray).save(tmp_path / "gray.tif")
    found = load_image(str(tmp_path / "gray.tif"), Preprocessing(size=(64, 64), resize=64))
    assert np.abs(found[0].numpy().astype(int) - (gray >> 8)).max() <= 1


LEVELS = "values from 0 to 65535, not all below 4096, but it has"


@pytest.mark.parametrize(
    ("kind", "values", "levels", "expected"),
    [
        ("float32", [0, 0.5, 1], None, [0, 128, 255]),
        (
            "float32",
            [0, 0.5, 2],
            None,
            "from 0 to 1, but it has 0 to 2. Set the values of black and white, e.g. ",
        ),
        ("float32", [0, 100, 200], (0, 200), [0, 128, 255]),
        ("float32", [0, np.nan, 1], None, "Expected finite values"),
        ("float32", [0, np.inf, 1], (0, 1), "Expected finite values"),
        ("uint16", [0, 32768, 65535], None, [0, 128, 255]),
        ("uint16", [0, 100, 4095], None, f"{LEVELS} 0 to 4095. Set the values of black and white, e.g. --model.clas"),
        ("uint16", [0, 2048, 4095], (0, 4095), [0, 128, 255]),
        ("uint16", [0, 0, 0], None, [0, 0, 0]),
        ("int16", [-1024, 0, 3071], None, f"{LEVELS} -1024 to 3071. Set .*levels \\[-1024, 3071\\]"),
        ("int16", [-1024, 0, 1024], (-1000, 1000), [0, 128, 255]),
        ("int32", [0, 40000, 65535], None, [0, 156, 255]),
        ("int32", [0, 1, 2**20], None, f"{LEVELS} 0 to 1.04858e"),
    ],
)
def test_levels(
    kind: str, values: list[float], levels: tuple[float, float] | None, expected: list[int] | str, tmp_path: Path
) -> None:
    """Three gray stripes in a TIFF."""
    path = str(tmp_path / "gray.tif")
    array = np.array(values, dtype=kind).repeat(16)[:, None].repeat(48, 1)
    if array.dtype == np.int16:  # which Pillow reads and does not write: 65536 more, and the tag of signed numbers
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[339] = 2
        Image.fromarray(array.view(np.uint16)).save(path, tiffinfo=tags)
    else:
        Image.fromarray(array).save(path)
    preprocessing = Preprocessing(size=(48, 48), resize=48, levels=levels)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            load_image(path, preprocessing)
    else:
        assert load_image(path, preprocessing)[0, ::16, 0].tolist() == expected


@pytest.mark.parametrize("levels", [(1, 1), (5, 2), (0, 1, 2), (float("nan"), 1), (0, float("inf"))])
def test_levels_that_cannot_be(levels: Any) -> None:
    with pytest.raises(InputError, match="Expected levels to be black and a larger white"):
        Preprocessing(levels=levels)


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of metadata and of formats
@pytest.mark.parametrize("kind", ["random bytes", *sorted(set(FORMATS) & Image.SAVE.keys())])
def test_damaged_files_of_every_format_are_images_or_input_errors(kind: str, tmp_path: Path) -> None:
    """Cut off, or with some bits flipped."""
    generator, path = np.random.default_rng(0), tmp_path / "a.png"
    data = generator.bytes(4000)
    if kind != "random bytes":
        picture = Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        for mode in ("RGB", "P", "L", "1"):
            try:
                picture.convert(mode).save(path, kind)
                break
            except (OSError, ValueError):
                continue
        data = path.read_bytes()
    for _ in range(40):
        damaged = bytearray(data[: generator.integers(1, len(data) + 1)])
        for place in generator.integers(0, len(damaged), generator.integers(0, 4)):
            damaged[place] ^= 1 << generator.integers(0, 8)
        path.write_bytes(damaged)
        with suppress(InputError):
            assert load_image(str(path), SMALL, upscale=True).shape == (3, 16, 16)
