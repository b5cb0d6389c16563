"""What stopping early saves.

    python benchmarks/early_stop.py PHOTO … --game preservation --iterations 200 --patience 100

An image that has converged waits for the others of its batch. How many iterations images take, how many steps their
batches take, and what it costs and spoils. With several seeds there is no stopping early, so there is one.
"""

from __future__ import annotations

from common import Photos, header, parser, row


def main() -> None:
    """Print the table."""
    made = parser(__doc__)
    made.set_defaults(iterations=200, game="preservation")
    made.add_argument("--patience", type=int, default=100)
    made.add_argument("--tolerance", type=float, default=0.02)
    made.add_argument("--batch_size", type=int, default=8)
    arguments = made.parse_args()
    photos = Photos(arguments.photos, arguments.network)
    header("patience", "s an image", "iterations of an image", "steps of a batch for an image", "evidence")
    for patience in (0, arguments.patience):
        run = photos.explain(
            game=arguments.game,
            seeds=1,
            seed=arguments.seed,
            iterations=arguments.iterations,
            patience=patience,
            tolerance=arguments.tolerance,
            batch_size=arguments.batch_size,
        )
        taken = run.explanation.iterations
        assert taken is not None
        steps = [len(part) * int(part.max()) for part in taken.split(arguments.batch_size)]
        row(
            *(patience, f"{run.seconds:.2f}", f"{taken.float().mean():.0f}", f"{sum(steps) / len(taken):.0f}"),
            f"{1 - run.explanation.sparsity.mean():.4f}",
        )


if __name__ == "__main__":
    main()
