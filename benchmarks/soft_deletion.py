"""Would deletion be more stable if it removed entries partly? What that costs in evidence.

    python benchmarks/soft_deletion.py PHOTO … --seeds 6 --iterations 200

Runs the default solver of deletion twice, with different seeds, and makes evidence from its worth (averaged over the
runs when they are joined, or at the end): the entries above a threshold, wholly; or min(1, worth / threshold) to the
power of γ. The threshold is the highest for which the level is reached. Prints the mean evidence, the correlation of
the two masks (and after a blur of 15 pixels), and new edges, beside those of the solver's own mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import Photos, header, parser, row
from evidence import blurred, pearson
from torch import Tensor

from fgvis_lightning import DefendedCNN
from fgvis_lightning.method.games import GAMES, blend, probability
from fgvis_lightning.method.loop import solve
from fgvis_lightning.method.runs import Run
from fgvis_lightning.method.solvers import Thresholding
from fgvis_lightning.metrics import new_edges
from fgvis_lightning.results.figures import explanation_image

LEVEL, HALVINGS = 0.1, 14
GAMMAS = (1, 2, 3, 5)


class Watched(Thresholding):
    """Keeps the mean worth of the runs when they are joined."""

    joined: Tensor

    def join(self, runs: Sequence[Run], group: dict[str, Any]) -> Run:
        common = super().join(runs, group)
        self.joined = common.worth.clone()
        return common


@torch.no_grad()
def smallest(make: Callable[[float], Tensor], enough: Callable[[Tensor], bool]) -> Tensor:
    """The evidence of the smallest factor of the worth that is enough, by bisection."""
    low, high = 0.0, 1.0
    while not enough(make(high)) and high < 1e6:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(make(middle)) else (middle, high)
    return make(high)


def shapes(photos: Photos, index: int, seeds: int, iterations: int, seed: int) -> dict[str, Tensor]:
    """Evidence (C,H,W) of one photo in all shapes."""
    x, target, level = photos.x[index], photos.targets[index, None], LEVEL * photos.score_image[index]
    solver: list[Watched] = []

    def optimizer(masks: Any) -> Watched:
        solver.append(Watched(masks))
        return solver[0]

    def enough(evidence: Tensor) -> bool:
        return bool(probability(photos.network(blend(x, 1 - evidence, None)[None]), target) <= level)

    options: dict[str, Any] = {"iterations": iterations, "level": LEVEL, "seeds": seeds, "seed": seed}
    defended = DefendedCNN(photos.network, gate="strict")
    mask = solve(defended, x[None], target, GAMES["deletion"], optimizer, **options)
    found: dict[str, Tensor] = {"the solver's": 1 - mask[0]}
    last = solver[0].found(0)
    assert last is not None
    for name, worth in (("joined", solver[0].joined), ("last", last.worth)):
        scaled = worth / worth.flatten().kthvalue(int(0.95 * worth.numel())).values
        found[f"{name}, whole entries"] = smallest(lambda k, w=scaled: (k * w > 1).to(w), enough)
        for gamma in GAMMAS:
            found[f"{name}, γ = {gamma}"] = smallest(lambda k, w=scaled, g=gamma: (k * w).clamp(max=1) ** g, enough)
    return found


def main() -> None:
    """Print the table."""
    made = parser(__doc__)
    made.set_defaults(iterations=200)
    made.add_argument("--seeds", type=int, default=6)
    options = made.parse_args()
    photos = Photos(options.photos, options.network)
    places = range(len(photos.images))
    twice = [[shapes(photos, index, options.seeds, options.iterations, seed) for index in places] for seed in (0, 1000)]
    background = photos.classifier.preprocessing.background()
    header("evidence", "mean", "largest", "another seed: r", "blurred", "new edges")
    for name in twice[0][0]:
        one, other = (torch.stack([shape[name] for shape in run]) for run in twice)
        shown = [explanation_image(*each, background) for each in zip(photos.images, one, strict=True)]
        row(
            *(name, f"{one.mean():.3f}", f"{one.flatten(1).mean(1).max():.3f}", f"{pearson(one, other).mean():.2f}"),
            *(
                f"{pearson(blurred(one), blurred(other)).mean():.2f}",
                f"{new_edges(photos.images, torch.stack(shown)).mean():.3f}",
            ),
        )


if __name__ == "__main__":
    main()
