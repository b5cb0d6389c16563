"""Options of an explanation, with checks and defaults that depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fgvis_lightning.errors import InputError, one_of
from fgvis_lightning.method.games import GAMES, REFERENCES, SCORES, Game, Reference
from fgvis_lightning.method.gates import RULES
from fgvis_lightning.method.solver import Solver
from fgvis_lightning.method.solvers import SOLVERS

NOISE = 0.3
"""Chosen on 13 ImageNet photos by deletion and insertion AUC (``benchmarks/rules.py``)."""

NEAR_ONE = 0.99
"""Start of masks without a solver and without noise, instead of 1.

On the image itself all gates are open, so the first step would follow the ordinary gradient: one sign step of 3 %
reduces the class of a photo to 0.07 of its score (median of 13). From 0.99, or with noise of 0.1 on the image, the step
leaves 0.96.
"""

PATIENCE = 100
"""Default of the option ``patience``."""

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]


def sgd(params: Iterable[Any]) -> Optimizer:
    """The literature's optimizer: SGD with learning rate 0.1 on the normalized gradient."""
    return torch.optim.SGD(params, lr=0.1)


@dataclass(frozen=True)
class Options:
    """Options of `fgvis_lightning.explainer.FGVis`, under the same names and without missing values.

    Attributes:
        auto: whether λ is ``auto``.
        start: initial value of the mask.
    """

    game: Game
    lam: float
    auto: bool
    level: float
    iterations: int
    seeds: int
    gate: str
    patience: int
    tolerance: float
    score: str
    reference: Reference
    noise: float
    start: float
    optimizer: MakeOptimizer

    def described(self) -> dict[str, Any]:
        """All options that an explanation depends on, as words and numbers."""
        made = self.optimizer([nn.Parameter(torch.zeros(1))])
        rule = {key: value for key, value in sorted(made.defaults.items()) if value is not None}
        return {
            "game": self.game.name,
            "lam": "auto" if self.auto else self.lam,
            **({"level": self.level} if self.auto else {}),
            "iterations": self.iterations,
            "seeds": self.seeds,
            "gate": self.gate,
            "patience": self.patience,
            **({"tolerance": self.tolerance} if self.patience else {}),
            "score": self.score,
            "reference": self.reference.__name__,
            "noise": self.noise,
            "optimizer": f"{type(made).__name__} {rule}",
        }


def choose(
    game: str,
    lam: float | str,
    level: float | None = None,
    iterations: int | None = None,
    seeds: int | None = None,
    gate: str | None = None,
    patience: int = PATIENCE,
    tolerance: float | None = None,
    score: str = "log_probability",
    reference: str = "zero",
    noise: float | None = None,
    optimizer: MakeOptimizer | None = None,
) -> Options:
    """Check options, and replace None with defaults.

    Raises:
        InputError: if an option is invalid, or if two options contradict each other.
    """
    one_of(GAMES, game=game)
    one_of(SCORES, score=score)
    one_of(REFERENCES, reference=reference)
    if lam != "auto" and not (isinstance(lam, int | float) and 0 <= lam <= 1e30):
        raise InputError(f"Expected lam to be 'auto' or a number from 0 to 1e30, but got {lam!r}.")
    auto = lam == "auto"
    keeps = GAMES[game].keeps
    gate = gate if gate is not None else "restoring" if auto and keeps else "strict"
    one_of(RULES, gate=gate)
    iterations = iterations if iterations is not None else 200 if auto else 500
    seeds = seeds if seeds is not None else 6 if auto else 1
    iterations = within("iterations", iterations, 1, 10**6)
    seeds = within("seeds", seeds, 1, 1000)
    patience = within("patience", patience, 0, 10**6)
    for name, number in (("tolerance", tolerance), ("noise", noise), ("level", level)):
        if number is not None and not isinstance(number, Real):
            raise InputError(f"Expected {name} to be a number, but got {number!r}.")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise InputError(f"Expected tolerance to be at least 0 and less than 1, but got {tolerance}.")
    noise = noise if noise is not None else NOISE if not auto and game == "deletion" else 0.0
    if not 0 <= noise < float("inf"):
        raise InputError(f"Expected noise to be a number of at least 0, but got {noise}.")
    if level is not None and not 0 < level < (float("inf") if keeps else 1):
        most = "" if keeps else f" and less than 1 for {game}"
        raise InputError(f"Expected level to be more than 0{most}, but got {level}.")
    optimizer = optimizer if optimizer is not None else SOLVERS[game] if auto else sgd
    if not callable(optimizer):
        raise InputError(
            f"Expected optimizer to be a function of the parameters, such as functools.partial(torch.optim.Adam, "
            f"lr=0.1), but got {optimizer!r}."
        )
    if isinstance(optimizer([nn.Parameter(torch.zeros(1))]), Solver) != auto:
        solvers = "fgvis_lightning.method.solvers.Pruning or Thresholding"
        raise InputError(
            f"Expected optimizer to be a solver for lam: auto, {solvers}, but got torch's. Set lam to a number."
            if auto
            else f"Expected a torch optimizer for lam {lam}, but got a solver. Set lam: auto."
        )
    undisturbed = not auto and not noise and GAMES[game].start == 1
    return Options(
        game=GAMES[game],
        lam=0.0 if auto else float(lam),
        auto=auto,
        level=level if level is not None else 1.0 if keeps else 0.1,
        iterations=iterations,
        seeds=seeds,
        gate=gate,
        patience=patience if seeds == 1 else 0,
        tolerance=tolerance if tolerance is not None else 0.02 if auto else 0.001,
        # For λ = 0 the gradients of both scores have the same direction, but only the logarithm's survive a small p.
        score="log_probability" if auto else score,
        reference=REFERENCES[reference],
        noise=noise,
        start=NEAR_ONE if undisturbed else GAMES[game].start,
        optimizer=optimizer,
    )


def usual(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options, as in `Options.described`, that follow from a run's game, λ and number of runs if no other is given.

    Args:
        settings: settings of a run, perhaps of another method or another version; then nothing may follow.
    """
    try:
        game, lam, seeds = settings["game"], settings["lam"], settings["seeds"]
        alone, others = (choose(game, lam, seeds=runs).described() for runs in (None, seeds))
    except (KeyError, TypeError, InputError):
        return {}
    del others["game"], others["lam"]
    return {**others, "seeds": alone["seeds"]}


def within(name: str, value: int, least: int, most: int) -> int:
    """Return the value of an option after checking its range.

    Raises:
        InputError: if the value is no whole number, less than ``least``, or greater than ``most``.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        number = "" if whole else ", a whole number"
        raise InputError(f"Expected {name} from {least} to {most}{number}, but got {value!r}.")
    return int(value)
