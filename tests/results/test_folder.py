from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_store import METADATA

from fgvis_lightning import InputError
from fgvis_lightning.defense.coverage import Coverage, Layer
from fgvis_lightning.method.options import PATIENCE, choose
from fgvis_lightning.results.claim import Claim
from fgvis_lightning.results.folder import (
    check_configuration,
    count_finished,
    failures,
    files,
    finished,
    forget_failure,
    note_failure,
    prepare_folder,
    recall,
    recall_number,
    remember,
    why_unusable,
    write_summary,
)
from fgvis_lightning.results.tensor_files import save_tensors


@pytest.fixture
def output(tmp_path: Path) -> Path:
    prepare_folder(tmp_path)
    return tmp_path


def save(output: Path, id: str, **changes: str) -> Path:
    path = output / "explanations" / f"{id}.safetensors"
    save_tensors(path, {"mask": torch.rand(3, 4, 5).half()}, {**METADATA, **changes})
    return path


def test_what_is_finished_is_known_by_names_alone(output: Path) -> None:
    for id in ("b@bus", "a@bus"):
        save(output, id)
    (output / "explanations" / "c@bus.safetensors").write_bytes(b"damaged")
    (output / "explanations" / ".d@bus.safetensors.rank0.tmp").write_bytes(b"half")
    assert finished(output) == {"a@bus", "b@bus", "c@bus"}
    assert count_finished(output) == 3
    assert [path.name for path in files(output)] == [f"{i}@bus.safetensors" for i in "abc"]
    assert finished(output / "nowhere") == set()


def test_summary_is_rebuilt_from_the_files(output: Path) -> None:
    shares = torch.tensor([[0.25], [0.75]])
    coverage = Coverage(layers=(Layer("relu", "features.1"),), closed=shares)
    save(output, "a@bus", feasible="true", reached="7", seeds="6", agreement="0.93", coverage=coverage.to_json(0))
    save(output, "b@bus", score_image="0.5", coverage=coverage.to_json(1))
    damaged = save(output, "c@bus")
    damaged.write_bytes(damaged.read_bytes()[:100])
    (output / "summary.csv").write_text("nonsense")
    (problem,), _ = write_summary(output)
    assert "c@bus.safetensors is damaged" in problem
    rows = list(csv.DictReader((output / "summary.csv").read_text().splitlines()))
    save(output, "e@bus", agreement="-0.5")
    save(output, "d@bus", sparsity="0.75", feasible="true", reached="-1", agreement="nan")
    write_summary(output)
    row = list(csv.DictReader((output / "summary.csv").read_text().splitlines()))[-2]
    assert [row[name] for name in ("evidence", "sparsity", "reached", "agreement")] == ["0.25", "0.75", "", ""]
    assert "'-0.5" not in (output / "summary.csv").read_text()
    for name in "de":
        (output / "explanations" / f"{name}@bus.safetensors").unlink()
    write_summary(output)
    assert [(row["id"], row["name"], row["score_image"], row["feasible"]) for row in rows] == [
        ("a@bus", "bus", "0.75", "true"),
        ("b@bus", "bus", "0.5", ""),
    ]
    assert list(rows[0])[-5:] == ["feasible", "reached", "seeds", "agreement", "listed"]
    assert list(rows[0].values())[-5:] == ["true", "7", "6", "0.93", ""]
    assert list(rows[1].values())[-5:] == [""] * 5
    write_summary(output, listed={"a@bus"})
    rows = list(csv.DictReader((output / "summary.csv").read_text().splitlines()))
    assert [row["listed"] for row in rows] == ["yes", "no"]
    (layer,) = csv.DictReader((output / "coverage.csv").read_text().splitlines())
    assert (layer["module"], layer["closed"], layer["items"]) == ("features.1", "0.500000", "2")


def test_another_configuration_is_refused(output: Path) -> None:
    check_configuration(output, {"game": "deletion"}, "xyz")  # an empty folder takes any
    save(output, "a@bus")
    (output / "explanations" / "A.safetensors").write_bytes(b"damaged, and the first")
    for _ in range(2):  # by the files, then by sweep.json
        check_configuration(output, {"game": "deletion", "lam": "auto"}, "abc")
        with pytest.raises(InputError, match=r"lam auto there and 0\.1 now\)\. Choose another --output"):
            check_configuration(output, {"game": "deletion", "lam": 0.1}, "xyz")
        with pytest.raises(InputError, match=r"\(the weights of the network differ\)"):
            check_configuration(output, {"game": "deletion", "lam": "auto"}, "xyz")
        remember(output, settings=json.loads(METADATA["settings"]), fingerprint="abc")
        save(output, "a@bus", fingerprint="of a stray file")


def described(game: str = "preservation", lam: float | str = "auto", **given: Any) -> dict[str, Any]:
    """A configuration with the given options, and all that follow from them."""
    usual: dict[str, Any] = dict.fromkeys(("level", "iterations", "seeds", "gate", "tolerance", "noise", "optimizer"))
    usual |= {"patience": PATIENCE, "score": "log_probability", "reference": "zero"}
    return {"network": "resnet50", "size": [224, 224], **choose(game, lam, **(usual | given)).described()}


