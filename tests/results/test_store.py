from __future__ import annotations

import copy
import hashlib
import json
import os
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fgvis_lightning import Explanation, InputError, load_explanation, load_explanations
from fgvis_lightning.defense.coverage import Coverage, Layer
from fgvis_lightning.method.games import GAMES
from fgvis_lightning.method.storage import rounded
from fgvis_lightning.names import slug
from fgvis_lightning.results.attribution import Attribution
from fgvis_lightning.results.load import load_item, load_with_texts
from fgvis_lightning.results.tensor_files import CHECKSUM, load_metadata, save_tensors, write_whole

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
    mask = torch.rand(3, 4, 5) if mask is None else mask
    save_tensors(path, {"mask": mask.half()}, {**METADATA, **changes})
    return path


def made(game: str, evidence: torch.Tensor) -> Explanation:
    """An explanation that knows all that there is, of images that have this evidence."""
    count, _, height, width = evidence.shape
    return Explanation(
        mask=GAMES[game].evidence(evidence),
        targets=torch.arange(count),
        score_image=torch.rand(count),
        score_explanation=torch.rand(count),
        game=GAMES[game],
        feasible=torch.arange(count) % 2 == 1,
        iterations=torch.arange(count) + 10,
        ranking=torch.rand(count, height, width),
        agreement=torch.linspace(-1, 1, count),
        seeds=6,
        reached=torch.arange(count) - 1,
    )


def test_round_trip(output: Path) -> None:
    mask = torch.rand(3, 4, 5).half().float()
    loaded = load_explanation(path := save(output, "a@bus", mask))
    assert torch.equal(loaded.mask, mask[None])
    item, texts = load_with_texts(path)
    assert item == loaded
    assert {**texts, CHECKSUM: load_metadata(path)[CHECKSUM]} == load_metadata(path)
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


def test_a_map_and_what_its_method_leaves_of_the_image(output: Path) -> None:
    image = torch.rand(2, 3, 4, 5)
    whole = Attribution(torch.rand(2, 4, 5), torch.tensor([1, 2]), torch.tensor([0.25, 0.5]), "left", explanation=image)
    for found in (whole, replace(whole, explanation=None)):
        path = output / "explanations" / "a@bus.safetensors"
        found.save(path, 1, {"image": "a.png"})
        loaded = load_item(path)
        assert isinstance(loaded, Attribution)
        assert torch.equal(loaded.map, whole.map[1:])
        assert (loaded.method, loaded.targets.tolist(), loaded.score_image.tolist()) == ("left", [2], [0.5])
        if found.explanation is None:
            assert loaded.explanation is None
        else:
            assert loaded.explanation is not None
            torch.testing.assert_close(loaded.explanation, image[1:], rtol=0, atol=2.5e-4)
        with safe_open(path, framework="pt") as file:
            names = {"map"} | ({"explanation"} if found.explanation is not None else set())
            assert set(file.keys()) == names


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


@pytest.mark.parametrize("game", GAMES)
def test_faint_evidence_is_kept(output: Path, game: str) -> None:
    """Where evidence is 1 - mask, a mask in float16 would lose it; odd sizes, so that tensors begin at odd places."""
    evidence = torch.rand(1, 3, 3, 5)
    evidence[0, :, 0] = torch.tensor([0, 1e-4, 3e-6, 0.4999, 1])
    explanation, path = made(game, evidence), output / "explanations" / "a@bus.safetensors"
    explanation.save(path, 0, {})
    loaded = load_explanation(path)
    torch.testing.assert_close(loaded.evidence, evidence, rtol=5e-4, atol=6e-8)  # float16's, and the least of them
    assert loaded.evidence[0, :, 0, 1:3].min() > 2.9e-6
    assert torch.equal(loaded.mask, rounded(explanation.mask, GAMES[game]))
    with safe_open(path, framework="pt") as file:
        assert {name: file.get_tensor(name).dtype for name in file.keys()} == {  # noqa: SIM118, which is no dict
            "mask": torch.float16 if GAMES[game].keeps else torch.float32,
            "ranking": torch.float32,
        }


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("game", GAMES)
def test_what_is_rounded_is_the_evidence(game: str, kind: torch.dtype) -> None:
    mask = torch.cat([torch.rand(4000), torch.tensor([0, 1, 1e-7, 1 - 1e-6])]).to(kind)
    result = rounded(mask, GAMES[game])
    assert result.dtype == kind
    evidence = GAMES[game].evidence(mask.double())
    expected = GAMES[game].evidence(evidence.half().double())
    torch.testing.assert_close(result, expected.to(kind), rtol=0, atol=0)
    assert torch.equal(rounded(result, GAMES[game]), result)


