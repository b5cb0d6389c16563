"""Discrimination: the effect of deleting a class's evidence on the scores of other classes of the same image.

The evidence of class A is deleted as in RISE's deletion game (Petsiuk et al., BMVC 2018): the pixels that the map for A
ranks highest become the data set's mean color. A discriminating map reduces A's score and keeps B's score; a map that
only marks conspicuous parts reduces both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fgvis_lightning.method.tasks import task_of
from fgvis_lightning.metrics.checks import check_network
from fgvis_lightning.metrics.order import ranked


def delete_evidence(x: Tensor, saliency: Tensor, share: float, ties: str = "random", seed: int = 0) -> Tensor:
    """Remove the highest-ranked pixels of a map from an image.

    Args:
        x: normalized image (3,H,W).
        saliency: map (H,W), high = evidence.
        share: share of the pixels to remove, in [0,1].
        ties: order of pixels of equal value, see `fgvis_lightning.metrics.order.ranked`.
        seed: seed of a random order.

    Returns:
        Image (3,H,W), with zeros for removed pixels.
    """
    count = round(share * saliency.numel())
    saliency = saliency.to(x.device)
    order = ranked(saliency.flatten(), ties, seed)
    kept = torch.ones_like(saliency).flatten().index_fill(0, order[:count], 0)
    return x * kept.view_as(saliency)


@torch.no_grad()
def remaining_scores(
    network: Callable[[Tensor], Tensor], x: Tensor, without: Sequence[Tensor], targets: Tensor
) -> Tensor:
    """Share of each class's score that remains when the evidence of each class is deleted.

    Args:
        network: takes normalized images, returns logits.
        x: normalized image (3,H,W).
        without: x without the evidence of each of T classes, T images (3,H,W).
        targets: the T class indices.

    Returns:
        Shares (T,T): in row A and column B, p_B without the evidence of A, divided by p_B of x.
    """
    check_network(network)
    task, targets = task_of(network), targets.to(x.device)
    logits = [network(image[None]).float().expand(len(targets), -1) for image in (x, *without)]
    scores = torch.stack([task.log_probability(each, targets) for each in logits])
    return (scores[1:] - scores[0]).exp().cpu()


def summarize(remaining: Sequence[Tensor]) -> tuple[float, float, float]:
    """Summarize `remaining_scores` (T,T) of images with T classes each.

    Returns:
        Geometric mean of the remaining shares of the classes' own scores; the same for the other classes' scores; and
        the share of pairs (A,B) for which the score of A falls more than that of B without the evidence of A. Without
        any discrimination, the first two values are equal, and the third is 1/2.
    """
    own, others, wins = [], [], []
    for left in remaining:
        logarithms = left.clamp(min=torch.finfo(left.dtype).tiny).log()
        foreign = ~torch.eye(len(left), dtype=torch.bool, device=left.device)
        own.append(logarithms.diagonal())
        others.append(logarithms[foreign])
        mine = logarithms.diagonal().repeat_interleave(len(left) - 1)
        wins.append((mine < others[-1]).float() + (mine == others[-1]).float() / 2)
    return (
        float(torch.cat(own).mean().exp()),
        float(torch.cat(others).mean().exp()),
        float(torch.cat(wins).mean()),
    )
