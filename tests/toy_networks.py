"""Small networks for the tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Plain(nn.Module):
    """conv → activation → conv → activation → linear, with the activation as a module, called twice."""

    def __init__(self, activation: nn.Module | None = None, classes: int = 4, size: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1)
        self.act = activation if activation is not None else nn.ReLU()
        self.head = nn.Linear(6 * size * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv1(x))
        x = self.act(self.conv2(x))
        return self.head(x.flatten(1))


class Residual(nn.Module):
    """A residual block whose one in-place ReLU is used three times, and whose output is added to in place."""

    def __init__(self, classes: int = 4, size: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 5, 3, padding=1)
        self.conv3 = nn.Conv2d(5, 5, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(5 * size * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.relu(self.conv1(x))
        x = self.relu(self.conv2(skip))
        x = self.conv3(x)
        x += skip
        x = self.relu(x)
        return self.head(x.flatten(1))


class Spelled(nn.Module):
    """One convolution, then an activation written in a given way, then a linear layer."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.activation = activation
        self.head = nn.Linear(4 * 8 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.conv(x)).flatten(1))


class Tiny(nn.Module):
    """A classifier of images of any size ≥ 4 with few weights, for whole runs; its weights are fixed."""

    def __init__(self, classes: int = 5, seed: int = 0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 4, stride=2), nn.ReLU6()
        )
        self.head = nn.Linear(8, classes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class Planted(nn.Module):
    """Of bright images of 16x16: class 1 is there where even columns are bright and odd ones are not, else class 0.

    Its neuron is asleep on an image without stripes, and a little awake on nothing at all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stripes = nn.Conv2d(3, 1, 16, bias=False)
        with torch.no_grad():
            self.stripes.weight[..., ::2], self.stripes.weight[..., 1::2] = 1 / 384, -1.5 / 384

    def forward(self, x: Tensor) -> Tensor:
        found = F.relu(self.stripes(x) + 0.1).flatten(1)
        return torch.cat([torch.full_like(found, 4.0), 10 * found], 1)


class Colors(nn.Module):
    """Class 0 is a red image, class 1 a green one, class 2 what is neither, such as an empty image."""

    def forward(self, x: Tensor) -> Tensor:
        red, green, _ = F.relu(x).mean((2, 3)).unbind(1)
        return 10 * torch.stack([red, green, torch.full_like(red, 0.1)], 1)


class Smooth(Tiny):
    """Without any ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.features[2], self.features[4] = nn.SiLU(), nn.SiLU()


class WrongShape(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, None]


class NotANumber(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.nan


class Hidden(Tiny):
    """Has an activation that no interceptor sees."""

    def forward(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return torch.sigmoid(super().forward(x))


class Mortal(Tiny):
    """Dies in a process of rank 1 after some passes, in the way that the environment says."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if os.environ.get("LOCAL_RANK") == "1" and self.passes > 60:
            if os.environ["DIES_BY"] == "signal":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("a crash")
        return super().forward(x)


class Hungry(Tiny):
    """Runs out of memory with more than 5 images."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().forward(x)


class Broken(Tiny):
    def __init__(self) -> None:
        raise RuntimeError("no such thing")
