"""Controls: maps that explain nothing, which a method must surpass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.networks.classifier import Classifier


@dataclass(frozen=True)
class Random(Method):
    """Uniform noise in [0,1) for each pixel, the same for all images.

    Args:
        seed: seed of the noise.
    """

    seed: int = 0

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        noise = torch.rand(images.shape[-2:], generator=torch.Generator().manual_seed(self.seed))
        return noise.to(images.device).expand(len(images), -1, -1)


@dataclass(frozen=True)
class Edges(Method):
    """Sobel gradient magnitude of the channels' mean: the image's edges, independent of the network.

    The border is repeated. Maps that look like edges may depend more on the image than on the network (Adebayo et al.,
    NeurIPS 2018, section 5.1).
    """

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        smooth, slope = torch.tensor([1.0, 2, 1]).to(images.device), torch.tensor([-1.0, 0, 1]).to(images.device)
        kernels = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth])[:, None]
        gray = F.pad(images.float().mean(1, keepdim=True), [1] * 4, mode="replicate")
        with torch.autocast(images.device.type, enabled=False):
            return F.conv2d(gray, kernels).norm(dim=1)


@dataclass(frozen=True)
class OtherClass(Method):
    """A method's map for another class: the most probable class other than the target.

    If it is as good as the target's own map, the method does not depend on the class.

    Args:
        method: the method; a class_path with its init_args.
    """

    method: Method

    @property
    def cheap(self) -> bool:
        return self.method.cheap

    def prepared(self, classifier: Classifier) -> OtherClass:
        return replace(self, method=self.method.prepared(classifier))

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            others = network(images).float().scatter(1, targets[:, None], -torch.inf).argmax(1)
        return self.method(network, images, others)
