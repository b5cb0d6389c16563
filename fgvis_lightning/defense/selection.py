"""Selection of a network's gated and exempt functions and modules."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.autograd import Function

from fgvis_lightning.defense.nonlinearities import (
    ACTIVATIONS,
    GATED_MODULES,
    KINDS,
    NORMALIZATION,
    NORMALIZATION_MODULES,
    NORMALIZATIONS,
    STREAM,
    Functions,
    as_entries,
    resolve,
    table,
)
from fgvis_lightning.errors import InputError


class Selection:
    """Gated and exempt functions and modules of a network.

    Args:
        network: the network.
        exempt: functions by name, `KINDS`, and classes of modules or of autograd functions.
        gated: functions by name, `KINDS`, and classes of modules.

    Attributes:
        exempt: names of exempt functions and classes.
        exempt_functions: exempt autograd functions.
        stream: the gated kinds of calls among `KINDS`.
        units: modules that are gated or exempt as a whole → name of their class.
        listed: the arguments ``exempt`` and ``gated`` with full names.

    Raises:
        InputError: if a name is unknown or in both lists, or if an autograd function is listed as gated.
    """

    def __init__(self, network: nn.Module, exempt: Collection[str | type], gated: Collection[str | type]) -> None:
        exempt, gated = as_entries(exempt), as_entries(gated)
        self.exempt, exempt_classes = resolve(exempt, "exempt")
        names, gated_classes = resolve(gated, "gated")
        if both := sorted(self.exempt & names) or [c.__name__ for c in gated_classes if c in exempt_classes]:
            raise InputError(f"Expected exempt and gated to have nothing in common, but got {both[0]!r} in both.")
        if wrong := [c for c in gated_classes if issubclass(c, Function)]:
            raise InputError(
                f"Expected gated to name classes of modules, but {wrong[0].__name__} is an autograd function. Name the "
                f"module that applies it."
            )
        self.exempt_functions = tuple(c for c in exempt_classes if issubclass(c, Function))
        self.stream = KINDS & names
        self._named = {**ACTIVATIONS, **NORMALIZATIONS, **table(names - self.stream)}
        self.listed = {"exempt": sorted(map(_spelled, exempt)), "gated": sorted(map(_spelled, gated))}
        self.units: dict[nn.Module, str] = {}
        exempt_modules = tuple(c for c in exempt_classes if issubclass(c, nn.Module))
        for module in network.modules():
            name = type(module).__name__
            if isinstance(module, exempt_modules) and not isinstance(module, gated_classes):
                self.exempt |= {name}
            if isinstance(module, (*gated_classes, *exempt_modules, *GATED_MODULES)):
                self.units[module] = name
            elif isinstance(module, NORMALIZATION_MODULES):
                self.units[module] = NORMALIZATION

    @property
    def calls(self) -> tuple[Functions, dict[nn.Module, str]]:
        """The intercepted calls: function → name of its activation, and `units`."""
        return {**STREAM, **self._named} if self.stream else self._named, self.units

    def passes(self, name: str) -> bool:
        """Whether calls of this name are intercepted as a unit, but neither gated nor counted."""
        return name in KINDS and name not in self.stream

    def widen(self) -> bool:
        """Also gate all `KINDS` unless they are exempt; return whether this is a change."""
        before, self.stream = self.stream, KINDS - self.exempt
        return self.stream != before


def _spelled(entry: str | type) -> str:
    return entry if isinstance(entry, str) else f"{entry.__module__}.{entry.__qualname__}"