def test_all_that_is_known_of_items_is_selected_joined_and_stored(output: Path) -> None:
    explanation = made("preservation", torch.rand(3, 3, 4, 5).half().float())
    names = ("mask", "ranking", "feasible", "iterations", "agreement", "reached")
    whole = {name: getattr(explanation, name) for name in names}
    chosen = explanation.select(torch.tensor([2, 0]))
    joined = Explanation.concatenate([explanation, chosen])
    for name, tensor in whole.items():
        assert torch.equal(getattr(chosen, name), tensor[[2, 0]])
        assert torch.equal(getattr(joined, name), tensor[[0, 1, 2, 2, 0]])
    assert (chosen.seeds, joined.seeds) == (6, 6)
    for index in range(3):
        path = output / "explanations" / f"{index}.safetensors"
        explanation.save(path, index, {"name": "bus"})
        loaded = load_explanation(path)
        for name, tensor in whole.items():
            assert torch.equal(getattr(loaded, name), tensor[index : index + 1]), name
        assert loaded.seeds == 6
        assert loaded == replace(explanation[index], names=("bus",))
        assert loaded.metadata == {}, "all of it are fields"
        says = load_metadata(path)
        assert (says["feasible"], says["reached"]) == (str(index == 1).lower(), str(index - 1))
    none: dict[str, Any] = dict.fromkeys([*names[1:], "seeds"])
    few = replace(explanation, **none)
    assert few.select(torch.tensor([0])).ranking is None
    assert Explanation.concatenate([few, few]).reached is None
    few.save(path, 0, {})
    assert {getattr(load_explanation(path), name) for name in none} == {None}


def test_explanations_are_equal_if_all_results_are() -> None:
    explanation = replace(made("deletion", torch.rand(3, 3, 4, 5)), agreement=torch.tensor([0.5, torch.nan, 1]))
    counts = Counter(relu=2)
    coverage = Coverage(counts, counts, (Layer("relu", "a"), Layer("relu", "b")), closed=torch.rand(3, 2))
    explanation = replace(explanation, coverage=coverage, names=("cat", "dog", "fox"))
    assert explanation == explanation[:] == copy.deepcopy(explanation)
    assert explanation[1] == explanation[1:2] != explanation[0]
    assert explanation[1:].select(torch.tensor([1, 0])) == explanation.select(torch.tensor([2, 1]))
    assert explanation != explanation[:2]
    others: dict[str, Any] = {
        "mask": explanation.mask.double(),
        "targets": explanation.targets + 1,
        "score_image": explanation.score_image + 1e-6,
        "score_explanation": torch.full((3,), torch.nan),
        "game": GAMES["repression"],
        "feasible": None,
        "coverage": replace(coverage, closed=coverage.closed.flip(0)),  # type: ignore[union-attr]
        "iterations": None,
        "ranking": torch.zeros(3, 4, 6),
        "agreement": torch.tensor([0.5, 0.5, 1]),
        "seeds": None,
        "reached": None,
        "highest": torch.rand(3),
        "topped": torch.ones(3, dtype=torch.bool),
        "names": (),
        "bands": (3, 2, 1),
    }
    known: dict[str, Any] = {
        "ids": ("a", "b", "c"),
        "metadata": {"image": "a.png"},
        "images": torch.rand(3, 3, 4, 5),
        "background": torch.rand(3, 1, 1),
        "reread": lambda one: one,
    }
    assert {*others, *known} == {field.name for field in fields(explanation)}
    for name, value in others.items():
        assert replace(explanation, **{name: value}) != explanation, name
    assert replace(explanation, **known) == explanation, "where they are from"
    assert explanation != "cat"
    with pytest.raises(TypeError, match="unhashable"):
        hash(explanation)
    one = Attribution(torch.rand(2, 4, 5), torch.tensor([1, 2]), torch.tensor([0.25, 0.5]), "left")
    assert one == copy.deepcopy(one) != replace(one, map=one.map + 1)


