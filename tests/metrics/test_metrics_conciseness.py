from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics import Conciseness, conciseness_preciseness


def by_the_definition(kept: float, explanation: Tensor, image: Tensor, information: str) -> float:
    """Entry by entry, in float64."""
    amounts = []
    for picture in (explanation, image):
        entries = picture.double().flatten().tolist()
        if information == "l1":
            amounts.append(sum(abs(entry) for entry in entries))
        else:
            total = sum(entry**2 for entry in entries)
            shares = [entry**2 / total for entry in entries]
            amounts.append(-sum(share * math.log(share) for share in shares if share > 0))
    return kept / (amounts[0] / amounts[1])


@pytest.mark.parametrize("information", ["entropy", "l1"])
def test_by_the_definition(information: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 7, 9, generator=generator)
    masks = torch.rand(4, 3, 7, 9, generator=generator) * (torch.rand(4, 3, 7, 9, generator=generator) < 0.3)
    after, before = torch.rand(2, 4, generator=generator)
    found = conciseness_preciseness(after, before, images * masks, images, information)
    for index in range(4):
        kept = float(after[index] / before[index])
        expected = by_the_definition(kept, images[index] * masks[index], images[index], information)
        assert float(found[index]) == pytest.approx(expected, rel=1e-4)
    alone = conciseness_preciseness(after[1:2], before[1:2], (images * masks)[1:2], images[1:2], information)
    torch.testing.assert_close(alone, found[1:2])


def test_pictures_whose_score_is_known() -> None:
    image, half, whole = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4), torch.tensor([0.8])
    half[..., 2:] = 0
    assert conciseness_preciseness(whole, whole, image, image).tolist() == pytest.approx([1])
    assert conciseness_preciseness(whole, whole, half, image, "l1").tolist() == pytest.approx([2])
    assert conciseness_preciseness(whole / 2, whole, half, image, "l1").tolist() == pytest.approx([1])
    # 8 equal entries of 16: log 8 / log 16
    assert conciseness_preciseness(whole, whole, half, image).tolist() == pytest.approx([4 / 3])
    assert conciseness_preciseness(whole, whole, half / 10, image).tolist() == pytest.approx([4 / 3]), (
        "how faint or not"
    )
    for information in ("entropy", "l1"):
        assert conciseness_preciseness(whole, whole, 0 * image, image, information).isnan().all(), "nothing is shown"


def test_mean_over_images() -> None:
    image, scores = torch.ones(3, 1, 4, 4), torch.tensor([0.5, 0.5, 0.5])
    shown = image.clone()
    shown[0, :, :, 2:] = 0
    shown[2] = 0
    metric = Conciseness("l1")
    metric.update(scores, scores, shown, image)
    assert metric.compute().item() == pytest.approx(1.5), "without the one that is undefined"


def test_errors() -> None:
    image, score = torch.ones(1, 3, 4, 4), torch.ones(1)
    with pytest.raises(InputError, match="one of entropy, l1, but got 'l2'"):
        conciseness_preciseness(score, score, image, image, "l2")
    with pytest.raises(InputError, match="one of entropy, l1, but got 'l2'"):
        Conciseness("l2")
    with pytest.raises(
        InputError, match=r"one shape and a score for each, but got \(1,3,4,4\), \(1,3,4,5\) and \(1,\)"
    ):
        conciseness_preciseness(score, score, image, torch.ones(1, 3, 4, 5))
    with pytest.raises(InputError, match=r"but got \(1,3,4,4\), \(1,3,4,4\) and \(2,\)"):
        conciseness_preciseness(torch.ones(2), torch.ones(2), image, image)
