"""By how much batch size and number of threads change an explanation.

    python benchmarks/batch_size.py PHOTO … --batch-sizes 1 2 4 8 --lam auto 1e-7 --iterations 100

Neither is meant to matter, but both change the order of additions, and with it the last bits. Every row is
compared with the first one, the largest batch; the second repeats it.
"""

from __future__ import annotations

import torch
from common import COMPARED, Photos, header, parser, row, weight


def main() -> None:
    """Run every batch size for each λ and print a table."""
    arguments = parser(__doc__)
    arguments.add_argument("--lam", nargs="+", type=weight, default=["auto", 1e-7])
    arguments.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 2, 4, 8])
    options = arguments.parse_args()
    photos = Photos(options.photos, options.network)
    threads = torch.get_num_threads()
    sizes = sorted(options.batch_sizes, reverse=True)
    runs = [(sizes[0], threads), *((size, threads) for size in sizes), (sizes[0], 1 if threads > 1 else 2)]
    print(f"{options.game}, {len(options.photos)} photos, {options.iterations} iterations\n")
    header("λ", "batch size", "threads", "bitwise equal", "mean difference", "largest", *COMPARED)
    for lam in options.lam:
        reference = None
        for size, count in runs:
            torch.set_num_threads(count)
            run = photos.explain(
                game=options.game, lam=lam, iterations=options.iterations, seed=options.seed, batch_size=size
            )
            reference = reference or run
            difference = (run.explanation.mask - reference.explanation.mask).abs()
            equal = int((difference.flatten(1).amax(1) == 0).sum())
            row(
                lam,
                size,
                count,
                f"{equal} of {len(difference)}",
                f"{difference.mean():.2g}",
                f"{difference.max():.2g}",
                *photos.compare(run, reference),
            )
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
