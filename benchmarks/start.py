"""How long commands take to answer and the package to import, beside the libraries that it stands on.

    python benchmarks/start.py --repeats 7

Each repetition starts every line of the table once, in processes of their own, ``import torch`` among them; so all meet
the same machine. Prints the least and the median time by the clock and of the CPUs, and the median of the ratios to
``import torch`` in the same repetition. Commands run in a cache folder of their own, in which ``fgvis completion`` has
been run before (see ``fgvis_lightning.cli.outlines``): the row "the first time" says what that takes. POSIX only.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from common import header, row

TORCH = "import torch"
FIRST = "fgvis completion bash, the first time"
ROWS = {
    TORCH: ["-c", TORCH],
    "import torch, pytorch_lightning": ["-c", "import torch, pytorch_lightning"],
    "import fgvis_lightning": ["-c", "import fgvis_lightning"],
    "from fgvis_lightning import FGVis": ["-c", "from fgvis_lightning import FGVis"],
    "from fgvis_lightning import *": ["-c", "from fgvis_lightning import *"],
    **{
        f"fgvis {command}": ["-m", "fgvis_lightning", *command.split()]
        for command in ("--help", "--version", "fti", "completion bash", "fit --help", "report --help")
    },
    "fgvis fit --modle.game deletion": ["-m", "fgvis_lightning", "fit", "--modle.game", "deletion"],
    "fgvis fit --model.game delete": ["-m", "fgvis_lightning", "fit", "--model.game", "delete", "--data.images", "x"],
    FIRST: ["-m", "fgvis_lightning", "completion", "bash"],
}


class Seconds(NamedTuple):
    """Of one process: by the clock, and of the CPUs."""

    clock: float
    cpu: float


def start(arguments: list[str], cache: str) -> Seconds:
    """Run Python with these arguments to its end."""
    environment = os.environ | {"XDG_CACHE_HOME": cache}
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Seconds(time.perf_counter() - begin, busy)


def main() -> None:
    """Measure all rows by turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    found: dict[str, list[Seconds]] = {name: [] for name in ROWS}
    with tempfile.TemporaryDirectory() as cache:
        start(ROWS[FIRST], cache)
        for _ in range(repeats):
            for name, arguments in ROWS.items():
                if name == FIRST:
                    for file in Path(cache, "fgvis-lightning").iterdir():
                        file.unlink()
                found[name].append(start(arguments, cache))
    print(f"{repeats} repetitions, Python {sys.version.split()[0]}\n")
    header("", "s, least", "s, median", "CPU s, least", "CPU s, median", "times import torch, CPU")
    for name, times in found.items():
        ratios = [one.cpu / torch.cpu for one, torch in zip(times, found[TORCH], strict=True)]
        clock, cpu = [one.clock for one in times], [one.cpu for one in times]
        cells = min(clock), statistics.median(clock), min(cpu), statistics.median(cpu), statistics.median(ratios)
        row(f"`{name}`", *(f"{cell:.2f}" for cell in cells))


if __name__ == "__main__":
    main()
