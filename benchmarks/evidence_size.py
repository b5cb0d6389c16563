"""How small evidence can be: mean mask against iterations, for levels of the score.

    python benchmarks/evidence_size.py PHOTO … --levels 0.5 1.0 --iterations 300

Every explanation is checked as a reader of its file would: mask in float16, plain network, one image at a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from fgvis_lightning import FGVis
from fgvis_lightning.data import Sweep
from fgvis_lightning.errors import InputError
from fgvis_lightning.method.games import blend, probability
from fgvis_lightning.images import load_image
from fgvis_lightning.items import Item
from fgvis_lightning.module import ExplanationCallback
from fgvis_lightning.store import Explanation

MARKS = (25, 50, 100, 150, 200, 300, 500)


class Curve(ExplanationCallback):
    """Size of the best masks as the iterations go on, for each image."""

    def __init__(self) -> None:
        self.sizes: dict[int, list[float]] = {}
        self.checked: list[bool] = []

    def on_train_batch_end(self, trainer: pl.Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        sizes = model.game.size(model._search.best).tolist()
        for place in batch.used:
            iteration = batch.iterations[place] + 1
            if iteration in MARKS or iteration == model.iterations:
                self.sizes.setdefault(iteration, []).append(sizes[place])

    def on_explained(self, trainer: pl.Trainer, model: FGVis, places: Sequence[int], found: Explanation) -> None:
        assert model.batch is not None
        x = model.normalize(model.batch.images[list(places)])
        for i in range(len(found)):
            mask, target = found.mask[i : i + 1].half().float().to(x.device), found.targets[i : i + 1].to(x.device)
            scores = [probability(model.plain(e), target) for e in (x[i : i + 1], blend(x[i : i + 1], mask, None))]
            ratio = float(scores[1] / scores[0])
            self.checked.append(ratio >= model.level if model.game.keeps else ratio <= model.level)


def main() -> None:
    """Run the search for each level and print how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--network", default="packaged_efficientnet_lite0")
    parser.add_argument("--game", default="preservation")
    parser.add_argument("--levels", nargs="+", type=float, default=[1.0])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=10)
    arguments = parser.parse_args()
    for level in arguments.levels:
        model = FGVis(arguments.network, game=arguments.game, level=level, iterations=arguments.iterations, patience=0)
        stream = []
        for path in arguments.photos:
            try:
                stream.append((Item(path, path, -1), load_image(path, model.classifier.preprocessing)))
            except InputError as error:
                print(error)
        curve = Curve()
        size = min(arguments.batch_size, len(stream))
        trainer = pl.Trainer(
            max_epochs=1,
            callbacks=[curve],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, Sweep(stream, size))
        print(f"{arguments.game}, level {level:g}: {sum(map(int, curve.checked))} of {len(stream)} reach it")
        for mark, values in curve.sizes.items():
            sizes = torch.tensor(values)
            row = f"mean size {sizes.mean():.3f}, median {sizes.median():.3f}, max {sizes.max():.3f}"
            print(f"  {mark:4d} iterations: {row}")
        print("  " + ", ".join(f"{size:.3f}" for size in sizes.tolist()), flush=True)


if __name__ == "__main__":
    main()
