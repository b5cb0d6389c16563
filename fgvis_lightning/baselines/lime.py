"""LIME (Ribeiro, Singh and Guestrin, KDD 2016, section 3): a linear model of the score around the image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch
from captum.attr import LimeBase
from numpy.typing import NDArray
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method, require, scores, steps
from fgvis_lightning.errors import InputError
from fgvis_lightning.results.figures import triple


@dataclass
class Ridge:
    """``min_{a,b} Σ_i w_i (y_i - a - ⟨b, z_i⟩)² + α ‖b‖²`` in closed form; captum's models would need scikit-learn."""

    alpha: float

    def fit(self, data: Any) -> None:
        # Read the dataset directly, since the loader would use the global generator.
        z, y, weights = (tensor.cpu().double() for tensor in data.dataset.tensors)
        share = weights / weights.sum()
        z, y = z - share @ z, y - share @ y
        weighted = (weights[:, None] * z).T
        self.coefficients = torch.linalg.solve(weighted @ z + self.alpha * torch.eye(z.shape[1]), weighted @ y)

    def representation(self) -> Tensor:
        return self.coefficients


@dataclass(frozen=True)
class LIME(Method):
    """Coefficient of a pixel's superpixel in a ridge regression of the target's softmax probability.

    The regressors tell which superpixels are shown. In each sample, each superpixel is hidden with probability 1/2,
    that is, filled with its mean color; the first sample is the whole image. Samples are weighted by
    ``exp(-d²/w²)^½``, where d is 1 minus the cosine between the shown and all superpixels. The paper leaves most of
    this open, so all values are the defaults of its authors' code (github.com/marcotcr/lime, ``lime_image.py``,
    ``lime_base.py``), which also uses all superpixels instead of selecting a few as in the paper.

    The superpixels are those of scikit-image's quickshift on the normalized image, scaled so that its smallest value is
    0 and its largest 1; this equals the original image up to brightness, contrast and a tint. Unlike the sizes of other
    methods, quickshift's are in pixels of the actual image, as in the authors' code; images much smaller than 224 need
    a smaller kernel.

    Args:
        samples: number of samples.
        kernel_size: kernel size of quickshift, 1 or more; larger values give fewer superpixels, like ``max_dist``.
        max_dist: maximum distance of quickshift.
        ratio: weight of color against space in quickshift, 0 to 1.
        width: w.
        alpha: α, the penalty on the squared coefficients.
        seed: seed of the samples, the same for every image, and of quickshift.
        batch_size: samples in one network pass, all of the same image.
    """

    black_box = True

    samples: int = 1000
    kernel_size: float = 4
    max_dist: float = 200
    ratio: float = 0.2
    width: float = 0.25
    alpha: float = 1
    seed: int = 0
    batch_size: int = 64

    def effort(self) -> dict[str, float]:
        return {"samples": 1000}

    def __post_init__(self) -> None:
        require(self, 1, "samples", "kernel_size", "batch_size")
        require(self, 0, "seed")  # NumPy does not accept negative seeds
        if not (self.max_dist > 0 and 0 <= self.ratio <= 1 and self.width > 0 and self.alpha > 0):
            raise InputError(f"Expected max_dist, width, alpha above 0 and ratio from 0 to 1, but got {self}.")

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        with steps(len(images) * ceil(self.samples / self.batch_size), type(self).__name__) as advance:
            score = partial(scores, network, advance=advance)
            return torch.cat([self.one(score, images[i, None], targets[i, None]) for i in range(len(images))])

    def one(self, score: Any, image: Tensor, target: Tensor) -> Tensor:
        """The map (1,H,W) of an image (1,3,H,W) for ``score(x, target)``."""
        channels = image[0].cpu().double().numpy()
        numbers = self.superpixels(channels)
        sizes = np.bincount(numbers.ravel())
        means = np.stack([np.bincount(numbers.ravel(), channel.ravel()) / sizes for channel in channels])
        shown = torch.randint(2, (self.samples, len(sizes)), generator=torch.Generator().manual_seed(self.seed)).bool()
        shown[0] = True
        where = torch.from_numpy(numbers).to(image.device)
        fill = torch.from_numpy(means).to(image)[:, where]

        def sampled(image: Tensor) -> Iterator[Tensor]:
            yield from shown.to(image.device).split(1)

        def similarity(image: Tensor, sample: Tensor, z: Tensor) -> Tensor:
            distance = 1 - z.float().mean().sqrt()  # to all ones, the cosine is the root of the share of ones
            return (-((distance / self.width) ** 2) / 2).exp()

        def perturbed(z: Tensor, image: Tensor) -> Tensor:
            return torch.where(z[0, where], image, fill)

        coefficients = LimeBase(score, Ridge(self.alpha), similarity, sampled, True, perturbed, None).attribute(
            image, additional_forward_args=(target,), n_samples=self.samples, perturbations_per_eval=self.batch_size
        )
        return coefficients.float().to(image.device)[where][None]

    def superpixels(self, image: NDArray[np.float64]) -> NDArray[np.int64]:
        """Number of each pixel's superpixel (H,W), from 0, for a normalized image (C,H,W)."""
        try:
            from skimage.segmentation import quickshift
        except ImportError as error:
            raise InputError(
                'Expected scikit-image for LIME, but it is missing. Run pip install "fgvis-lightning[baselines]".'
            ) from error
        seen = ((image - image.min()) / max(np.ptp(image), np.finfo(np.float64).tiny)).transpose(1, 2, 0)
        seen = seen[..., triple(len(image))]
        return quickshift(seen, self.ratio, self.kernel_size, self.max_dist, rng=self.seed)


@dataclass(frozen=True)
class CheapLIME(LIME):
    """`LIME` with 300 samples; the coefficients are less precise if there are many superpixels."""

    samples: int = 300
