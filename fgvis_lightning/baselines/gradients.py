"""Methods that average or multiply gradients, computed by Captum if possible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from captum.attr import InputXGradient, Saliency
from captum.attr import IntegratedGradients as Path
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method, require
from fgvis_lightning.baselines.captum import one_by_one
from fgvis_lightning.baselines.grad_cam import GradCAM
from fgvis_lightning.baselines.guided_backprop import GuidedBackprop


@dataclass(frozen=True)
class GradientXInput(Method):
    """``Σ_c x_c ∂ logit / ∂ x_c`` (Shrikumar et al., 2016, "Not just a black box", section 2.3): signed.

    x is the normalized image, so pixels of the data set's mean color receive nothing.
    """

    black_box = True

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = InputXGradient(network).attribute(images.clone().requires_grad_(), targets)
        return found.detach().sum(1).float()


@dataclass(frozen=True)
class IntegratedGradients(Method):
    """``Σ_c x_c ∫₀¹ ∂ logit(αx) / ∂ x_c dα`` (Sundararajan, Taly and Yan, ICML 2017, section 3): signed.

    The path starts at zero in normalized space, the data set's mean color; the paper starts at black.

    Args:
        iterations: points of the Gauss–Legendre quadrature, one pass each; the paper uses 20 to 300.
        batch_size: points in one network pass, all of the same image.
    """

    black_box = True

    iterations: int = 100
    batch_size: int = 32

    def effort(self) -> dict[str, float]:
        return {"iterations": 20}

    def __post_init__(self) -> None:
        require(self, 1, "iterations", "batch_size")

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        sizes = {"n_steps": self.iterations, "internal_batch_size": self.batch_size}
        attribute = partial(Path(network).attribute, **sizes)
        return one_by_one(attribute, images, targets, 0, type(self).__name__).sum(1)


def noisy_mean(
    term: Callable[[Tensor, Tensor], Tensor], image: Tensor, target: Tensor, noise: float, samples: int, batch_size: int
) -> Tensor:
    """Mean (1,C,H,W) of a term of noisy images (n,C,H,W) and their targets (n,), from torch's seeded CPU generator.

    The noise is drawn image by image, so that it depends neither on the batch size nor on the device.
    """
    total = torch.zeros_like(image)
    for start in range(0, samples, batch_size):
        draws = [torch.randn(image.shape[1:]) for _ in range(min(batch_size, samples - start))]
        total += term(image.detach() + noise * torch.stack(draws).to(image), target.expand(len(draws))).sum(0)
    return total / samples


@dataclass(frozen=True)
class SmoothGrad(Method):
    """``max_c |E[∂ logit(x + ε) / ∂ x_c]|``, a mean over noisy images (Smilkov et al., 2017, section 3).

    With ``squared``, it is ``max_c E[(∂ logit(x + ε) / ∂ x_c)²]`` (SmoothGrad², Hooker et al., NeurIPS 2019, section
    4).

    Args:
        samples: number of noisy images; the paper finds little change beyond 50.
        noise: standard deviation of ε as a share of the image's range; the paper recommends 0.1 to 0.2.
        squared: whether to average squares.
        seed: seed of ε, the same for each image.
        batch_size: noisy images in one network pass, all of the same image.
    """

    black_box = True

    samples: int = 50
    noise: float = 0.15
    squared: bool = False
    seed: int = 0
    batch_size: int = 25

    def effort(self) -> dict[str, float]:
        return {"samples": 50}

    def __post_init__(self) -> None:
        require(self, 1, "samples", "batch_size")
        require(self, 0, "noise", "seed")

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        def term(noisy: Tensor, target: Tensor) -> Tensor:
            slope: Tensor = Saliency(network).attribute(noisy.requires_grad_(), target, abs=False)
            return slope.square() if self.squared else slope

        def attribute(image: Tensor, target: Tensor) -> Tensor:
            low, high = image.detach().aminmax()
            return noisy_mean(term, image, target, self.noise * float(high - low), self.samples, self.batch_size)

        return one_by_one(attribute, images, targets, self.seed, type(self).__name__).abs().amax(1)


@dataclass(frozen=True)
class GradientSHAP(Method):
    """``Σ_c E[(x_c + ε_c - x'_c) ∂ logit(z) / ∂ x_c]``, z random between x + ε and a reference x': signed.

    Expected gradients, which approximate SHAP values (Lundberg and Lee, NeurIPS 2017; Erion et al., Nature Machine
    Intelligence 2021, eq. 4). Instead of other images of the data set, the reference is zero in normalized space, the
    data set's mean color.

    Args:
        samples: number of z; the SHAP library uses 200.
        noise: standard deviation of the noise ε, in units of the normalized image; 0.1 is ours, Captum's default is 0.
        seed: seed of the random numbers, the same for each image.
        batch_size: number of z in one network pass, all of the same image.
    """

    black_box = True

    samples: int = 200
    noise: float = 0.1
    seed: int = 0
    batch_size: int = 25

    def effort(self) -> dict[str, float]:
        return {"samples": 200}

    def __post_init__(self) -> None:
        require(self, 1, "samples", "batch_size")
        require(self, 0, "noise", "seed")

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        def term(noisy: Tensor, target: Tensor) -> Tensor:
            size = len(noisy), *[1] * (noisy.ndim - 1)
            share = torch.from_numpy(np.random.uniform(size=size)).to(noisy)  # noqa: NPY002, seeded by one_by_one
            return noisy * Saliency(network).attribute((share * noisy).requires_grad_(), target, abs=False)

        def attribute(image: Tensor, target: Tensor) -> Tensor:
            return noisy_mean(term, image, target, self.noise, self.samples, self.batch_size)

        return one_by_one(attribute, images, targets, self.seed, type(self).__name__).sum(1)


@dataclass(frozen=True)
class GuidedGradCAM(Method):
    """`GuidedBackprop` times `GradCAM`, pixel by pixel (Selvaraju et al., ICCV 2017, section 3.2).

    Args:
        layer: layer of Grad-CAM; default: the end of the last convolutional layer.
    """

    layer: str | None = None

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return GuidedBackprop()(network, images, targets) * GradCAM(self.layer)(network, images, targets)
