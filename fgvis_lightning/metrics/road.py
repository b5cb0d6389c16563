"""ROAD: scores while pixels are removed so that they cannot be told from their surroundings.

Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022. A removed pixel becomes
the weighted mean of its neighbors, 1/6 of each along the sides and 1/12 of each at the corners, removed neighbors
included: a sparse system of linear equations for each image, solved here by conjugate gradients. A little
noise is added, so that the network cannot tell smooth from removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.method.tasks import task_of
from fgvis_lightning.metrics.checks import check_classes, check_images, check_maps, check_targets, shape
from fgvis_lightning.metrics.curves import Network
from fgvis_lightning.metrics.order import ranked

SHARES = tuple(percent / 100 for percent in range(10, 100, 10))
"""Of the pixels that are removed."""


def impute(images: Tensor, removed: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Images whose removed pixels are the weighted means of their neighbors, without noise.

    At the border the weights of the neighbors that are there are divided by their sum.

    Args:
        images: (B,C,H,W); values of removed pixels do not matter.
        removed: (B,H,W) booleans; at least one pixel of each image is to stay.
        tolerance: to which the equations hold, as a share of the largest value of the image.

    Returns:
        (B,C,H,W).

    Raises:
        InputError: shapes that do not fit, or nothing that stays.
    """
    if images.ndim != 4 or removed.shape != images[:, 0].shape or removed.dtype != torch.bool:
        raise InputError(
            f"Expected images (B,C,H,W) and removed pixels (B,H,W) as booleans, but got {shape(images)} and "
            f"{shape(removed)} of {removed.dtype}."
        )
    if removed.flatten(1).all(1).any():
        raise InputError("Expected at least one pixel of each image to stay, but all are removed of at least one.")
    with torch.autocast(images.device.type, enabled=False):
        solved = [_solve(*one, tolerance) for one in zip(images.detach().float(), removed, strict=True)]
        return torch.stack(solved).to(images.dtype)


def _solve(image: Tensor, removed: Tensor, tolerance: float) -> Tensor:
    """`impute` of one image (C,H,W), each of whose channels is a right-hand side of the same equations."""
    total = _gathered(torch.ones_like(image[:1]))
    free = removed.to(image)
    # Over removed pixels u: total u - Σ w u = Σ w v over the pixels that stay. It is symmetric and positive definite.
    right = free * _gathered(image * (1 - free))
    enough = tolerance * (image * (1 - free)).abs().amax((1, 2), keepdim=True)
    found = torch.zeros_like(image)
    residual = right
    step = residual / total  # preconditioned by the diagonal
    length = (residual * step).sum((1, 2), keepdim=True)
    # Exact after as many steps as there are unknowns; rounding asks for a bound that does not depend on it.
    for _ in range(image[0].numel()):
        open_channels = residual.abs().amax((1, 2), keepdim=True) > enough
        if not open_channels.any():
            break
        product = free * (total * step - _gathered(step))
        amount = torch.where(open_channels, length / (step * product).sum((1, 2), keepdim=True), 0)
        found = found + amount * step
        residual = residual - amount * product
        scaled = residual / total
        longer = (residual * scaled).sum((1, 2), keepdim=True)
        step = torch.where(open_channels, scaled + longer / length * step, step)
        length = torch.where(open_channels, longer, length)
    return torch.where(removed, found, image)


def _gathered(values: Tensor) -> Tensor:
    """Weighted sum of each pixel's neighbors (C,H,W).

    With the pixel itself by 1/3 the weights would be those of the outer product of (1, 2, 1) with itself, by 1/12.
    """
    padded = F.pad(values, (1, 1, 1, 1))
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:] - 4 * values) / 12


@torch.no_grad()
def road_curves(
    network: Network,
    x: Tensor,
    saliency: Tensor,
    targets: Tensor,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    ties: str = "random",
    seed: int = 0,
    batch_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Scores without the most relevant pixels, and without the least relevant ones.

    Args:
        network: takes normalized images, returns logits (B,K).
        x: normalized images (B,3,H,W), on the device of the network.
        saliency: (B,H,W), high = evidence; only its order counts.
        targets: class indices (B,).
        shares: of the pixels that are removed, P of them in (0,1), each rounded to whole pixels.
        noise: deviation of the noise that is added to removed pixels, in normalized space.
        ties: how pixels of equal value are ordered, see `fgvis_lightning.metrics.order.ranked`.
        seed: of that order and of the noise, which is the same for every image.
        batch_size: pictures in one network pass; each image takes 2P passes.

    Returns:
        Probabilities of the targets (B,P) twice: without the pixels that the map ranks highest (MoRF, low where it is
        right), and without those that it ranks lowest (LeRF, high where it is right).

    Raises:
        InputError: shapes that do not fit, NaN in the maps, classes that the network has not, shares that remove
            nothing that can be removed.
    """
    check_images(x)
    saliency = check_maps("saliency", saliency, len(x), *x.shape[-2:])
    check_targets(targets, len(x))
    if batch_size < 1 or not shares or not all(0 < share < 1 for share in shares):
        raise InputError(
            f"Expected batch_size of at least 1 and shares between 0 and 1, but got {batch_size} and {tuple(shares)}."
        )
    targets = targets.to(x.device)
    draw = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)).to(x) * noise
    counts = [min(max(1, round(share * saliency[0].numel())), saliency[0].numel() - 1) for share in shares]
    waiting, owners, scores = list[Tensor](), list[int](), list[Tensor]()

    def score() -> None:
        logits = network(torch.stack(waiting))
        if not scores:
            check_classes(logits, targets, len(waiting))
        scores.append(task_of(network).probability(logits.float(), targets[torch.tensor(owners, device=x.device)]))
        waiting.clear()
        owners.clear()

    for index, (image, values) in enumerate(zip(x.detach(), saliency.to(x.device), strict=True)):
        order = ranked(values.flatten(), ties, seed)
        for gone in (*(order[:count] for count in counts), *(order[-count:] for count in counts)):
            removed = torch.zeros_like(order, dtype=torch.bool).index_fill_(0, gone, True).view_as(values)
            waiting.append(impute(image[None], removed[None])[0] + draw * removed)
            owners.append(index)
            if len(waiting) == batch_size:
                score()
    if waiting:
        score()
    both = torch.cat(scores).view(len(x), 2, len(counts))
    return both[:, 0], both[:, 1]


def road(morf: Tensor, lerf: Tensor) -> Tensor:
    """One number of both curves (B,) from -1/2 to 1/2: the mean over the shares of (LeRF - MoRF)/2.

    High where the map tells apart what matters from what does not; 0 for an order that tells nothing. It is what
    pytorch-grad-cam (github.com/jacobgil/pytorch-grad-cam) calls ROADCombined; Rong et al. report both curves.

    Args:
        morf: (B,P), of `road_curves`.
        lerf: (B,P).

    Raises:
        InputError: shapes that do not fit.
    """
    if morf.ndim != 2 or morf.shape != lerf.shape or not morf.numel():
        raise InputError(f"Expected both curves to be (B,P), but got {shape(morf)} and {shape(lerf)}.")
    return (lerf - morf).mean(1) / 2
