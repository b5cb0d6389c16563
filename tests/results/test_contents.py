"""An item is its image's content: what happens to results when photos are replaced, moved, added and removed."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import CPU, NETWORK, fit
from toy_networks import Tiny

from fgvis_lightning import Explanation, InputError, draw, load_explanation, load_explanations, with_image
from fgvis_lightning.cli import main
from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.networks.load import load_classifier

Photo = Callable[..., Path]


def explanations(output: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (output / "explanations").iterdir()}


def listed(output: Path) -> dict[str, str]:
    rows = csv.DictReader((output / "summary.csv").read_text(encoding="utf-8").splitlines())
    return {row["id"].partition("@")[0]: row["listed"] for row in rows}


@pytest.fixture
def done(folder: Path, output: Path) -> Path:
    fit(output, folder)
    return output


def test_nothing_changed(done: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = explanations(done)
    fit(done, folder)
    assert "0 of 3 items explained, 3 were already there" in capsys.readouterr().out
    assert explanations(done) == before
    assert set(listed(done).values()) == {"yes"}


def test_a_replaced_photo_is_explained_again(
    done: Path, folder: Path, photo: Photo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("in/photo 1.png", seed=7)
    fit(done, folder)
    assert "1 of 3 items explained, 2 were already there" in capsys.readouterr().out
    fit(tmp_path / "fresh", folder)
    assert explanations(done) == explanations(tmp_path / "fresh")


def test_other_photos_of_the_same_names(
    done: Path, photo: Photo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        photo(f"other/photo {number}.png", seed=10 + number)
    fit(done, tmp_path / "other")
    assert "3 of 3 items explained" in capsys.readouterr().out
    fit(tmp_path / "fresh", tmp_path / "other")
    assert explanations(done) == explanations(tmp_path / "fresh")


def test_a_folder_that_moved_is_done_and_found(
    done: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = folder.rename(tmp_path / "moved")
    fit(done, moved)
    assert "0 of 3 items explained, 3 were already there" in capsys.readouterr().out
    assert {Path(one.metadata["image"]).parent for one in load_explanations(done)} == {moved}
    main(["report", str(done)])
    assert "no file" not in (done / "report.html").read_text(encoding="utf-8")


def test_a_stored_explanation_is_drawn_with_its_image(done: Path, folder: Path, photo: Photo) -> None:
    stored = load_explanations(done)[0]
    found = with_image(stored)
    assert (found == stored, stored.images) == (True, None)
    path = Path(stored.metadata["image"])
    classifier = load_classifier(Tiny(), size=(16, 16))
    assert found.images is not None
    assert torch.equal(found.images[0], as_float(load_image(str(path), classifier.preprocessing, upscale=True)))
    torch.testing.assert_close(found.background, classifier.preprocessing.background())
    assert draw(found).width > 200
    assert draw(stored) == draw(stored[:]) == draw(found)
    assert (stored.to_pil(), stored.overlay(-1)) == (found.to_pil(), found.overlay(-1))
    assert (stored._repr_png_(), stored._repr_html_()) == (found._repr_png_(), found._repr_html_())
    twice = stored.select(torch.tensor([0, 0]))
    assert draw(twice, index=1) == draw(found)
    joined = Explanation.concatenate([found, twice, found])
    with pytest.raises(InputError, match=r"this explanation has none\."):
        draw(joined)
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.mkdir()
    path.rename(elsewhere / path.name)
    for picture in (draw, Explanation.overlay, Explanation.to_pil, with_image):
        with pytest.raises(InputError, match=r"does not exist\. If it has moved, pass .* with_image\(explanation, fol"):
            picture(stored)
    assert (stored._repr_png_(), stored._repr_html_()) == (None, f"<pre>{stored!r}</pre>")
    moved = with_image(stored, elsewhere).images
    assert moved is not None
    assert torch.equal(moved, found.images)
    photo(f"elsewhere/{path.name}", seed=9)
    with pytest.raises(InputError, match="has changed"):
        with_image(stored, elsewhere)
    photo(str(path.relative_to(folder.parent)), seed=9)
    with pytest.raises(InputError, match="has changed"):
        draw(stored)
    assert stored._repr_png_() is None
    stored.save(done / "alone.safetensors", metadata={})
    for picture in (with_image, draw):
        with pytest.raises(InputError, match=r"got one that names no image\. Pass the images as draw"):
            picture(load_explanation(done / "alone.safetensors"))


def test_panels_in_another_format_are_drawn_later(done: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photo 2.png").write_bytes((folder / "photo 1.png").read_bytes())  # explained anew
    before = {path.name: path.read_bytes() for path in (done / "panels").iterdir()}
    fit(done, folder, "--writer.formats", "[png, svg]")
    assert "2 panels of earlier explanations drawn." in capsys.readouterr().out
    after = {path.name: path.read_bytes() for path in (done / "panels").iterdir()}
    assert sorted(after) == sorted([*before, *(name.replace(".png", ".svg") for name in before)])
    assert all(after[name] == before[name] for name in before if not name.startswith("photo_2"))
    fit(done, folder)
    assert "drawn" not in capsys.readouterr().out


def test_added_and_removed_photos(
    done: Path, folder: Path, photo: Photo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("in/more/photo 0.png", seed=5)
    (folder / "photo 2.png").unlink()
    fit(done, folder)
    out = capsys.readouterr().out
    assert "2 of 3 items explained, 1 was already there" in out, "two photos share a name now, and have longer ones"
    assert f"2 explanations belong to other images in {done}; see summary.csv (listed: no)." in out
    marks = listed(done)
    assert sorted(marks.values()) == ["no", "no", "yes", "yes", "yes"]
    assert (marks["photo_0"], marks["photo_1"], marks["photo_2"]) == ("no", "yes", "no")


def test_evaluate_and_report_notice_a_replaced_photo(
    done: Path, photo: Photo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = photo("in/photo 1.png", seed=7)
    with pytest.raises(SystemExit):
        main(["evaluate", "--results", f"[{done}]", *NETWORK, "--output", str(tmp_path / "evaluation")])
    problem = f"Expected the image that was explained, but {path} has changed."
    assert problem in capsys.readouterr().err
    main(["report", str(done)])
    assert problem in (done / "report.html").read_text(encoding="utf-8")


def test_the_report_finds_moved_photos(
    done: Path, folder: Path, photo: Photo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("elsewhere/a/photo 0.png", seed=9)  # of the same name, and another one
    shutil.copytree(folder, tmp_path / "elsewhere" / "b")
    shutil.rmtree(folder)
    main(["report", str(done)])
    page = (done / "report.html").read_text(encoding="utf-8")
    assert page.count("does not exist") == 3
    main(["report", str(done), "--images", str(tmp_path / "elsewhere")])
    page = (done / "report.html").read_text(encoding="utf-8")
    assert "does not exist" not in page
    assert "has changed" not in page


def test_a_refused_run_leaves_the_tables(done: Path, photo: Photo, capsys: pytest.CaptureFixture[str]) -> None:
    before = (done / "summary.csv").read_bytes()
    with pytest.raises(SystemExit):
        fit(done, photo("b.png"), "--model.game", "deletion", "--model.seed", "3", *CPU)
    assert "of this configuration" in capsys.readouterr().err
    assert (done / "summary.csv").read_bytes() == before


def test_a_folder_without_explanations_belongs_to_nobody(
    photo: Callable[..., Path], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The remedy that an error names must not be refused."""
    (photo("in/a.png").parent / "b.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        fit(output, photo("in/a.png").parent / "b.png")
    capsys.readouterr()
    fit(output, photo("in/a.png"), "--model.game", "deletion", "--writer.formats", "svg")
    out = capsys.readouterr().out
    assert "weights: as the class makes them, since no checkpoint is given" in out
    assert [path.suffix for path in (output / "panels").iterdir()] == [".svg"]
