"""Masks on an image's wavelet coefficients: CartoonX (ECCV 2022) and WaveletX (CVPR 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from types import ModuleType

import torch
from torch import Tensor, nn

from fgvis_lightning.baselines.base import MaskMethod, require, scores, steps
from fgvis_lightning.errors import InputError
from fgvis_lightning.method.tasks import task_of
from fgvis_lightning.networks.classifier import Classifier

Bands = list[Tensor]
"""Coefficients of an image: (N,C,1,h,w) for the coarse rest, then (N,C,3,h,w) for each scale, from coarse to fine."""


@dataclass(frozen=True)
class CartoonX(MaskMethod):
    """CartoonX (Kolek et al., ECCV 2022, section 4): the few wavelet coefficients that keep the score.

    ``E (p(x) - p(y))² + λ mean(m)`` is minimized with Adam over a mask m in [0,1] of the image's coefficients c, which
    is clamped after each step. p is the target's softmax probability, and y has the coefficients ``m c + (1 - m) n``.
    The noise n is Gaussian, with the mean and standard deviation of the image's coefficients of the same scale, and
    random for each of the samples of E. All color channels share the mask, which starts at 1; y is clamped to valid
    images. The explanation has the coefficients ``m c``. As in the authors' figures, the map is the explanation's gray
    value in [0,1]: high where the explanation is bright, and 0 also for black evidence.

    The values are those of the authors' code (github.com/skmda37/CartoonX, ``hparams.yaml``), which also determines
    that the transform pads with zeros and that λ weights the mean. It takes 128,000 passes for each image.

    Colors must be in [0,1] with black at 0. Comparisons know the network's normalization; otherwise, set ``mean`` and
    ``std``, or the image's own smallest and largest values count as black and white. The noise is the same for every
    image and every call.

    Args:
        iterations: iterations of Adam.
        lr: learning rate of Adam.
        sparsity: λ.
        spatial: weight of the map's mean, a penalty that CartoonX does not have, see `WaveletX`.
        samples: number of noise samples in each iteration.
        wavelet: name of one of PyWavelets' discrete wavelets.
        scales: number of scales of the transform.
        mean: mean of each channel in the network's normalization.
        std: standard deviation of each channel in the network's normalization.
        seed: seed of the noise.
        batch_size: samples in one network pass, all of the same image.
    """

    black_box = True
    hides = "black"

    iterations: int = 2000
    lr: float = 0.001
    sparsity: float = 4
    spatial: float = 0
    samples: int = 64
    wavelet: str = "db3"
    scales: int = 5
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0
    batch_size: int = 16

    def effort(self) -> dict[str, float]:
        return {"iterations": 2000, "samples": 64}

    def __post_init__(self) -> None:
        require(self, 0, "iterations", "lr", "sparsity", "spatial")
        require(self, 1, "samples", "scales", "batch_size")
        if (self.mean is None) != (self.std is None):
            raise InputError(f"Expected mean and std, or neither, but got {self.mean} and {self.std}. Set both.")
        if self.mean is not None and self.std is not None and (len(self.mean) != len(self.std) or min(self.std) <= 0):
            raise InputError(f"Expected mean and std > 0 for each channel, but got {self.mean} and {self.std}.")

    def prepared(self, classifier: Classifier) -> CartoonX:
        known = classifier.preprocessing
        return self if self.mean is not None else replace(self, mean=known.mean, std=known.std)

    def explanation(self, network: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        passes = 1 + self.iterations * ceil(self.samples / self.batch_size)
        with steps(len(images) * passes, type(self).__name__) as advance:
            found = [self.one(network, images[i, None], targets[i, None], advance) for i in range(len(images))]
        shown, maps = (torch.cat(parts).float() for parts in zip(*found, strict=True))
        return shown, maps

    def one(
        self, network: nn.Module, image: Tensor, target: Tensor, advance: Callable[[], None]
    ) -> tuple[Tensor, Tensor]:
        """Explanation (1,C,H,W) and map (1,H,W) of a normalized image (1,C,H,W)."""
        black, span = self.levels(image)
        with torch.autocast(image.device.type, enabled=False):
            bands = self.decomposed((image - black) / span)
            gray = [band.mean(1, keepdim=True) for band in bands]
        mask = self.learned(network, image, bands, gray, target, advance)
        with torch.autocast(image.device.type, enabled=False):
            shown, map = (self.shown(mask, coefficients, image) for coefficients in (bands, gray))
            return black + span * shown, map[:, 0]

    def learned(
        self, network: nn.Module, image: Tensor, bands: Bands, gray: Bands, target: Tensor, advance: Callable[[], None]
    ) -> Bands:
        """The mask (1,1,1 or 3,h,w) of each band."""
        goal = self.goal(scores(network, image, target, advance))
        mask = [torch.ones_like(band[:, :1]).requires_grad_() for band in bands]
        optimizer = torch.optim.Adam(mask, self.lr)
        generator = torch.Generator(image.device).manual_seed(self.seed)
        for _ in range(self.iterations):
            with torch.autocast(image.device.type, enabled=False):
                gradient = torch.autograd.grad(self.size(mask, gray, image), mask)
            for start in range(0, self.samples, self.batch_size):
                noise = self.noise(bands, min(self.batch_size, self.samples - start), generator)
                loss = self.distortion(network, image, bands, noise, mask, target, goal).sum() / self.samples
                with torch.autocast(image.device.type, enabled=False):  # autocast would also affect the mask's gradient
                    more = torch.autograd.grad(loss, mask)
                gradient = tuple(a + b for a, b in zip(gradient, more, strict=True))
                advance()
            for part, slope in zip(mask, gradient, strict=True):
                part.grad = slope
            optimizer.step()
            for part in mask:
                part.detach().clamp_(0, 1)
        return [part.detach() for part in mask]

    def distortion(
        self, network: nn.Module, image: Tensor, bands: Bands, noise: Bands, mask: Bands, target: Tensor, goal: Tensor
    ) -> Tensor:
        """``(goal - p(y))²`` (N,) for N samples of noise."""
        black, span = self.levels(image)
        with torch.autocast(image.device.type, enabled=False):
            kept = [torch.lerp(n, c.expand_as(n), m.expand_as(n)) for n, c, m in zip(noise, bands, mask, strict=True)]
            y = black + span * self.composed(kept, image).clamp(0, 1)
        logits = network(y.to(image.dtype)).float()
        return (goal - task_of(network).probability(logits, target.expand(len(logits)))).square()

    def size(self, mask: Bands, gray: Bands, image: Tensor) -> Tensor:
        """The penalties on the mask, a scalar."""
        size = self.sparsity * torch.cat([part.flatten() for part in mask]).mean()
        return size + self.spatial * self.shown(mask, gray, image).mean() if self.spatial else size

    def goal(self, score: Tensor) -> Tensor:
        """The probability (1,) to reach, given that of the image."""
        return score

    def noise(self, bands: Bands, count: int, generator: torch.Generator) -> Bands:
        """Samples of coefficients (count,C,…), drawn one by one, so that they do not depend on ``count``."""
        drawn = torch.stack([self.drawn(sum(band.numel() for band in bands), generator) for _ in range(count)])
        parts = drawn.to(bands[0].dtype).split([band.numel() for band in bands], 1)
        return [
            band.mean() + band.std() * part.view(count, *band.shape[1:])
            for band, part in zip(bands, parts, strict=True)
        ]

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """Random numbers, before scaling to the mean and standard deviation of a scale."""
        return torch.randn(count, generator=generator, device=generator.device)

    def shown(self, mask: Bands, bands: Bands, image: Tensor) -> Tensor:
        """The image (1,C,H,W) of the masked coefficients, in [0,1]."""
        return self.composed([part * band for part, band in zip(mask, bands, strict=True)], image).clamp(0, 1)

    def levels(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Black, and white minus black (1 or C,1,1), for a normalized image (1,C,H,W)."""
        if self.mean is None or self.std is None:
            black, white = image.min(), image.max()
            return black.view(1, 1, 1), torch.where(white > black, white - black, 1).view(1, 1, 1)
        if len(self.mean) not in (1, image.shape[1]):
            raise InputError(
                f"Expected mean and std for {image.shape[1]} channels, but got {self.mean} and {self.std}."
            )
        mean, std = (image.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return -mean / std, 1 / std

    def decomposed(self, pixels: Tensor) -> Bands:
        """The coefficients of images (N,C,H,W), in float32 or better."""
        exact = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        try:
            rest, *details = toolbox().wavedec2(exact, self.wavelet, mode="zero", level=self.scales)
        except ValueError as error:
            raise InputError(f"Expected wavelet to be one of PyWavelets', but got {self.wavelet!r}: {error}") from error
        return [rest[:, :, None], *(torch.stack(list(detail), 2) for detail in details)]

    def composed(self, bands: Bands, image: Tensor) -> Tensor:
        """The images (N,C,H,W) of coefficients, in the size of another image."""
        rest, *details = bands
        large = toolbox().waverec2((rest[:, :, 0], *(tuple(detail.unbind(2)) for detail in details)), self.wavelet)
        return large[..., : image.shape[-2], : image.shape[-1]]  # odd sizes have one row or column less


@dataclass(frozen=True)
class WaveletX(CartoonX):
    """WaveletX (Kolek et al., CVPR 2023, section 4): few wavelet coefficients of a dark image that raise the score.

    ``E (1 - p(y))² + λ₁ mean(m) + λ₂ mean(s)`` is minimized as in `CartoonX`, where s is the gray value of the
    explanation. Without this penalty, a coarse coefficient would show large irrelevant parts of the image. The noise is
    uniform within one standard deviation from the mean. The values are those of the authors' code
    (github.com/skmda37/ShearletX, ``scatterplot.py``): λ₁ = 2 is ``sparsity``, λ₂ = 10 is ``spatial``.

    ShearletX, the paper's main method, does the same with shearlets, which also have directions. It is not included,
    since there is no maintained shearlet transform for PyTorch.

    For the arguments, see `CartoonX`.
    """

    iterations: int = 300
    lr: float = 0.1
    sparsity: float = 2
    spatial: float = 10
    samples: int = 16

    def effort(self) -> dict[str, float]:
        return {"iterations": 300, "samples": 16}

    def goal(self, score: Tensor) -> Tensor:
        return torch.ones_like(score)

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        return 2 * torch.rand(count, generator=generator, device=generator.device) - 1


def toolbox() -> ModuleType:
    """The package with the wavelet transform; raises `InputError` if it is not installed."""
    try:
        import ptwt
    except ImportError as error:
        raise InputError(
            'Expected ptwt for wavelets, but it is missing. Run pip install "fgvis-lightning[baselines]".'
        ) from error
    return ptwt


@dataclass(frozen=True)
class CheapCartoonX(CartoonX):
    """`CartoonX` with 200 iterations of four samples; the mask is noisier.

    The steps are ten times as long, so that the mask moves as far.
    """

    iterations: int = 200
    lr: float = 0.01
    samples: int = 4


@dataclass(frozen=True)
class CheapWaveletX(WaveletX):
    """`WaveletX` with 100 iterations of four samples; the mask is noisier."""

    iterations: int = 100
    samples: int = 4