@pytest.mark.parametrize(
    ("now", "listed"),
    [
        (described("deletion"), "game preservation there and deletion now"),
        (
            described("deletion", level=0.5),
            "game preservation there and deletion now; level 1.0 there and 0.5 now",
        ),
        (described(lam=0.1), "lam auto there and 0.1 now"),
        (described(seeds=1), "seeds 6 there and 1 now"),
        (described(gate="strict"), "gate restoring there and strict now"),
        (described() | {"network": "resnet18", "size": [32, 32]}, "network resnet50 there and resnet18 now"),
        (described() | {"size": [32, 32]}, r"size \[224, 224\] there and \[32, 32\] now"),
        (described() | {"start": "random"}, "start None there and random now"),
        (
            {"network": "resnet50", "method": "RISE", "size": [224, 224]},
            "game preservation there and None now;.*RISE.*",
        ),
    ],
)
def test_only_what_the_user_changed_is_listed(output: Path, now: dict[str, Any], listed: str) -> None:
    save(output, "a@bus")
    remember(output, settings=described(), fingerprint="abc")
    with pytest.raises(InputError, match=rf"another \({listed}\)\. Choose"):
        check_configuration(output, now, "xyz")


def test_files_that_cannot_stay(output: Path) -> None:
    path = save(output, "a@bus")
    assert why_unusable(output, "a@bus", "abc") is None
    assert why_unusable(output, "a@bus", "xyz") == f"{path} belongs to another configuration"
    assert why_unusable(output, "a@bus", "abc", "12ef") == f"{path} explains another image"
    assert why_unusable(output, save(output, "b@bus", image_sha256="12ef").stem, "abc", "12ef") is None
    path.write_bytes(path.read_bytes()[:-1])
    assert "damaged" in str(why_unusable(output, "a@bus", "abc"))
    path.unlink()
    assert "does not exist" in str(why_unusable(output, "a@bus", "abc"))


def test_failures_are_kept_until_they_are_tried_again(output: Path) -> None:
    assert failures(output) == {}
    note_failure(output, "a", "no such file", "rank1")
    note_failure(output, "b", "a bomb", "rank0")
    assert failures(output) == {"a": "no such file", "b": "a bomb"}
    forget_failure(output, "a")
    forget_failure(output, "a")
    assert failures(output) == {"b": "a bomb"}


def test_what_later_runs_must_repeat(output: Path) -> None:
    assert recall(output) == {}
    remember(output, batch_size=4)
    remember(output, cpu_threads=2, batch_size=3)
    assert recall(output) == {"batch_size": 3, "cpu_threads": 2}
    assert recall_number(output, "batch_size", 4) == 3
    remember(output, batch_size=400_000, cpu_threads="x")
    assert recall_number(output, "batch_size", 4) is None
    assert recall_number(output, "cpu_threads", 64) is None
    (output / "sweep.json").write_text("{half")
    assert recall(output) == {}


HOLD = """
import sys, time
from pathlib import Path
from typing import Any
from fgvis_lightning.method.options import PATIENCE, choose
from fgvis_lightning.results.claim import Claim
claim = Claim(Path(sys.argv[1]), int(sys.argv[2]))
print("held", flush=True)
sys.stdin.readline()
claim.release(lambda: print("last", flush=True))
"""


def hold(output: Path, rank: int) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(output), str(rank)], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_sweep_at_a_time_with_many_ranks(output: Path) -> None:
    (output / "panels").mkdir()
    left = [output / "explanations" / ".a.rank1.tmp", output / "panels" / ".b.rank7.tmp", output / ".c.rank0.tmp"]
    for path in left:
        path.write_bytes(b"half")
    first = hold(output, 1)
    mine = Claim(output, 0)
    assert [path.exists() for path in left] == [True, False, False], "only what nobody works on is swept up"
    assert not mine.alone()
    with pytest.raises(InputError, match=r"Expected no other sweep at work in .*, but there is one\. Wait"):
        Claim(output, 1)
    called: list[str] = []
    mine.release(lambda: called.append("mine"))
    assert not called, "rank 1 is still at work"
    Claim(output, 0).release(lambda: called.append("again"))
    assert not called
    assert first.communicate("\n")[0] == "last\n"
    claim = Claim(output, 0)
    assert claim.alone()
    assert not left[0].exists()
    claim.release(lambda: called.append("last"))
    claim.release(lambda: called.append("twice"))
    assert called == ["last"]


def test_a_killed_process_holds_nothing(output: Path) -> None:
    process = hold(output, 0)
    with pytest.raises(InputError, match="Expected no other sweep"):
        Claim(output, 0)
    process.kill()
    process.communicate()
    start = time.monotonic()
    Claim(output, 0).release(lambda: None)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EIO])
def test_where_locks_do_not_work_nothing_of_others_is_removed(
    error: int, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    (output / "explanations" / ".a@bus.safetensors.7.rank1.tmp").touch()
    claim = Claim(output, 0)
    assert f"{output} is on a file system without locks" in capsys.readouterr().err
    assert claim.alone()
    called: list[str] = []
    claim.release(lambda: called.append("last"))
    assert called == ["last"]
    assert [path.name for path in (output / "explanations").iterdir()] == [".a@bus.safetensors.7.rank1.tmp"]
    assert not list((output / ".locks").glob("probe*"))