def test_an_explanation_is_saved_by_itself(output: Path) -> None:
    explanation = replace(made("preservation", torch.rand(3, 3, 4, 5).half().float()), names=("cat", "dog", "fox"))
    explanation.save(output / "first.safetensors")
    explanation.save(str(output / "last.safetensors"), -1, {"image": "a.png"})
    assert load_explanation(output / "first.safetensors") == explanation[0]
    loaded = load_explanation(output / "last.safetensors")
    assert (loaded, loaded.names, loaded.metadata) == (explanation[2], ("fox",), {"image": "a.png"})
    loaded.save(output / "again.safetensors")
    again = load_explanation(output / "again.safetensors")
    assert (again, again.metadata) == (loaded, loaded.metadata)
    with pytest.raises(InputError, match=r"Expected a folder for a\.safetensors, but .*nowhere is not one"):
        explanation.save(output / "nowhere" / "a.safetensors")


def test_images_are_joined_where_all_parts_have_them() -> None:
    explanation = made("preservation", torch.rand(2, 3, 4, 5))
    seen = replace(explanation, images=torch.rand(2, 3, 4, 5), background=torch.full((3, 1, 1), 0.25))
    assert seen.images is not None
    joined = Explanation.concatenate([replace(seen, names=("cat", "dog")), seen[1]])
    assert (len(joined), joined.names) == (3, ()), "not all have names"
    assert joined.images is not None
    assert joined.background is not None
    assert torch.equal(joined.images, seen.images[[0, 1, 1]])
    assert torch.equal(joined.background, torch.full((3, 1, 1), 0.25))
    assert Explanation.concatenate([explanation, seen]).images is None
    assert Explanation.concatenate([explanation, seen]).background is None
    others = Explanation.concatenate([seen, replace(seen, background=torch.zeros(3, 1, 1))])
    assert (others.images is not None, others.background) == (True, None)


def test_pixels_are_ranked_by_the_ranking_where_there_is_one() -> None:
    explanation = made("deletion", torch.rand(2, 3, 4, 5))
    assert explanation.saliency() is explanation.ranking
    torch.testing.assert_close(replace(explanation, ranking=None).saliency(), explanation.evidence.mean(1))


def test_files_of_before_are_read(output: Path) -> None:
    """A mask in float16 whatever the game, and a checksum of it and the metadata."""
    mask, path = torch.rand(3, 4, 5).half(), output / "explanations" / "a@bus.safetensors"
    checked = mask.numpy().tobytes() + json.dumps(METADATA, sort_keys=True).encode()
    save_file({"mask": mask}, path, {**METADATA, "checksum": hashlib.sha256(checked).hexdigest()})
    loaded = load_explanation(path)
    assert torch.equal(loaded.mask, mask[None].float())
    assert (loaded.ranking, loaded.feasible, loaded.seeds) == (None, None, None)


def test_folder_in_the_order_of_ids(output: Path) -> None:
    for id in ("b@bus", "a@bus", "c@bus"):
        save(output, id)
    (output / "explanations" / ".a@bus.safetensors.17.tmp").write_bytes(b"half")
    for folder in (output, output / "explanations"):
        loaded = load_explanations(folder)
        assert [e.ids[0] for e in loaded] == ["a@bus", "b@bus", "c@bus"]
        assert [e.ids[0] for e in loaded[1:]] == ["b@bus", "c@bus"]
        assert repr(loaded) == "\n".join(map(repr, loaded))
    (output / "explanations" / "b@bus.safetensors").write_bytes(b"")
    assert repr(load_explanations(output)).splitlines()[1:] == ["b@bus.safetensors cannot be read", repr(loaded[2])]
    for number in range(20):
        save(output, f"d{number}@bus")
    assert repr(load_explanations(output)).splitlines()[20:] == ["… and 3 more"]


@pytest.mark.parametrize("content", [b"", b"not a safetensors file at all, but long enough to be one", None])
def test_damaged_file_is_named(output: Path, content: bytes | None) -> None:
    path = save(output, "a@bus")
    path.write_bytes(path.read_bytes()[:-7] if content is None else content)
    with pytest.raises(InputError, match=r"a@bus\.safetensors is damaged or of another kind .* To compute it again"):
        load_explanation(path)


