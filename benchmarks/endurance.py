"""Whether a long sweep stays flat: memory and CPU time of ``python train.py fit`` over many images, and its restart.

    python benchmarks/endurance.py PHOTO … --images 10000 --minutes 60

The images are random squares of the photos, each a file of its own. After so many minutes the run is killed, without a
signal that it could answer, and started again: how long does it take until its first new file? Reads Linux's /proc.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import header, row
from PIL import Image

ROOT = Path(__file__).parents[1]
POLL = 0.2


def cut(photos: list[str], folder: Path, count: int, side: int) -> None:
    """Save ``count`` random squares of the photos, a quarter of the shorter side or more, as JPEG files."""
    draw = random.Random(0)
    opened = [Image.open(path).convert("RGB") for path in photos]
    for number in range(count):
        photo = opened[number % len(opened)]
        edge = draw.randint(min(photo.size) // 4, min(photo.size))
        left, top = (draw.randint(0, length - edge) for length in photo.size)
        square = photo.crop((left, top, left + edge, top + edge)).resize((side, side))
        square.save(folder / f"{number:06d}.jpg", quality=95)


def resident(pid: int) -> float:
    """Megabytes of memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def finished(output: Path) -> int:
    """Number of explained images."""
    return sum(1 for entry in os.scandir(output / "explanations") if entry.name.endswith(".safetensors"))


def main() -> None:
    """Print a row for each part of the run, then the restart."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("photos", nargs="+")
    made.add_argument("--network", default="packaged_efficientnet_lite0")
    made.add_argument("--images", type=int, default=10_000)
    made.add_argument("--minutes", type=float, default=60)
    made.add_argument("--rows", type=int, default=12, help="rows of the table")
    made.add_argument("--side", type=int, default=64, help="pixels")
    made.add_argument("--iterations", type=int, default=30)
    options = made.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        images, output = Path(temporary) / "images", Path(temporary) / "results"
        images.mkdir()
        cut(options.photos, images, options.images, options.side)
        command = [
            *(sys.executable, str(ROOT / "train.py"), "fit", "--data.images", str(images), "--data.batch_size", "16"),
            *("--model.network", options.network, "--model.classifier.size", f"[{options.side},{options.side}]"),
            *("--model.game", "preservation", "--model.seeds", "1", "--model.iterations", str(options.iterations)),
            *("--writer.panels", "false", "--trainer.accelerator", "cpu", "--output", str(output)),
        ]
        log = Path(temporary) / "log"
        run = start(command, log)
        while run.poll() is None and not (output / "explanations").is_dir():
            time.sleep(POLL)
        header("minute", "images", "CPU s an image", "s an image", "MB")
        before, done, busy = time.monotonic(), 0, cpu_seconds(run.pid)
        begin = before
        for number in range(1, options.rows + 1):
            while run.poll() is None and time.monotonic() < begin + number * options.minutes * 60 / options.rows:
                time.sleep(POLL)
            if run.poll() is not None:
                break
            now, count, cpu = time.monotonic(), finished(output), cpu_seconds(run.pid)
            per = max(1, count - done)
            cells = f"{(cpu - busy) / per:.3f}", f"{(now - before) / per:.3f}", f"{resident(run.pid):.0f}"
            row(f"{(now - begin) / 60:.0f}", count, *cells)
            before, done, busy = now, count, cpu
        if run.poll() is not None:
            raise SystemExit(f"The run ended with {run.returncode} after {done} images:\n{log.read_text()[-2000:]}")
        run.kill()
        run.wait()
        done, begin = finished(output), time.monotonic()
        run = start(command, log)
        while run.poll() is None and finished(output) <= done:
            time.sleep(POLL)
        print(f"\nkilled with {done} images, the first new one {time.monotonic() - begin:.0f} s after the restart")
        run.kill()
        run.wait()


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Begin or continue the run."""
    with log.open("wb") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    main()
