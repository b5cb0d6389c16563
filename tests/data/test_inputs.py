"""What `explain` takes for images and targets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy_networks import Tiny

from fgvis_lightning import InputError, explain, load_explanation
from fgvis_lightning.data.inputs import as_images, as_targets
from fgvis_lightning.networks.load import load_classifier

CLASSIFIER = load_classifier(Tiny(), size=(16, 16), classes=["ant", "bee", "cat", "dog", "eel"])
PREPROCESSING = CLASSIFIER.preprocessing


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, [-1, -1]),
        (2, [2, 2]),
        ("dog", [3, 3]),
        (torch.tensor(1), [1, 1]),
        (torch.tensor([0, 4]), [0, 4]),
        ([0, 4], [0, 4]),
        (("ant", 4), [0, 4]),
        (np.array([1, 2]), [1, 2]),
        ([np.int64(1), torch.tensor(2)], [1, 2]),
        (np.array(["dog", "ant"]), [3, 0]),
    ],
)
def test_targets_that_can_be_meant(targets: Any, expected: list[int]) -> None:
    assert as_targets(targets, 2, CLASSIFIER) == expected


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1], r"Expected 2 targets, class indices from 0, but got \[1\]"),
        ([1, -1], "Expected 2 targets, class indices from 0"),
        (-2, "class indices from 0"),
        (1.5, "Expected class indices or names as targets, but got 1.5"),
        (True, "but got True"),
        (torch.tensor([0.0, 1.0]), r"but got Tensor of shape \(2,\) and type torch.float32"),
        (torch.tensor([[0, 1]]), r"of shape \(1, 2\)"),
        (np.array([[0], [1]]), r"of shape \(2, 1\)"),
        ([torch.tensor([0, 1]), 1], "class indices or names"),
        (np.array([True, False]), "type bool"),
        ([0, None], "class indices or names"),
        ({"a": 1}, "class indices or names"),
        ("wolf", "Expected the name of one of 5 classes, but got 'wolf'"),
        ([], "Expected 2 targets|Expected class indices"),
    ],
)
def test_targets_that_cannot(targets: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_targets(targets, 2, CLASSIFIER)


def test_images_that_can_be_meant(photo: Callable[..., Path]) -> None:
    path = photo("a.png")
    exact = as_images(path, PREPROCESSING)
    assert exact.shape == (1, 3, 16, 16)
    for given in (str(path), [path], Image.open(path), [Image.open(path)]):
        assert torch.equal(as_images(given, PREPROCESSING), exact)
    whole = (exact * 255).round().byte()
    for tensor in (exact, exact[0], whole, whole[0], exact.clone().requires_grad_()):
        found = as_images(tensor, PREPROCESSING)
        assert torch.equal(found, exact)
        assert not found.requires_grad


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 16, 16)), r"Expected images as a tensor .*, but got ndarray of shape \(1, 3, 16, 16\)"),
        ([], "Expected images as a tensor"),
        ([torch.zeros(3, 16, 16)], "a list with Tensor of shape"),
        (torch.zeros(0, 3, 16, 16), r"but got \(0, 3, 16, 16\)"),
        (torch.zeros(1, 1, 16, 16), r"of shape \(B,3,H,W\) or \(3,H,W\), but got \(1, 1, 16, 16\)"),
        (torch.full((3, 16, 16), float("nan")), r"Expected images in \[0,1\]"),
        (torch.full((3, 16, 16), 200.0), "Divide them by 255"),
        (torch.full((3, 16, 16), -1.0), "Pass mean and std"),
        ("missing.png", "the file missing.png does not exist"),
        (Image.new("RGB", (4, 4)), "at least half the network's input of 16×16 pixels, but the image has 4×4"),
    ],
)
def test_images_that_cannot(images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_images(images, PREPROCESSING)


def test_the_message_has_the_shape_that_was_given() -> None:
    with pytest.raises(InputError, match=r"Expected images of shape \(B,3,H,W\) or \(3,H,W\), but got \(8, 16, 16\)"):
        as_images(torch.rand(8, 16, 16), PREPROCESSING)


def test_explain_takes_a_path_and_a_name(photo: Callable[..., Path]) -> None:
    options: dict[str, Any] = {"iterations": 2, "seeds": 1, "size": (16, 16), "classes": list(CLASSIFIER.classes)}
    found = explain(Tiny(), photo("a.png"), "dog", **options)
    assert found.mask.shape == (1, 3, 16, 16)
    assert found.targets.tolist() == [3]


def test_a_saved_explanation_of_a_path_finds_its_image(
    photo: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"iterations": 2, "seeds": 1, "size": (16, 16), "normalize": ((0.4,) * 3, (0.5,) * 3)}
    path = photo("a.png")
    monkeypatch.chdir(path.parent)
    for images in (Path(path.name), [str(path)]):
        found = explain(Tiny(), images, [0, 1], **options)
        found.save(tmp_path / "a.safetensors", 1)
        monkeypatch.chdir(tmp_path)
        loaded = load_explanation(tmp_path / "a.safetensors")
        assert loaded == found[1]
        assert (loaded.overlay(), loaded.to_pil()) == (found.overlay(1), found.to_pil(1))
    several = explain(Tiny(), [path, path], **options)
    assert several.metadata == {}