def test_missing_and_foreign_files(output: Path) -> None:
    with pytest.raises(InputError, match=r"Expected an explanation file, but .* does not exist"):
        load_explanation(output / "nothing.safetensors")
    with pytest.raises(InputError, match="there are none in"):
        load_explanations(output)
    for name, metadata in (("mask", {}), ("ranking", METADATA), ("curves", METADATA)):
        save_tensors(output / "foreign.safetensors", {name: torch.rand(3, 2, 2).half()}, metadata)
        with pytest.raises(InputError, match="of another kind"):
            load_explanation(output / "foreign.safetensors")


@pytest.mark.parametrize("at", [200, -10, -130])
def test_a_flipped_bit_is_found(output: Path, at: int) -> None:
    """In the metadata, in the mask and in the ranking before it, all of which the file format itself would let pass."""
    path = output / "explanations" / "a@bus.safetensors"
    made("deletion", torch.rand(1, 3, 4, 5)).save(path, 0, METADATA)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged or of another kind .* To compute it again"):
        load_explanation(path)


def test_equal_explanations_are_equal_files(output: Path) -> None:
    mask = torch.rand(3, 4, 5)
    first, second = save(output, "a@bus", mask).read_bytes(), save(output, "b@bus", mask).read_bytes()
    assert first == second
    assert load_metadata(output / "explanations" / "b@bus.safetensors")["name"] == "bus"
    again = [output / f"{number}.safetensors" for number in range(6)]
    for path in again:  # metadata are read in another order each time
        load_explanation(output / "explanations" / "a@bus.safetensors").save(path)
    assert len({path.read_bytes() for path in again}) == 1


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


def test_an_explanation_prints_a_line_for_each_item_and_is_indexed() -> None:
    mask = torch.zeros(3, 3, 10, 10)
    mask[1, :, :1] = 0.5
    found = Explanation(
        mask=mask,
        targets=torch.tensor([4, 7, 9]),
        score_image=torch.tensor([0.951, 0.5, 0.25]),
        score_explanation=torch.tensor([0.952, 0.4, 0.125]),
        game=GAMES["preservation"],
        feasible=torch.tensor([True, False, True]),
        names=("espresso", "cup", "moped"),
    )
    lines = repr(found).splitlines()
    assert lines == [
        "espresso 0.951 → 0.952, 0.0 %, reached",
        "cup 0.500 → 0.400, 5.0 %, level missed",
        "moped 0.250 → 0.125, 0.0 %, reached",
    ]
    assert [repr(one) for one in found] == lines
    assert repr(found[-1]) == lines[-1]
    assert repr(found[1:]).splitlines() == lines[1:]
    assert len(found[5:]) == 0
    with pytest.raises(IndexError):
        found[3]
    many = Explanation.concatenate([found] * 8)
    assert repr(many).splitlines()[-1] == "… and 4 more"
    assert many[22].names == ("cup",)
    plain = replace(found, feasible=None, names=())
    assert repr(plain[0]) == "class 4 0.951 → 0.952, 0.0 %"
    whole = replace(found, mask=torch.ones_like(mask), score_image=torch.tensor([1e-4, 1, 0.9999]))
    assert repr(whole).splitlines() == [
        "espresso <0.001 → 0.952, 100.0 %, whole image",
        "cup 1.000 → 0.400, 100.0 %, level missed",
        "moped >0.999 → 0.125, 100.0 %, whole image",
    ]
    mask[0, 0, 0, 0] = 0.06
    assert repr(replace(found, mask=mask)[0]) == "espresso 0.951 → 0.952, 0.02 %, reached"


def test_links_to_elsewhere_are_not_followed(tmp_path: Path) -> None:
    score = torch.tensor([0.5])
    one = Explanation(torch.rand(1, 3, 4, 5), torch.tensor([1]), score, score, GAMES["preservation"])
    for place in ("theirs", "mine"):
        (tmp_path / place / "explanations").mkdir(parents=True)
        one.save(tmp_path / place / "explanations" / "a@bus.safetensors", 0, {})
    (tmp_path / "theirs" / "explanations" / "b@bus.safetensors").symlink_to(
        tmp_path / "mine" / "explanations" / "a@bus.safetensors"
    )
    with pytest.raises(
        InputError, match=r"Expected all results inside .*, but .*b@bus\.safetensors is a link to the out"
    ):
        load_explanations(tmp_path / "theirs")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert len(load_explanations(tmp_path / "link")) == 1, "the folder itself may be one"
