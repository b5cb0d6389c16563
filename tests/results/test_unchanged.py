"""What is as it was is not read again; anything else is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import fit
from PIL import Image

from fgvis_lightning.results import folder as results
from fgvis_lightning.results import unchanged
from fgvis_lightning.results.folder import why_unusable
from fgvis_lightning.results.unchanged import QuickCheck


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(b"old")
    return list(map(str, paths))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can set the time of a file's last change back, so that files of a test are always new."""
    monkeypatch.setattr(unchanged, "SETTLED", -60)


@pytest.mark.usefixtures("at_once")
def test_any_change_is_noticed(paths: list[str], tmp_path: Path) -> None:
    def check(what: str = "weights", name: str = "rank0of1") -> QuickCheck:
        return QuickCheck(tmp_path, name, what)

    assert not check().same(paths), "nothing is noted"
    check().note(paths, [], "said\ntwice")
    quick = check()
    assert quick.same(paths)
    assert quick.text == "said\ntwice"
    assert not check("other weights").same(paths)
    assert not check(name="rank0of2").same(paths)
    assert not check().same(paths[:1])
    assert not check().same(paths[::-1])
    assert not check().same([*paths, str(tmp_path / "gone")])
    kept = Path(paths[0]).stat()
    Path(paths[0]).write_bytes(b"new")  # as many bytes, and dated back
    os.utime(paths[0], ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert not check().same(paths)
    check().note(paths, [])
    assert check().same(paths)
    (tmp_path / ".checked" / "rank0of1").write_bytes(b"\xff")
    assert not check().same(paths)


def test_what_was_changed_a_moment_ago_is_not_noted(paths: list[str], tmp_path: Path) -> None:
    quick = QuickCheck(tmp_path, "rank0of1", "")
    quick.note([], paths)
    assert quick.same(paths), "what was written now may be new"
    quick.note(paths, [])
    assert not quick.same(paths), "what was read may have changed while it was"
    quick.note([*paths, str(tmp_path / "gone")], [])
    assert not quick.path.exists()


@pytest.mark.usefixtures("at_once")
def test_a_sweep_is_read_again_only_where_something_changed(
    folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[str] = []

    def counted(output: Path, id: str, *rest: object) -> str | None:
        read.append(id)
        return why_unusable(output, id, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(results, "why_unusable", counted)
    fit(output, folder)
    first = capsys.readouterr().out
    table = (output / "summary.csv").stat().st_mtime_ns
    fit(output, folder)
    again = capsys.readouterr().out
    assert "0 of 3 items explained, 3 were already there" in again
    assert not read
    assert (output / "summary.csv").stat().st_mtime_ns == table
    assert [line for line in again.splitlines() if "level" in line] == [
        line for line in first.splitlines() if "level" in line
    ]
    Image.new("RGB", (40, 40), "red").save(folder / "photo 1.png")
    fit(output, folder)
    assert "explains another image: it will be computed again" in capsys.readouterr().out
    assert len(read) == 3
    fit(output, folder)
    assert len(read) == 3, "all well again"
    (output / "summary.csv").unlink()
    (damaged,) = (output / "explanations").glob("photo_2@*")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    fit(output, folder)
    assert "it will be computed again" in capsys.readouterr().out
    assert len((output / "summary.csv").read_text().splitlines()) == 4
