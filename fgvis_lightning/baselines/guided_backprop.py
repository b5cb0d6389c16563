"""Guided backpropagation (Springenberg, Dosovitskiy, Brox and Riedmiller, ICLR Workshop 2015, section 3.4)."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.baselines.gradient import sensitivity
from fgvis_lightning.defense.interception import Interceptor
from fgvis_lightning.defense.nonlinearities import ACTIVATIONS
from fgvis_lightning.errors import InputError

RELUS = frozenset({"relu", "relu6"})


@dataclass(frozen=True)
class GuidedBackprop(Method):
    """The gradient, but each ReLU passes on only its positive part.

    Negative gradients at a ReLU's output are set to zero, for modules (also reused ones), functions and in-place calls.
    The map is ``max_c |·|``, as for the gradient. It hardly depends on the class (Nie, Zhang and Patel, ICML 2018);
    keep this in mind in comparisons.

    Raises:
        InputError: if the network has no ReLU, so the rule does not apply.
    """

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        calls: Counter[str] = Counter()

        def guide(name: str, h: Tensor) -> None:
            if h.requires_grad:
                calls[name] += 1
                if name in RELUS:
                    h.register_hook(lambda gradient: gradient.clamp(min=0))

        with Interceptor(ACTIVATIONS, {}, guide):
            result = sensitivity(network, images, targets)
        others = {name: count for name, count in calls.items() if name not in RELUS}
        found = ", ".join(f"{count} of {name}" for name, count in others.items())
        if len(others) == len(calls):
            raise InputError(
                f"Expected a network with ReLUs, since guided backprop is a rule for them, but "
                f"{type(network).__name__} has {found or 'no activations'}. Omit this method."
            )
        if others:
            message = f"Guided backprop has a rule for ReLUs only: {found} pass the ordinary gradient."
            warnings.warn(message, stacklevel=2)
        return result
