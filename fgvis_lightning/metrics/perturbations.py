"""Do maps foretell what changes of the image do to the output, and do they stay when it changes little?

Infidelity and max-sensitivity of Yeh et al., On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019, are
Captum's; sensitivity-n is that of Ancona et al., Towards Better Understanding of Gradient-Based Attribution Methods,
ICLR 2018. All take the target's logit, which the gradient methods explain, not its probability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import captum.metrics
import torch
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.metrics.checks import check_classes, check_images, check_maps, check_targets, shape
from fgvis_lightning.metrics.curves import Network

SHARES = 0.01, 0.1, 0.5
"""Of the pixels, whose subsets sensitivity-n takes away."""


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
    """How well the sum of a map over n pixels foretells what they do together (B,N), from -1 to 1.

    Pearson's correlation, over subsets of n pixels drawn at random, of the map's sum over the subset and of the drop of
    the target's logit when its pixels become zero in normalized space (Ancona et al. 2018). Signs count.

    Args:
        network: takes normalized images, returns logits (B,K).
        x: normalized images (B,3,H,W), on the device of the network.
        saliency: (B,H,W), high = evidence.
        targets: class indices (B,).
        shares: N sizes of subsets, in shares of the pixels, in (0,1).
        subsets: of each size; each takes a network pass.
        seed: of the draws, which are the same for every image.
        batch_size: pictures in one network pass.

    Returns:
        A column for each share; NaN where all sums or all drops are equal.

    Raises:
        InputError: shapes that do not fit, NaN in the maps, classes that the network has not, numbers out of range.
    """
    _check(x, targets, batch_size)
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
        # The whole logit, from which what is left is subtracted, does not matter to the correlation.
        drops = [-_logit(network, image * ~some[:, None], target=target) for some in taken.split(batch_size)]
        sums = [(values * some).flatten(1).sum(1) for some in taken.split(batch_size)]
        pairs = zip(torch.cat(sums).split(subsets), torch.cat(drops).split(subsets), strict=True)
        found.append(torch.stack([_correlation(*pair) for pair in pairs]))
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
    """Mean square of what a map says of a change of the image less what it does (B,) ≥ 0 (Yeh et al. 2019).

    The change I is Gaussian noise, subtracted from the image; the map says that it takes ``I · map`` from the target's
    logit. By `captum.metrics.infidelity`, one image at a time.

    Args:
        network: takes normalized images, returns logits (B,K).
        x: normalized images (B,3,H,W), on the device of the network.
        saliency: (B,3,H,W), as the paper has them, or (B,H,W), which say the same of each channel.
        targets: class indices (B,).
        deviation: of the noise, in normalized space.
        samples: of the noise; each takes a network pass, and each batch of them one more.
        scaled: whether each map is multiplied by the factor that is best for it, for maps whose scale says nothing.
        seed: of the noise, which is the same for every image.
        batch_size: pictures in one network pass.

    Raises:
        InputError: shapes that do not fit, NaN in the maps, classes that the network has not, numbers out of range.
    """
    if saliency.ndim == 3 and x.ndim == 4:
        saliency = saliency[:, None].expand(-1, x.shape[1], -1, -1)
    if saliency.shape != x.shape:
        raise InputError(f"Expected saliency to be (B,H,W) or {shape(x)}, but got {shape(saliency)}.")
    _check(x, targets, batch_size)
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
    return torch.cat(found).clamp(min=0)  # a mean square by a binomial formula, which rounding may take below 0


def max_sensitivity(
    method: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    targets: Tensor,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """How far a map moves at most when the image changes little (B,) ≥ 0, as a share of its own length.

    The largest ‖map(x + δ) - map(x)‖/‖map(x)‖ over changes δ with entries drawn between -radius and radius (Yeh et al.
    2019). By `captum.metrics.sensitivity_max`, one image at a time.

    Args:
        method: takes normalized images (n,3,H,W) and classes (n,), returns their maps (n,…).
        x: normalized images (B,3,H,W).
        targets: class indices (B,).
        radius: of the changes, in normalized space.
        samples: of the changes; the method is called for the image and for each of them.
        seed: of the changes, which are the same for every image.
        batch_size: images in one call of the method.

    Raises:
        InputError: shapes that do not fit, numbers out of range.
    """
    _check(x, targets, batch_size)
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
    """Random changes of one image (C,H,W), drawn one after the other, so that they do not depend on the batch size."""

    def __init__(self, image: Tensor, size: float, seed: int) -> None:
        self.image, self.size = image, size
        self.generator = torch.Generator().manual_seed(seed)

    def subtracted(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Gaussian changes, and images without them, as Captum's infidelity asks for them."""
        drawn = [torch.randn(self.image.shape, generator=self.generator) for _ in images]
        change = self.size * torch.stack(drawn).to(images)
        return change, images - change

    def added(self, images: Tensor) -> Tensor:
        """Images with changes that are uniform in a cube, as Captum's max-sensitivity asks for them."""
        drawn = [torch.rand(self.image.shape, generator=self.generator) for _ in images]
        return images + self.size * (2 * torch.stack(drawn) - 1).to(images)


def _maps(
    method: Callable[[Tensor, Tensor], Tensor], images: Tensor | tuple[Tensor], *, target: Tensor
) -> Tensor | tuple[Tensor]:
    """Maps of images, in a tuple where the images are in one, as Captum hands over the original."""
    if isinstance(images, tuple):
        return (_maps(method, images[0], target=target),)  # type: ignore[return-value]
    with torch.enable_grad():
        return method(images, target.expand(len(images))).detach().float()


@torch.no_grad()
def _logit(network: Network, pictures: Tensor, *, target: int) -> Tensor:
    logits = network(pictures).float()
    check_classes(logits, torch.tensor([target]), len(pictures))
    return logits[:, target]


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = (values.double().cpu() - values.double().cpu().mean() for values in (a, b))
    return ((a / a.norm()) * (b / b.norm())).sum().clamp(-1, 1).float()


def _check(x: Tensor, targets: Tensor, batch_size: int) -> None:
    check_images(x)
    check_targets(targets, len(x))
    if batch_size < 1:
        raise InputError(f"Expected batch_size to be at least 1, but got {batch_size}.")
