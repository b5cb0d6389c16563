"""Tests whether maps predict the effect of changes in the image, and whether they are stable under small changes.

Infidelity and max-sensitivity (Yeh et al., On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019) are
computed by Captum; sensitivity-n is from Ancona et al., Towards Better Understanding of Gradient-Based Attribution
Methods, ICLR 2018. All metrics use the target's logit, which gradient methods explain, and not its probability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import captum.metrics
import torch
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics.checks import check_classes, check_inputs, check_maps, check_network, shape
from fgvis_lightning.metrics.curves import Network

SHARES = 0.01, 0.1, 0.5
"""Sizes of the subsets that sensitivity-n removes, as shares of the pixels."""


@torch.no_grad()
def sensitivity_n(
    network: Network,
    x: Tensor,
    saliency: Tensor,
    targets: Tensor,
    shares: Sequence[float] = SHARES,
    subsets: int = 100,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Correlation of a map's sum over n pixels with the effect of these pixels (B,N), from -1 to 1.

    It is Pearson's correlation, over random subsets of n pixels, of the map's sum over the subset with the drop of the
    target's logit when the subset becomes zero in normalized space (Ancona et al. 2018). Signs matter.

    Args:
        network: takes normalized images, returns logits (B,K).
        x: normalized images (B,3,H,W), on the device of the network.
        saliency: maps (B,H,W), high = evidence.
        targets: class indices (B,).
        shares: N sizes of subsets, as shares of the pixels in (0,1).
        subsets: number of subsets of each size; each takes a network pass.
        seed: seed of the subsets, which are the same for every image.
        batch_size: pictures in one network pass.

    Returns:
        One column for each share; NaN if the map is constant, or if all sums or all drops are equal.

    Raises:
        InputError: if shapes do not match, maps contain NaN, the network lacks a class, or numbers are out of range.
    """
    check_network(network)
    check_inputs(x, targets, batch_size)
    saliency = check_maps("saliency", saliency, len(x), *x.shape[-2:]).to(x.device)
    if subsets < 2 or not shares or not all(0 < share < 1 for share in shares):
        raise InputError(
            f"Expected subsets of at least 2 and shares between 0 and 1, but got {subsets} and {tuple(shares)}."
        )
    generator = torch.Generator().manual_seed(seed)
    pixels = saliency[0].numel()
    taken = torch.zeros(len(shares) * subsets, pixels, dtype=torch.bool)
    for row, subset in enumerate(taken):
        count = max(1, round(shares[row // subsets] * pixels))
        subset[torch.randperm(pixels, generator=generator)[:count]] = True
    taken = taken.view(-1, *saliency.shape[1:]).to(x.device)
    found = []
    for image, values, target in zip(x.detach(), saliency, targets.tolist(), strict=True):
        # The logit of the whole image is a constant that does not affect the correlation.
        drops = [-_logit(network, image * ~some[:, None], target=target) for some in taken.split(batch_size)]
        flat = values.flatten().double().cpu()
        if flat.min() == flat.max():  # different sums would be rounding alone
            found.append(torch.full((len(shares),), torch.nan))
            continue
        sums = taken.flatten(1).cpu().double() @ flat
        pairs = torch.stack([sums, torch.cat(drops).double().cpu()]).split(subsets, dim=1)
        found.append(torch.stack([pair.corrcoef()[0, 1] for pair in pairs]).float())
    return torch.stack(found)


def infidelity(
    network: Network,
    x: Tensor,
    saliency: Tensor,
    targets: Tensor,
    deviation: float = 0.2,
    samples: int = 50,
    scaled: bool = True,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Mean squared difference between a map's prediction for a change and its true effect (B,) ≥ 0 (Yeh et al. 2019).

    The change I is Gaussian noise, which is subtracted from the image; the map predicts that the target's logit drops
    by ``I · map``. Computed by `captum.metrics.infidelity`, one image at a time. The paper's experiments subtract more:
    all of the image up to such noise, or squares of it.

    Args:
        network: takes normalized images, returns logits (B,K).
        x: normalized images (B,3,H,W), on the device of the network.
        saliency: maps (B,3,H,W), as in the paper, or (B,H,W), which apply to all channels.
        targets: class indices (B,).
        deviation: standard deviation of the noise, in normalized space.
        samples: number of noise samples; each takes a network pass, and each batch takes one more.
        scaled: whether to multiply each map by its best factor, for maps without a meaningful scale. As in the authors'
            code (github.com/chihkuanyeh/saliency_evaluation, ``infid_sen_utils.py``), the factor may be negative, so a
            map and its negative have the same infidelity.
        seed: seed of the noise, which is the same for every image.
        batch_size: pictures in one network pass.

    Raises:
        InputError: if shapes do not match, maps contain NaN, the network lacks a class, or numbers are out of range.
    """
    check_network(network)
    if saliency.ndim == 3 and x.ndim == 4:
        saliency = saliency[:, None].expand(-1, x.shape[1], -1, -1)
    if saliency.shape != x.shape:
        raise InputError(f"Expected saliency to be (B,H,W) or {shape(x)}, but got {shape(saliency)}.")
    check_inputs(x, targets, batch_size)
    check_maps("saliency", saliency.flatten(2))
    if samples < 1 or not deviation > 0:
        raise InputError(f"Expected samples of at least 1 and deviation above 0, but got {samples} and {deviation}.")
    found = []
    for image, values, target in zip(x.detach(), saliency.detach().to(x), targets.tolist(), strict=True):
        found.append(
            captum.metrics.infidelity(
                partial(_logit, network, target=target),
                _Changes(image, deviation, seed).subtracted,
                image[None],
                values[None],
                n_perturb_samples=samples,
                max_examples_per_batch=min(batch_size, samples),
                normalize=scaled,
            )
        )
    return torch.cat(found).clamp(min=0)  # rounding may make the expanded square negative


def max_sensitivity(
    method: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    targets: Tensor,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Largest relative change of a map under small changes of the image (B,) ≥ 0.

    It is the maximum of ‖map(x + δ) - map(x)‖/‖map(x)‖ over changes δ with random entries between -radius and radius
    (Yeh et al. 2019). Computed by `captum.metrics.sensitivity_max`, one image at a time.

    Args:
        method: takes normalized images (n,3,H,W) and classes (n,), returns their maps (n,…).
        x: normalized images (B,3,H,W).
        targets: class indices (B,).
        radius: radius of the changes, in normalized space.
        samples: number of changes; the method is called for the image and for each change.
        seed: seed of the changes, which are the same for every image.
        batch_size: images in one call of the method.

    Raises:
        InputError: if shapes do not match, or if numbers are out of range.
    """
    check_inputs(x, targets, batch_size)
    if samples < 1 or not radius > 0:
        raise InputError(f"Expected samples of at least 1 and radius above 0, but got {samples} and {radius}.")
    found = []
    for image, target in zip(x.detach(), targets, strict=True):
        found.append(
            captum.metrics.sensitivity_max(
                partial(_maps, method, target=target),
                image[None],
                _Changes(image, radius, seed).added,
                n_perturb_samples=samples,
                max_examples_per_batch=min(batch_size, samples),
            )
        )
    return torch.cat(found)


class _Changes:
    """Random changes of one image (C,H,W), drawn one by one, so that they do not depend on the batch size."""

    def __init__(self, image: Tensor, size: float, seed: int) -> None:
        self.image, self.size = image, size
        self.generator = torch.Generator().manual_seed(seed)

    def subtracted(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Gaussian changes, and images minus these changes, for Captum's infidelity."""
        drawn = [torch.randn(self.image.shape, generator=self.generator) for _ in images]
        change = self.size * torch.stack(drawn).to(images)
        return change, images - change

    def added(self, images: Tensor) -> Tensor:
        """Images plus changes that are uniform in a cube, for Captum's max-sensitivity."""
        drawn = [torch.rand(self.image.shape, generator=self.generator) for _ in images]
        return images + self.size * (2 * torch.stack(drawn) - 1).to(images)


def _maps(
    method: Callable[[Tensor, Tensor], Tensor], images: Tensor | tuple[Tensor], *, target: Tensor
) -> Tensor | tuple[Tensor]:
    """Maps of images, in a tuple if the images are in a tuple, as Captum passes the original."""
    if isinstance(images, tuple):
        return (_maps(method, images[0], target=target),)  # type: ignore[return-value]
    with torch.enable_grad():
        return method(images, target.expand(len(images))).detach().float()


@torch.no_grad()
def _logit(network: Network, pictures: Tensor, *, target: int) -> Tensor:
    logits = network(pictures).float()
    check_classes(logits, torch.tensor([target]), len(pictures))
    return logits[:, target]
