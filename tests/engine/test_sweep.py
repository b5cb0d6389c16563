"""Whole sweeps by several processes, interrupted in every way; all real, in subprocesses."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import NETWORK
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fgvis_lightning import load_explanations

pytestmark = pytest.mark.slow

TRAIN = Path(__file__).parents[2] / "train.py"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if "SLURM" not in name},
    "PYTHONPATH": str(Path(__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
}
PhotoMaker = Callable[..., Path]


def options(images: Path, output: Path, *more: str) -> list[str]:
    return [
        *("fit", "--output", str(output), "--data.images", str(images), "--data.batch_size", "4"),
        *(
            *NETWORK,
            "--trainer.accelerator",
            "cpu",
        ),
        # Places become free at different times.
        *("--model.seeds", "1", "--model.iterations", "120", "--model.patience", "20", "--model.tolerance", "0.2"),
        *("--writer.panels", "false", "--trainer.logger", "false", "--progress.seconds", "1"),
        *more,
    ]


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(TRAIN), *arguments],
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(arguments: list[str], code: int = 0, **environment: str) -> tuple[str, str]:
    process = start(arguments, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    return out, err


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "explanations").iterdir()}


def leftovers(output: Path) -> list[Path]:
    return [path for path in output.rglob("*") if path.name.endswith(".tmp") or ".writable" in path.name]


def wait_for_files(output: Path, count: int, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 120
    while len(list((output / "explanations").glob("[!.]*"))) < count:
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen photos; the first eleven have names that begin with an a."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for i in range(13):
        blocks = np.random.default_rng(i).integers(0, 256, (8, 10, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save(folder / f"{'a' if i < 11 else 'b'}{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def reference(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of all thirteen."""
    output = tmp_path_factory.mktemp("reference")
    run(options(images, output))
    found = contents(output)
    assert len(found) == 13
    assert len({str(explanation.iterations) for explanation in load_explanations(output)}) > 1
    return found


def torchrun(arguments: list[str]) -> list[subprocess.Popen[str]]:
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), str(TRAIN)]
    return [subprocess.Popen([sys.executable, *command, *arguments], env=ENVIRONMENT, text=True)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def slurm_environment(task: int, tasks: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "sweep",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task),
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
    }


def slurm(arguments: list[str]) -> list[subprocess.Popen[str]]:
    """As srun starts them, the first one later: who sums up must not take the other's absence for its end."""
    processes = []
    for task in (1, 0):
        processes.append(start(arguments, **slurm_environment(task, 2)))
        time.sleep(2)
    return processes


def by_hand(arguments: list[str]) -> list[subprocess.Popen[str]]:
    return [start(arguments)]


