"""What an image costs, against how many there are, the batch size, their size and the number of processes.

    python benchmarks/scale.py PHOTO …

Runs ``python train.py fit`` for each row, as a user would: the photos over and over, preservation, so many iterations
each. The seconds are those of Lightning's loop, files and panels included, the start of the process is not. One
process uses all cores, several share them.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import header, parser, row

ROOT = Path(__file__).parents[1]
TABLES = ("images", "batch", "size", "processes")


def measure(
    photos: list[str], network: str, images: int, batch: int, size: int, processes: int, iterations: int
) -> float:
    """Seconds for an image."""
    with tempfile.TemporaryDirectory() as folder:
        listing = [f"{Path(photos[number % len(photos)]).absolute()},{number}" for number in range(images)]
        table = Path(folder) / "images.csv"
        table.write_text("\n".join(["path,target", *listing]) + "\n")
        command = [
            *(sys.executable, str(ROOT / "train.py"), "fit", "--data.images", str(table), "--data.targets", "label"),
            *("--data.upscale", "true"),
            *(
                "--data.batch_size",
                str(batch),
                "--model.network",
                network,
                "--model.classifier.size",
                f"[{size},{size}]",
            ),
            *("--model.game", "preservation", "--model.iterations", str(iterations), "--model.patience", "0"),
            *("--trainer.accelerator", "cpu", "--trainer.devices", str(processes), "--output", f"{folder}/out"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        rates: list[str] = re.findall(r"([\d.]+) items/min", done.stdout + done.stderr)
        return 60 / float(rates[-1])


def main() -> None:
    """Print a table for each question."""
    made = parser(__doc__)
    made.set_defaults(iterations=30)
    made.add_argument("--size", type=int, default=224)
    made.add_argument("--quick", action="store_true", help="a quarter of the images")
    made.add_argument("--repeats", type=int, default=1, help="of each row, of which the median is shown")
    made.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    options = made.parse_args()
    many = 8 if options.quick else 32
    base = {"images": many, "batch": 8, "size": options.size, "processes": 1}
    tables = {
        "images": [many // 4 * factor for factor in (1, 2, 4, 8)],
        "batch": [1, 2, 4, 8, 16, 32][: 5 if options.quick else 6],
        "size": [64, 128, 224, 320],
        "processes": [1, 2],
    }
    for what in options.tables:
        print()
        header(what, "s an image", "ms an iteration of an image")
        rows = {value: {**base, what: value} for value in tables[what]}
        if what == "batch":  # filled at least twice
            rows = {value: {**asked, "images": max(many, 2 * value)} for value, asked in rows.items()}
        found: dict[int, list[float]] = {value: [] for value in rows}
        for _ in range(options.repeats):  # by turns, so that all rows meet the same machine
            for value, asked in rows.items():
                seconds = measure(options.photos, options.network, iterations=options.iterations, **asked)
                found[value].append(seconds)
        for value, all_seconds in found.items():
            seconds = statistics.median(all_seconds)
            row(value, f"{seconds:.2f}", f"{1e3 * seconds / options.iterations:.1f}")


if __name__ == "__main__":
    main()
