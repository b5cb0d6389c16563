"""Are explanations the same with and without each optimization?

    python benchmarks/optimizations.py PHOTO … --lam auto 1e-7 --iterations 100

Fused gates change no bit. Folding changes the last bits of the activations, as another batch size does, and a hundred
steps through gates amplify that: the row of batch size 1 is the yardstick. All explanations are judged by the network
as it is.
"""

from __future__ import annotations

from typing import Any

from common import COMPARED, Photos, header, parser, row, weight

ROWS: dict[str, dict[str, Any]] = {
    "none": {"fold": False, "fused": False},
    "none, batch of 1": {"fold": False, "fused": False, "batch_size": 1},
    "fused gates": {"fold": False, "fused": True},
    "folded batch normalization": {"fold": True, "fused": False},
    "both": {"fold": True, "fused": True},
}


def main() -> None:
    """Print a table for each λ."""
    made = parser(__doc__)
    made.add_argument("--lam", type=weight, nargs="+", default=["auto"])
    options = made.parse_args()
    photos = Photos(options.photos, options.network)
    for lam in options.lam:
        print(f"\n{options.game}, λ {lam}, {options.iterations} iterations, {len(photos.images)} photos\n")
        header("optimization", "equal bits", *COMPARED)
        reference = None
        for name, asked in ROWS.items():
            asked = {"batch_size": len(photos.images), **asked}
            run = photos.explain(game=options.game, lam=lam, iterations=options.iterations, seed=options.seed, **asked)
            reference = reference or run
            equal = bool((run.explanation.mask == reference.explanation.mask).all())
            row(name, "yes" if equal else "no", *photos.compare(run, reference))


if __name__ == "__main__":
    main()
