"""ROAD: scores while pixels are removed in such a way that they are indistinguishable from their surroundings.

Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022. A removed pixel becomes
the weighted mean of its neighbors, with weights of 1/6 along the sides and 1/12 at the corners, including removed
neighbors. This is a sparse system of linear equations for each image, solved here by conjugate gradients. A little
noise is added, so that the network cannot recognize removed pixels by their smoothness.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics.checks import check_images, check_maps, check_targets, shape
from fgvis_lightning.metrics.curves import Network, probabilities
from fgvis_lightning.metrics.order import ranked

SHARES = tuple(percent / 100 for percent in range(10, 100, 10))
"""Shares of removed pixels."""


def impute(images: Tensor, removed: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Replace removed pixels by the weighted means of their neighbors, without noise.

    At the border, the weights of the existing neighbors are divided by their sum.

    Args:
        images: images (B,C,H,W); values of removed pixels are ignored.
        removed: booleans (B,H,W); at least one pixel of each image must remain.
        tolerance: tolerance of the equations, as a share of the largest absolute value that remains in a channel.

    Returns:
        Images (B,C,H,W).

    Raises:
        InputError: if shapes do not match, or if no pixel of an image remains.
    """
    if images.ndim != 4 or removed.shape != images[:, 0].shape or removed.dtype != torch.bool:
        raise InputError(
            f"Expected images (B,C,H,W) and removed pixels (B,H,W) as booleans, but got {shape(images)} and "
            f"{shape(removed)} of {removed.dtype}."
        )
    if removed.flatten(1).all(1).any():
        raise InputError("Expected at least one pixel of each image to remain, but got an image without any.")
    with torch.autocast(images.device.type, enabled=False):
        solved = [_solve(*one, tolerance) for one in zip(images.detach().float(), removed, strict=True)]
        return torch.stack(solved).to(images.dtype)


def _solve(image: Tensor, removed: Tensor, tolerance: float) -> Tensor:
    """`impute` for one image (C,H,W); each channel is a right-hand side of the same equations."""
    total = _gathered(torch.ones_like(image[:1]))
    free = removed.to(image)
    # For removed pixels u: total u - Σ w u = Σ w v over the remaining pixels v, symmetric and positive definite.
    right = free * _gathered(image * (1 - free))
    enough = tolerance * (image * (1 - free)).abs().amax((1, 2), keepdim=True)
    found = torch.zeros_like(image)
    residual = right
    step = residual / total  # preconditioned by the diagonal
    length = (residual * step).sum((1, 2), keepdim=True)
    # Exact after as many steps as there are unknowns; the number of pixels bounds the loop in case of rounding errors.
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

    With a weight of 1/3 for the pixel itself, the weights are the outer product of (1, 2, 1) with itself, times 1/12.
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
        saliency: maps (B,H,W), high = evidence; only the order of values matters.
        targets: class indices (B,).
        shares: P shares of removed pixels in (0,1), rounded to whole pixels.
        noise: standard deviation of the noise that is added to removed pixels, in normalized space.
        ties: order of pixels of equal value, see `fgvis_lightning.metrics.order.ranked`.
        seed: seed of this order and of the noise, which is the same for every image.
        batch_size: pictures in one network pass; each image takes 2P passes.

    Returns:
        Probabilities (B,P) of the targets without the highest-ranked pixels (MoRF, low for a correct map) and without
        the lowest-ranked pixels (LeRF, high for a correct map).

    Raises:
        InputError: if shapes do not match, maps contain NaN, the network lacks a class, or shares are out of range.
    """
    check_images(x)
    saliency = check_maps("saliency", saliency, len(x), *x.shape[-2:])
    check_targets(targets, len(x))
    if batch_size < 1 or not shares or not all(0 < share < 1 for share in shares):
        raise InputError(
            f"Expected batch_size of at least 1 and shares between 0 and 1, but got {batch_size} and {tuple(shares)}."
        )
    draw = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)).to(x) * noise
    counts = [min(max(1, round(share * saliency[0].numel())), saliency[0].numel() - 1) for share in shares]

    def pictures() -> Iterator[tuple[Tensor, list[int]]]:
        waiting, owners = list[Tensor](), list[int]()
        for index, (image, values) in enumerate(zip(x.detach(), saliency.to(x.device), strict=True)):
            order = ranked(values.flatten(), ties, seed)
            for gone in (*(order[:count] for count in counts), *(order[-count:] for count in counts)):
                removed = torch.zeros_like(order, dtype=torch.bool).index_fill_(0, gone, True).view_as(values)
                waiting.append(impute(image[None], removed[None])[0] + draw * removed)
                owners.append(index)
                if len(waiting) == batch_size:
                    yield torch.stack(waiting), owners
                    waiting, owners = [], []
        if waiting:
            yield torch.stack(waiting), owners

    both = probabilities(network, pictures(), targets.to(x.device)).view(len(x), 2, len(counts))
    return both[:, 0], both[:, 1]


def road(morf: Tensor, lerf: Tensor) -> Tensor:
    """Combine both curves into one number (B,) from -1/2 to 1/2: the mean over the shares of (LeRF - MoRF)/2.

    It is high if the map separates relevant from irrelevant pixels, and 0 for an uninformative order. pytorch-grad-cam
    (github.com/jacobgil/pytorch-grad-cam) calls it ROADCombined; Rong et al. report both curves, of the accuracy.

    Args:
        morf: MoRF curves (B,P) of `road_curves`.
        lerf: LeRF curves (B,P).

    Raises:
        InputError: if shapes do not match.
    """
    if morf.ndim != 2 or morf.shape != lerf.shape or not morf.numel():
        raise InputError(f"Expected both curves to be (B,P), but got {shape(morf)} and {shape(lerf)}.")
    return (lerf - morf).mean(1) / 2
