"""Networks with redrawn layers, maps by another seed, smoothed maps, and complexity of maps."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method, require
from fgvis_lightning.method.tasks import Task

APART = 1000
"""Distance between seeds: a method with several runs counts up from its seed, and no two methods may share a run."""

Order = Literal["top_down", "bottom_up"]
Weights = Literal["spread", "initial"]


def layers(network: nn.Module) -> list[nn.Module]:
    """The modules with weights of their own, in the network's order."""
    return [module for module in network.modules() if weights_of(module)]


def weights_of(module: nn.Module) -> list[Tensor]:
    """A module's own parameters, which `freeze` keeps under this name."""
    return [tensor for tensor in module.parameters(recurse=False) if tensor.is_floating_point()]


def randomized(
    network: nn.Module, steps: int, seed: int, order: Order = "top_down", weights: Weights = "spread"
) -> Iterator[tuple[int, nn.Module]]:
    """Copies in which more and more layers are random.

    Args:
        network: left as it is.
        steps: number of copies; in the last copy all layers are random.
        seed: of the draws, which are the same for a layer in every copy.
        order: from the logits down, as in Adebayo et al., or from the image up, so that the inputs of the later layers
            are random from the first copy on (Hedström et al. 2024).
        weights: ``spread`` draws weights and biases from a normal distribution with their own mean and standard
            deviation, and keeps the statistics of batch normalizations. ``initial`` resets a layer, including
            statistics, to its state before training by ``reset_parameters``; a layer without it is drawn by ``spread``.

    Yields:
        The number of random layers, and the copy.
    """
    total = len(layers(network))
    for step in range(1, min(steps, total) + 1):
        count = round(step * total / min(steps, total))
        random = copy.deepcopy(network)
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # reset_parameters draws from the global generator
            torch.manual_seed(seed)
            for module in layers(random)[:: -1 if order == "top_down" else 1][:count]:
                if weights == "initial" and hasattr(module, "reset_parameters"):
                    _reset(module)
                else:
                    _draw(module, generator)
        yield count, random


def _draw(module: nn.Module, generator: torch.Generator) -> None:
    for tensor in weights_of(module):
        values = tensor.detach().float()
        spread = values.std(correction=0).cpu()
        draw = torch.randn(values.shape, generator=generator) * spread + values.mean().cpu()
        tensor.data.copy_(draw)


@torch.no_grad()
def _reset(module: Any) -> None:
    """Call ``reset_parameters`` on the CPU, so that every device gets the same weights."""
    device = weights_of(module)[0].device
    module.cpu()
    module.reset_parameters()
    module.to(device)


def reseeded(method: Method) -> Method | None:
    """The same method, and methods in it, with another seed, larger by `APART`; None if none has a field ``seed``."""
    own: Any = method
    values: dict[str, Any] = vars(method) if is_dataclass(method) else {}
    changes: dict[str, Any] = {"seed": own.seed + APART} if isinstance(values.get("seed"), int) else {}
    inside = {name: reseeded(value) for name, value in values.items() if isinstance(value, Method)}
    changes |= {name: other for name, other in inside.items() if other is not None}
    return replace(own, **changes) if changes else None


@dataclass(frozen=True)
class Smoothed(Method):
    """The mean of a method's maps of noisy images.

    Hedström et al., A Fresh Look at Sanity Checks for Saliency Maps, xAI 2024: Smooth MPRT, with the authors' values
    for ImageNet (github.com/annahedstroem/sanity-checks-revisited). The noise is normal; as in the authors' code, its
    standard deviation is a share of the range of the image's values, and one of the samples is the unchanged image.
    All images get the same noise, up to that factor. Signs are kept: no absolute value is taken.

    Args:
        method: makes the maps.
        samples: number N of maps.
        noise: standard deviation, as a share of the normalized image's range (maximum minus minimum).
        seed: of the noise.
    """

    method: Method
    samples: int = 50
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, 1, "samples")
        require(self, 0, "noise")

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        low, high = images.flatten(1).aminmax(dim=1)
        spread = self.noise * (high - low).view(-1, *[1] * (images.ndim - 1))
        total = self.method(network, images, targets)
        for _ in range(self.samples - 1):
            draw = torch.randn(images.shape[1:], generator=generator).to(images)
            total = total + self.method(network, images + spread * draw, targets)
        return total / self.samples


def complexity(maps: Tensor, bins: int = 100) -> Tensor:
    """Entropy (B,) of the histogram of a map's values (B,H,W), in nats; 0 for a constant map, at most log ``bins``.

    Hedström et al. 2024, Efficient MPRT. The bins have equal widths, from the map's smallest value to its largest, so
    that multiples of a map have the same complexity.
    """
    values = maps.detach().flatten(1).cpu().double()
    low, high = values.aminmax(dim=1, keepdim=True)
    places = ((values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny) * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(len(values), bins, dtype=torch.float64).scatter_add_(1, places, torch.ones_like(values))
    return torch.special.entr(counts / values.shape[1]).sum(1)


def output_entropy(logits: Tensor, task: Task) -> Tensor:
    """Entropy (B,) of outputs (B,K), in nats: of the classes' distribution, or the sum over all labels."""
    logits = logits.detach().cpu().double()
    if task.name == "multilabel":
        present = logits.sigmoid()
        return (torch.special.entr(present) + torch.special.entr(1 - present)).sum(1)
    return torch.special.entr(logits.softmax(1)).sum(1)


def another_photo(names: Sequence[str]) -> list[int]:
    """For each item, by its image's name, the next of another image, in a circle; empty if all have the same image."""
    count = len(names)
    if len(set(names)) < 2:
        return []
    return [next((i + k) % count for k in range(1, count) if names[(i + k) % count] != names[i]) for i in range(count)]
