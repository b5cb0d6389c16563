from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fgvis_lightning import Explanation, InputError, load_explanation, load_explanations
from fgvis_lightning.games import GAMES
from fgvis_lightning.names import slug
from fgvis_lightning.store import load_metadata, save_tensor, write_whole

METADATA = {
    "image": "a.png",
    "target": "3",
    "name": "bus",
    "game": "deletion",
    "score_image": "0.75",
    "score_explanation": "0.125",
    "sparsity": "0.5",
    "settings": '{"game": "deletion", "lam": "auto"}',
    "fingerprint": "abc",
}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "explanations").mkdir()
    return tmp_path


def save(output: Path, id: str, mask: torch.Tensor | None = None, **changes: str) -> Path:
    path = output / "explanations" / f"{id}.safetensors"
    save_tensor(path, "mask", torch.rand(3, 4, 5).half() if mask is None else mask.half(), {**METADATA, **changes})
    return path


def test_round_trip(output: Path) -> None:
    mask = torch.rand(3, 4, 5).half().float()
    loaded = load_explanation(save(output, "a@bus", mask))
    assert torch.equal(loaded.mask, mask[None])
    assert (loaded.targets.tolist(), loaded.score_image.tolist(), loaded.score_explanation.tolist()) == (
        [3],
        [0.75],
        [0.125],
    )
    assert loaded.ids == ("a@bus",)
    assert loaded.metadata["image"] == "a.png"
    (output / "plain").touch()
    assert (output / "explanations" / "a@bus.safetensors").stat().st_mode == (output / "plain").stat().st_mode
    (output / "plain").unlink()
    assert [path.name for path in output.rglob("*") if path.is_file()] == ["a@bus.safetensors"], (
        "a file was left behind"
    )


def test_views_of_a_mask() -> None:
    mask = torch.tensor([[1.0, 0.5], [0.0, 1.0]]).expand(1, 3, 2, 2)
    scores = torch.tensor([0.5])
    kept, gone = (Explanation(mask, torch.tensor([0]), scores, scores, GAMES[g]) for g in ("generation", "deletion"))
    assert kept.saliency().tolist() == [[[1.0, 0.5], [0.0, 1.0]]]
    assert gone.saliency().tolist() == [[[0.0, 0.5], [1.0, 0.0]]]
    assert kept.sparsity.tolist() == [0.375]
    assert gone.sparsity.tolist() == [0.625]
    both = Explanation.concatenate([kept, kept])
    assert (len(both), both.mask.shape, both.feasible) == (2, (2, 3, 2, 2), None)


def test_folder_in_the_order_of_ids(output: Path) -> None:
    for id in ("b@bus", "a@bus", "c@bus"):
        save(output, id)
    (output / "explanations" / ".a@bus.safetensors.17.tmp").write_bytes(b"half")
    for folder in (output, output / "explanations"):
        loaded = load_explanations(folder)
        assert [e.ids[0] for e in loaded] == ["a@bus", "b@bus", "c@bus"]
        assert [e.ids[0] for e in loaded[1:]] == ["b@bus", "c@bus"]


@pytest.mark.parametrize("content", [b"", b"not a safetensors file at all, but long enough to be one", None])
def test_damaged_file_is_named(output: Path, content: bytes | None) -> None:
    path = save(output, "a@bus")
    path.write_bytes(path.read_bytes()[:-7] if content is None else content)
    with pytest.raises(InputError, match=r"a@bus\.safetensors is damaged or of another kind .* Run the same command"):
        load_explanation(path)


def test_missing_and_foreign_files(output: Path) -> None:
    with pytest.raises(InputError, match="Expected an explanation file, but there is none at"):
        load_explanation(output / "nothing.safetensors")
    with pytest.raises(InputError, match="there are none in"):
        load_explanations(output)
    save_tensor(output / "foreign.safetensors", "mask", torch.rand(3, 2, 2).half(), {})
    with pytest.raises(InputError, match="of another kind"):
        load_explanation(output / "foreign.safetensors")


@pytest.mark.parametrize("at", [200, -10])
def test_a_flipped_bit_is_found(output: Path, at: int) -> None:
    """In the metadata and in the mask, both of which the file format itself would let pass."""
    path = save(output, "a@bus")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged or of another kind .* Run the same command again"):
        load_explanation(path)


def test_equal_explanations_are_equal_files(output: Path) -> None:
    mask = torch.rand(3, 4, 5)
    first, second = save(output, "a@bus", mask).read_bytes(), save(output, "b@bus", mask).read_bytes()
    assert first == second
    assert load_metadata(output / "explanations" / "b@bus.safetensors")["name"] == "bus"


def test_failed_write_leaves_nothing(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(output, "a@bus")
    before = path.read_bytes()

    def full(number: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(output, "a@bus")
    with pytest.raises(OSError, match="No space left"):
        write_whole(output / "summary.csv", b"text")
    assert [p.name for p in output.rglob("*") if p.is_file()] == ["a@bus.safetensors"]
    assert path.read_bytes() == before


def test_slug() -> None:
    assert slug("jack-o'-lantern (2)") == "jack_o_lantern_2"
    assert slug("../é x.y") == "é_x.y"
    assert slug("***") == "_"
    assert len(slug("語" * 100).encode()) == 60
    assert slug("語" * 100) == "語" * 20
