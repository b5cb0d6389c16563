"""How small evidence is, how sharp, how stable, and how good a ranking, for each game and number of passes.

    python benchmarks/evidence.py PHOTO … --games preservation deletion --seeds 1 6 --marks 20 60
    python benchmarks/evidence.py PHOTO … --seeds 6 --marks 50 --disturb seed batch image precision threads

Every explanation is checked as a reader of its file would: the stored mask, the plain network, one image at a time.
An iteration is one pass, forward and backward, for each of the seeds until their runs are joined, then one. With
``--disturb``, the correlation of masks with those of the same settings under another seed, another batch size, an image
moved by 1e-5, bf16-mixed or another number of threads: as they are, and after a blur of 15 pixels.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from common import Photos, Run, header, parser, row
from torch import Tensor

from fgvis_lightning import Explanation
from fgvis_lightning.metrics import new_edges
from fgvis_lightning.results.figures import explanation_image

DISTURBANCES = ("seed", "batch", "image", "precision", "threads")
BLUR = 15


def blurred(evidence: Tensor) -> Tensor:
    """Mean over the channels and over squares (B,1,H,W)."""
    side = BLUR // 2
    return F.avg_pool2d(F.pad(evidence.mean(1, keepdim=True), (side,) * 4, mode="replicate"), BLUR, 1)


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """Correlation of each image's values (B,)."""
    a, b = (values.flatten(1).double() for values in (one, other))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def ranks(maps: Tensor) -> Tensor:
    """The place of each pixel among those of its image, from the least (B,H,W)."""
    return maps.flatten(1).argsort(1).argsort(1).float().view_as(maps)


def again(photos: Photos, disturbance: str, options: dict[str, Any]) -> Explanation:
    """The same explanations under a disturbance."""
    if disturbance == "seed":
        return photos.explanation(**options, seed=1)
    if disturbance == "batch":
        return photos.explanation(**{**options, "batch_size": 1})
    if disturbance == "precision":
        return photos.explanation(**options, precision="bf16-mixed")
    threads, images = torch.get_num_threads(), photos.images
    try:
        if disturbance == "threads":
            torch.set_num_threads(1 if threads > 1 else 2)
        else:
            draw = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
            photos.images = (images + 1e-5 * draw).clamp(0, 1)
        return photos.explanation(**options)
    finally:
        torch.set_num_threads(threads)
        photos.images = images


def measure(photos: Photos, game: str, seeds: int, iterations: int, arguments: argparse.Namespace) -> Run:
    """One row of the table, and, below it, where ``--disturb`` asks for them, the stabilities."""
    options: dict[str, Any] = {"game": game, "seeds": seeds, "iterations": iterations}
    options["batch_size"] = max(1, arguments.batch_size // seeds)
    run = photos.explain(**options)
    found = run.explanation
    assert found.reached is not None
    _, plain = photos.judge(found.game, found.mask)
    sizes = 1 - found.sparsity
    background = photos.classifier.preprocessing.background()
    shown = torch.stack(
        [explanation_image(*each, background) for each in zip(photos.images, found.evidence, strict=True)]
    )
    row(
        *(game, seeds, iterations, f"{sizes.mean():.3f}", f"{sizes.median():.3f}", f"{sizes.max():.3f}"),
        *(f"{plain.float().mean():.2f}", f"{((found.reached >= 0) & (found.reached < 25)).float().mean():.2f}"),
        *(f"{new_edges(photos.images, shown).mean():.3f}", f"{run.deletion.mean():.3f}", f"{run.insertion.mean():.3f}"),
        "–" if found.agreement is None else f"{found.agreement.nanmean():.2f}",
        f"{run.seconds:.1f}",
    )
    for disturbance in arguments.disturb:
        other = again(photos, disturbance, options)
        exact, soft = pearson(found.mask, other.mask), pearson(blurred(found.evidence), blurred(other.evidence))
        print(
            f"    {disturbance}: r {exact.nanmean():.2f} (least {exact.min():.2f}), "
            f"after the blur {soft.nanmean():.3f} (least {soft.min():.3f})",
            flush=True,
        )
    return run


def main() -> None:
    """Print the tables."""
    made = parser(__doc__)
    made.add_argument("--games", nargs="+", default=["preservation", "deletion", "repression", "generation"])
    made.add_argument("--seeds", nargs="+", type=int, default=[1, 6])
    made.add_argument("--marks", nargs="+", type=int, default=[50], help="numbers of iterations")
    made.add_argument("--disturb", nargs="*", choices=DISTURBANCES, default=[])
    made.add_argument("--batch_size", type=int, default=24, help="rows of a batch: images times seeds")
    arguments = made.parse_args()
    photos = Photos(arguments.photos, arguments.network)
    print(f"{len(photos.images)} photos, {arguments.network}, mean score {photos.score_image.mean():.3f}\n")
    header(
        *("game", "seeds", "iterations", "evidence", "median", "largest", "reach", "in 25", "new edges"),
        *("deletion AUC", "insertion AUC", "agreement", "s"),
    )
    maps: dict[str, Tensor] = {}
    for game in arguments.games:
        for seeds in arguments.seeds:
            for iterations in arguments.marks:
                maps[game] = measure(photos, game, seeds, iterations, arguments).explanation.saliency()
    for game in ("deletion", "repression"):
        if {"preservation", game} <= maps.keys():
            deletion, insertion = photos.curves(ranks(maps["preservation"]) + ranks(maps[game]))
            print(f"\nsum of the ranks by preservation and by {game}: {deletion.mean():.3f} / {insertion.mean():.3f}")


if __name__ == "__main__":
    main()
