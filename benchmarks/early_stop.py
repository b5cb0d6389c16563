"""What stopping early saves, and what is done with the place of an image that has stopped.

    python benchmarks/early_stop.py PHOTO … --iterations 400 --patience 50 --tolerance 0.05

Three ways in turn: all iterations for every image; places frozen until the whole batch has stopped; places given to the
next image at once, as FGVis does. The second and third give the same masks, bit for bit, which is checked.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence

import pytorch_lightning as pl
import torch

from fgvis_lightning import FGVis
from fgvis_lightning.data.image_data import Batch, Sweep
from fgvis_lightning.data.images import load_image
from fgvis_lightning.data.items import Item
from fgvis_lightning.engine.sweep_module import ExplanationCallback
from fgvis_lightning.results.store import Explanation


class Frozen(Batch):
    """Places stay empty until all are."""

    def refill(self, places: Iterable[int]) -> list[int]:
        for place in places:
            self.items[place] = None
        return [] if self.used else super().refill(range(len(self.items)))


class Collect(ExplanationCallback):
    """Keeps masks, iterations and evidence of each image."""

    def __init__(self) -> None:
        self.masks: dict[int, torch.Tensor] = {}
        self.iterations: dict[int, int] = {}
        self.sizes: dict[int, float] = {}

    def on_explained(self, trainer: pl.Trainer, model: FGVis, places: Sequence[int], found: Explanation) -> None:
        assert model.batch is not None
        for index, place in enumerate(places):
            item = model.batch.items[place]
            assert item is not None
            self.masks[item.number] = found.mask[index]
            self.iterations[item.number] = model.batch.iterations[place]
            self.sizes[item.number] = float(1 - found.sparsity[index])


def main() -> None:
    """Run the three ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--network", default="packaged_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--game", default="preservation")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--patience", type=int, default=50)
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    size = (arguments.size, arguments.size)
    ways = {
        "all iterations": (Batch, 0),
        "frozen until the batch ends": (Frozen, arguments.patience),
        "to the next image": (Batch, arguments.patience),
    }
    masks = {}
    print("| a place whose image has converged | seconds | steps | iterations of an image | mean evidence |")
    print("|---|---|---|---|---|")
    for name, (kind, patience) in ways.items():
        model = FGVis(
            arguments.network,
            size=size,
            game=arguments.game,
            iterations=arguments.iterations,
            patience=patience,
            tolerance=arguments.tolerance,
        )
        stream = [
            (Item(path, path, -1, i), load_image(path, model.classifier.preprocessing))
            for i, path in enumerate(arguments.photos)
        ]
        sweep, collect = Sweep(stream, arguments.batch_size), Collect()
        sweep.batch.__class__ = kind
        trainer = pl.Trainer(
            max_epochs=1,
            callbacks=[collect],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        start = time.perf_counter()
        trainer.fit(model, sweep)
        seconds, steps = time.perf_counter() - start, trainer.global_step
        masks[name] = collect.masks
        mean = sum(collect.iterations.values()) / len(stream)
        evidence = sum(collect.sizes.values()) / len(stream)
        print(f"| {name} | {seconds:.0f} | {steps} | {mean:.0f} | {evidence:.4f} |", flush=True)
    frozen, given = masks["frozen until the batch ends"], masks["to the next image"]
    print(f"frozen and given on, equal bit for bit: {all(torch.equal(frozen[i], given[i]) for i in given)}")


if __name__ == "__main__":
    main()
