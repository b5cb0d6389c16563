"""What deletion and insertion AUC cost beside the network passes that they need.

    OMP_NUM_THREADS=1 python benchmarks/curves.py PHOTO... [--pairs 7]

Both are timed in turns in one run: `fgvis_lightning.metrics.curves` with RISE's profile, and the network alone on as
many pictures of that size, in batches of the same sizes and in the same memory format. What is printed is the median
of the pairs' ratios, and that of the seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import common
import torch

from fgvis_lightning.metrics import PROFILES, auc, curves


def seconds(call: Callable[[], object]) -> float:
    """Of one call, on a GPU until its work is done."""
    if common.DEVICE == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if common.DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch_size", type=int, default=16)
    options = parser.parse_args()
    photos = common.Photos(options.photos, options.network)
    saliency = torch.rand(
        photos.x.shape[0], *photos.x.shape[-2:], generator=torch.Generator().manual_seed(options.seed)
    )
    profile = PROFILES["rise"]
    scores = len(profile.counts(*photos.x.shape[-2:]))
    passes = len(photos.x) * (2 * scores - 1)
    pictures = photos.x[torch.arange(options.batch_size) % len(photos.x)].contiguous(memory_format=torch.channels_last)

    def with_curves() -> None:
        for found in curves(photos.network, photos.x, saliency, photos.targets, profile, options.batch_size):
            auc(found, profile).tolist()

    @torch.no_grad()
    def alone() -> None:
        for start in range(0, passes, options.batch_size):
            photos.network(pictures[: passes - start]).softmax(1).sum().item()

    alone()
    pairs = [(seconds(with_curves), seconds(alone)) for _ in range(options.pairs)]
    common.header("photos", "passes", "curves s", "passes alone s", "ratio", "ratios from", "to")
    ratios = [a / b for a, b in pairs]
    medians = [statistics.median(values) for values in zip(*pairs, strict=True)]
    common.row(
        len(photos.x),
        passes,
        *(f"{value:.2f}" for value in medians),
        *(f"{value:.3f}" for value in (statistics.median(ratios), min(ratios), max(ratios))),
    )


if __name__ == "__main__":
    main()
