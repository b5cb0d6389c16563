"""Methods for the tests."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fgvis_lightning.baselines import MaskMethod, Method
from fgvis_lightning.baselines.base import steps


@dataclass(frozen=True)
class Center(Method):
    """A user's own: the evidence is in the middle, whatever the class."""

    sharpness: float = 1.0

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        y, x = (torch.linspace(-1, 1, side, device=images.device) for side in (height, width))
        with steps(3, "center") as advance:
            for _ in range(3):
                network(images)
                advance()
        return torch.exp(-self.sharpness * (y[:, None] ** 2 + x**2)).expand(len(images), height, width)


@dataclass(frozen=True)
class Drawn(Method):
    """A map of random numbers, whatever the network; or of the image as well."""

    seed: int = 0
    image: float = 0.0

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        draw = torch.randn(images.shape[-2:], generator=torch.Generator().manual_seed(self.seed)).to(images)
        return draw + self.image * images.detach().mean(1)


@dataclass(frozen=True)
class StopsEarly(Center):
    """Takes one item too many from an iterator."""

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return next(iter([]))


class Asks(Center):
    """Looks for the device in the network's parameters."""

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return super().__call__(network, images.to(next(network.parameters()).device), targets)


@dataclass(frozen=True)
class Flat(Method):
    """Returns something else than a map for each image."""

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return images.mean((0, 1))


@dataclass(frozen=True)
class LeftHalf(MaskMethod):
    """Claims that the left half is enough, the rest being in some normalized value."""

    rest: float = 0.0

    def explanation(self, network: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        maps = torch.zeros_like(images[:, 0])
        maps[..., : images.shape[-1] // 2] = 1
        return torch.where(maps[:, None] > 0, images, self.rest), maps


@dataclass(frozen=True)
class Stops(Center):
    """Is killed in its second batch, once."""

    marker: str = ""

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        marker = Path(self.marker)
        if marker.exists():
            marker.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        elif not marker.with_suffix(".done").exists():
            marker.touch()
            marker.with_suffix(".done").touch()
        return super().__call__(network, images, targets)