@pytest.mark.parametrize(
    ("launch", "pattern", "more"),
    [
        (by_hand, "*.png", ["--trainer.devices", "3", "--trainer.strategy", "independent"]),
        (torchrun, "a*.png", ["--trainer.devices", "2"]),
        (slurm, "*.png", ["--trainer.devices", "2"]),
    ],
    ids=["three by hand", "torchrun", "SLURM"],  # two by hand end test_chaos
)
def test_ranks_make_what_one_process_makes(
    launch: Callable[[list[str]], list[subprocess.Popen[str]]],
    pattern: str,
    more: list[str],
    images: Path,
    reference: dict[str, bytes],
    tmp_path: Path,
) -> None:
    processes = launch(options(images / pattern, tmp_path, *more))
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    found = contents(tmp_path)
    assert found == {name: data for name, data in reference.items() if name in found}
    assert len(found) == len(list(images.glob(pattern)))
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1 + len(found)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(("number", "rounds"), [(signal.SIGKILL, 5), (signal.SIGTERM, 3)])
def test_chaos(number: signal.Signals, rounds: int, images: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    """The whole process group is ended at random moments, and the number of ranks changes."""
    chance = random.Random(number)
    interrupted = 0
    for turn in range(rounds):
        done = len(list((tmp_path / "explanations").glob("[!.]*")))
        process = start(options(images, tmp_path, "--trainer.devices", str(1 + turn % 3)))
        if turn % 2 and done < 12:
            wait_for_files(tmp_path, done + 1)
            time.sleep(chance.uniform(0, 0.2))
        else:
            time.sleep(chance.uniform(1, 6))
        interrupted += process.poll() is None
        with suppress(ProcessLookupError):  # it was done already
            os.killpg(process.pid, number)
        process.communicate(timeout=120)
        if number == signal.SIGTERM and process.returncode not in (0, -number):
            assert process.returncode == 75
    assert interrupted > rounds // 2
    out, _ = run(options(images, tmp_path, "--trainer.devices", "2"))
    assert "of 13 items explained" in out
    assert contents(tmp_path) == reference
    assert not leftovers(tmp_path)
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 14


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_stopping_rank_0_stops_the_others(
    number: signal.Signals, code: int, word: str, images: Path, tmp_path: Path
) -> None:
    slow = ["--model.iterations", "800", "--model.patience", "0", "--data.batch_size", "1", "--trainer.devices", "2"]
    process = start(options(images, tmp_path, *slow))
    wait_for_files(tmp_path, 1, process)
    for _ in range(3):  # the second and the third change nothing
        process.send_signal(number)
        time.sleep(0.2)
    _, err = process.communicate(timeout=120)  # whose pipes the other rank has open, too
    assert process.returncode == code, err
    assert f"fgvis: Stopped by {word}. Finished items are kept. Run the same command again to continue.\n" in err
    assert "Traceback" not in err
    assert not leftovers(tmp_path)
    done = len(contents(tmp_path))
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1 + done


def test_slurm_is_asked_to_requeue(images: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    slow = options(images, tmp_path / "out", "--model.iterations", "800", "--model.patience", "0")
    path = f"{scontrol.parent}:{os.environ['PATH']}"
    processes = [start([*slow, "--trainer.devices", "2"], PATH=path, **slurm_environment(task, 2)) for task in range(2)]
    wait_for_files(tmp_path / "out", 1)
    for process in processes:
        process.send_signal(signal.SIGUSR1)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert not list((tmp_path / "out").rglob("*.ckpt"))


@pytest.mark.parametrize("dies_by", ["signal", "exception"])
def test_a_crash_of_one_rank_costs_its_items_alone(
    dies_by: str, images: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    arguments = options(images, tmp_path, "--trainer.devices", "2", "--model.network", "toy_networks.Mortal")
    _, err = run(arguments, 1, DIES_BY=dies_by)
    line = err[err.rindex("fgvis: ") :]
    how = "was killed by SIGKILL" if dies_by == "signal" else "ended with exit code 1"
    assert line.startswith(f"fgvis: rank 1 {how}. ")
    missing = re.findall(r"[ab](\d\d)@top1", line.partition("items are missing: ")[2])
    assert missing
    assert all(int(number) % 2 for number in missing), "those of rank 1, whose numbers are odd"
    assert "Run the same command again to continue." in line
    done = contents(tmp_path)
    assert {name[:3] for name in done} >= {f"{'a' if i < 11 else 'b'}{i:02d}" for i in range(0, 13, 2)}
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1 + len(done)
    run([*arguments, "--trainer.devices", "1"])
    assert len(contents(tmp_path)) == 13
    assert not leftovers(tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 kB; its size and mode are changed by mounting it again."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def test_a_disk_that_fills_up(disk: Path, images: Path, reference: dict[str, bytes]) -> None:
    _, err = run(options(images, disk / "out"), 1)
    assert err.strip().splitlines()[-1].startswith("fgvis: Expected to write ")
    assert "No space left on device. Fix this and run the command again. Finished items are kept" in err
    assert "Traceback" not in err
    done = contents(disk / "out")
    assert 0 < len(done) < 13
    assert done == {name: reference[name] for name in done}
    assert not leftovers(disk / "out")
    remount(disk, "size=4m")
    run(options(images, disk / "out"))
    assert contents(disk / "out") == reference


def test_a_folder_that_turns_read_only(disk: Path, images: Path) -> None:
    remount(disk, "size=4m")
    slow = options(images, disk / "out", "--model.iterations", "800", "--model.patience", "0")
    process = start(slow)
    wait_for_files(disk / "out", 1, process)
    folder = str(disk / "out" / "explanations")
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert err.strip().splitlines()[-1].startswith("fgvis: Expected to write ")
        assert "Read-only file system. Fix this and run the command again. Finished items are kept" in err
        assert "Traceback" not in err
        done = contents(disk / "out")
        assert done
    finally:
        subprocess.run(["umount", folder], check=True)
    run(slow)
    found = contents(disk / "out")
    assert len(found) == 13
    assert done == {name: found[name] for name in done}


def test_an_image_that_disappears(images: Path, tmp_path: Path, photo: PhotoMaker, reference: dict[str, bytes]) -> None:
    for path in images.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    output, last = tmp_path / "out", tmp_path / "b12.png"
    slow = options(tmp_path / "*.png", output, "--data.batch_size", "1", "--data.num_workers", "1")
    process = start(slow)
    wait_for_files(output, 1, process)
    gone = last.read_bytes()
    last.unlink()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.strip().splitlines()[-2:] == [
        "fgvis: 1 of 13 items could not be read:",
        f"  Expected an image, but the file {last} does not exist.",
    ]
    assert "12 of 13 items done, 1 failed" in out
    assert len(contents(output)) == 12
    assert [path.name for path in (output / "failures").iterdir()] == ["b12.txt"]
    last.write_bytes(gone)
    out, _ = run(slow)
    assert "1 of 13 items explained, 12 were already there" in out
    assert not (output / "failures").exists()


def test_two_sweeps_into_one_folder(images: Path, tmp_path: Path) -> None:
    slow = options(images, tmp_path, "--model.iterations", "150", "--model.patience", "0", "--data.targets", "top5")
    first = start([*slow, "--data.batch_size", "1"])  # it would take minutes
    wait_for_files(tmp_path, 1, first)
    _, err = run(slow, 2)
    (line,) = [line for line in err.splitlines() if line.startswith("fgvis: ")]
    assert f"Expected no other sweep at work in {tmp_path}, but there is one. Wait" in line
    assert "Traceback" not in err
    done = len(contents(tmp_path))
    wait_for_files(tmp_path, done + 1, first)  # the first one goes on as if nothing had been
    first.terminate()
    first.communicate(timeout=120)
    assert first.returncode == 75


def test_memory_does_not_grow_with_the_number_of_images(images: Path, tmp_path: Path) -> None:
    table = tmp_path / "many.csv"
    for i in range(300):
        (tmp_path / f"{i}.png").symlink_to(images / "a00.png")
    table.write_text("path\n" + "".join(f"{i}.png\n" for i in range(300)))
    process = start(options(table, tmp_path / "out", "--model.iterations", "5", "--model.patience", "0"))
    memory = []
    for count in (60, 280):
        wait_for_files(tmp_path / "out", count, process)
        status = Path(f"/proc/{process.pid}/status").read_text()
        memory.append(int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert memory[1] - memory[0] < 10, f"MB after 60 and after 280 items: {memory}"


def test_tensorboard_has_the_masks_of_every_rank(images: Path, tmp_path: Path) -> None:
    shown_of_13 = ["--tensorboard.max_items", "7", "--tensorboard.every_n_iterations", "10", "--trainer.logger", "null"]
    run(options(images, tmp_path, "--trainer.devices", "3", *shown_of_13))
    shown = []
    own = tmp_path / "tensorboard"
    for folder in (own, own / "rank1", own / "rank2"):
        (path,) = folder.glob("events*")
        tags = EventAccumulator(str(path), size_guidance={"images": 0}).Reload().Tags()["images"]
        assert {tag.rpartition("/")[2] for tag in tags} == {"evidence", "by color channel", "panel", "gates"}
        shown.append({tag[:3] for tag in tags} - {"gat"})
    assert shown == [{"a00", "a03"}, {"a04", "a07", "a10"}, {"a08"}], "one of each two"
