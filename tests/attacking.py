"""Attacks on the defense: masks that are to make a class appear which is not in the image.

``λ |m| - log p`` is minimized over the mask with λ = 0, so nothing but the gates is in the way. Which optimizer, and
from where: a defense has to hold for all. Pure torch over any network, gated or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fgvis_lightning.defense.container import DefendedCNN
from fgvis_lightning.experiments import adversarial
from fgvis_lightning.method.games import blend, log_probability
from fgvis_lightning.method.options import sgd

GATES = ("strict", "restoring", "none")

OPTIMIZERS: dict[str, Callable[[Iterable[Any]], Optimizer]] = {
    adversarial.DEFAULT: sgd,
    **{name: optimizer for name, optimizer in adversarial.OPTIMIZERS.items() if optimizer is not None},
}
"""Those of ``adversarial``. All get the gradient of each image divided by its largest absolute value, as in FGVis."""


def uniform(x: Tensor, seed: int = 0) -> Tensor:
    """A random mask, the same for every image."""
    return torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(seed)).to(x).expand_as(x)


STARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "0": torch.zeros_like,
    "0.5": partial(torch.full_like, fill_value=0.5),
    "1": torch.ones_like,
    "random": uniform,
}
"""Normalized images (B,3,H,W) → masks to start from, likewise."""


class Attack(NamedTuple):
    """What came of it, for each image.

    Attributes:
        top: whether the class was the most probable one at some time (B,).
        highest: its largest probability on the way (B,).
        held: its smallest probability in the last ten iterations (B,).
        mask: the last one (B,3,H,W) in [0,1].
    """

    top: Tensor
    highest: Tensor
    held: Tensor
    mask: Tensor


LAST = 10
"""Iterations in which an attack that succeeded must still hold the class."""


def gated(network: nn.Module, gate: str, x: Tensor) -> nn.Module:
    """The network with gates that know the images ``x`` (B,3,H,W); for ``none`` the network itself."""
    if gate == "none":
        return network
    defended = DefendedCNN(network, gate=gate)
    defended.record(x)
    return defended


def attack(
    network: nn.Module,
    x: Tensor,
    targets: Tensor,
    optimizer: Callable[[Iterable[Any]], Optimizer],
    start: Callable[[Tensor], Tensor],
    iterations: int,
) -> Attack:
    """Raise the probability of the targets (B,) in ``m x`` by all means; no image depends on the others.

    Args:
        network: with gates or without, see `gated`; its forward pass is the plain network's in either case.
        x: normalized images (B,3,H,W).
        targets: classes that are not there.
        optimizer: of the masks.
        start: where they begin.
        iterations: steps.
    """
    mask = nn.Parameter(torch.empty_like(x).copy_(start(x)))
    rule = optimizer([mask])
    top, way = torch.zeros_like(targets, dtype=torch.bool), list[Tensor]()
    for iteration in range(iterations + 1):
        logits = network(blend(x, mask, None))
        score = log_probability(logits, targets)
        top |= logits.argmax(1) == targets
        way.append(score.detach().exp())
        if iteration == iterations:
            break
        (gradient,) = torch.autograd.grad(-score.sum(), mask)  # of what is minimized
        largest = gradient.abs().amax((1, 2, 3), keepdim=True)
        mask.grad = gradient / torch.where(largest > 0, largest, 1)
        rule.step()
        with torch.no_grad():
            mask.clamp_(0, 1)
    return Attack(top, torch.stack(way).amax(0), torch.stack(way[-LAST:]).amin(0), mask.detach())
