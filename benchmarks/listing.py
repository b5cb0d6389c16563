"""How long a large sweep takes to begin: listing a folder and a CSV file, finding what is already
done, and that nothing has changed since.

    python benchmarks/listing.py --count 1000000

Every step runs twice, for its time and, slowed down by counting, for the most memory that Python's objects have taken
on top of what was there before. Memory is that of the result and of what the step needs meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import nn

from fgvis_lightning.data.items import list_items, split_by_done
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.preprocessing import Preprocessing
from fgvis_lightning.results.folder import finished
from fgvis_lightning.results.tensor_files import EXPLANATIONS, SUFFIX
from fgvis_lightning.results.unchanged import QuickCheck

T = TypeVar("T")


def make_tree(folder: Path, count: int, classes: int, shared: bool) -> None:
    """``count`` empty files in one folder for each class; ``shared`` for the same names in every folder."""
    for place in range(classes):
        below = folder / f"class{place:04d}"
        below.mkdir(parents=True)
        for number in range(place, count, classes):
            (below / f"photo_{number // classes if shared else number:07d}.jpg").touch()


def measure(name: str, count: int, step: Callable[[], T]) -> T:
    """Print what a step takes, and return its result."""
    start, busy = time.perf_counter(), time.process_time()
    result = step()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    times = f"{seconds:6.2f} s, {busy:6.2f} s of them busy"
    print(f"{name:<33} {times}   peak {peak / 1e6:5.0f} MB, {peak / count:4.0f} B an item", flush=True)
    return result


def check(tree: str, results: Path, classifier: Classifier) -> None:
    """List, find all done, and compare sizes and times, as a run does where nothing changed."""
    items = list_items(tree, "predicted", classifier)
    _, present = split_by_done(items, classifier, finished(results))
    images = [item.path for item, _ in present]
    files = [f"{results}/{EXPLANATIONS}/{id}{SUFFIX}" for _, id in present]
    quick = QuickCheck(results, "rank0of1", "")
    if not quick.same([*images, *files]):  # the first time
        quick.note([], [*images, *files])


def main() -> None:
    """Make the files, run the steps and print how they went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--shared-names", action="store_true", help="the same file names in every folder")
    arguments = parser.parse_args()
    count, names = arguments.count, tuple(f"class{place:04d}" for place in range(arguments.classes))
    classifier = Classifier(nn.Identity(), Preprocessing(), names, "none")
    with tempfile.TemporaryDirectory() as folder:
        tree, table = Path(folder) / "tree", Path(folder) / "table.csv"
        make_tree(tree, count, arguments.classes, arguments.shared_names)
        with table.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "target"])
            rows.writerows([f"tree/{path.parent.name}/{path.name}", path.parent.name] for path in tree.glob("*/*"))
        measure("folder, predicted classes", count, lambda: list_items(str(tree), "predicted", classifier))
        items = measure("CSV file, labelled classes", count, lambda: list_items(str(table), "label", classifier))
        done = {item.id(item.target, classifier) for item in items[::2]}
        measure("half are done, labelled classes", count, lambda: split_by_done(items, classifier, done))
        items = list_items(str(tree), "predicted", classifier)
        done = {item.id(item.number % arguments.classes, classifier) for item in items[::2]}
        missing, present = measure(
            "half are done, predicted classes", count, lambda: split_by_done(items, classifier, done)
        )
        print(f"{len(items)} items, {len(present)} of them done and {len(missing)} not")
        results = Path(folder) / "results"
        (results / EXPLANATIONS).mkdir(parents=True)
        for item in items:
            (results / EXPLANATIONS / (item.id(0, classifier) + SUFFIX)).touch()
        check(str(tree), results, classifier)
        measure("all are done, nothing changed", count, partial(check, str(tree), results, classifier))


if __name__ == "__main__":
    main()
