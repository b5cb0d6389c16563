"""The first check that no nonlinearity escapes the gates: it watches the dispatcher while the network runs.

It finds activation operators outside intercepted calls, comparisons (which autograd treats as constants), and random
numbers. The second check is `fgvis_lightning.defense.graph`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fgvis_lightning.defense.nonlinearities import CAST, OPERATORS, STEPS
from fgvis_lightning.networks.outputs import tensors_in

Found = Counter[tuple[str, str]]
"""Counts of findings: {(name, path of the module): count}."""


class Modules:
    """Determines the running module of a network from the Python stack, without hooks."""

    def __init__(self, network: nn.Module) -> None:
        self._paths = {id(module): path for path, module in network.named_modules()}

    def running(self) -> str:
        """Path of the innermost running module of the network; empty for the network itself."""
        frame = sys._getframe(1)
        while frame is not None:
            path = self._paths.get(id(frame.f_locals.get("self")))
            if path is not None:
                return path
            frame = frame.f_back  # type: ignore[assignment]
        return ""


class Witness(TorchDispatchMode):
    """Counts the operators that the dispatcher sees in one pass.

    Args:
        modules: finder of the network's running module.
        within: function that tells whether an intercepted call is running.

    Attributes:
        operators: activation operators, by name.
        missed: activation operators that ran outside an intercepted call, and elementwise comparisons and roundings of
            values that depend on the image.
        random: operators that draw random numbers.
    """

    def __init__(self, modules: Modules, within: Callable[[], bool]) -> None:
        super().__init__()
        self.modules = modules
        self.within = within
        self.operators: Counter[str] = Counter()
        self.missed: Found = Counter()
        self.random: Found = Counter()
        self._storages: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.removesuffix("_")
        inputs = list(tensors_in((*args, *(kwargs or {}).values())))
        depending = list(filter(self._depends, inputs))
        depends = bool(depending) and not name.endswith("_like") and not name.startswith("new_")  # these take a shape
        output = func(*args, **(kwargs or {}))
        for tensor in (*depending, *tensors_in(output)) if depends else ():
            self.watch(tensor)
        if name in OPERATORS:
            self.operators[name] += 1
            if not self.within():
                self.missed[name, self.modules.running()] += 1
        elif depends and not self.within() and isinstance(output, Tensor) and output.numel() > 1:
            whole = name == CAST and not output.is_floating_point() and inputs[0].is_floating_point()
            if name in STEPS or whole:
                self.missed[name, self.modules.running()] += 1
        if torch.Tag.nondeterministic_seeded in func.tags and not _idle(func, args, kwargs or {}):
            self.random[name, self.modules.running()] += 1
        return output

    def watch(self, tensor: Tensor) -> None:
        """Note that a tensor's values depend on the image; this also holds for those that detach() and data share."""
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = StorageWeakRef(storage)

    def _depends(self, tensor: Tensor) -> bool:
        if tensor.requires_grad or tensor.layout != torch.strided:
            return tensor.requires_grad
        known = self._storages.get(tensor.untyped_storage()._cdata)
        return known is not None and not known.expired()


def _idle(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a random operator draws no random numbers: dropout with probability 0, or outside training."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name in {"dropout_p", "training", "train"}:
            given = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
            return not given
    return False
