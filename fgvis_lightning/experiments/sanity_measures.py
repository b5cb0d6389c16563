"""Maps of trained and randomized networks: correlations, and rises in complexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.experiments.randomization import another_photo, complexity, output_entropy, reseeded
from fgvis_lightning.experiments.statistics import bootstrap
from fgvis_lightning.method.tasks import task_of
from fgvis_lightning.metrics import max_sensitivity, rank_correlation
from fgvis_lightning.results.tables import Table

OTHER = "another class"
CEILING, FLOOR = "another seed", "another photo"
DETERMINISTIC = "deterministic"
ROUNDING = 1e-6  # largest deviation from 1 of a correlation of equal maps

Interval = tuple[float, float, float]
"""A mean, and the ends of its interval."""


@dataclass(frozen=True)
class Trained:
    """The trained network, N images (N,C,H,W), their classes and least probable classes (N), and their names."""

    network: nn.Module
    x: Tensor
    targets: Tensor
    others: Tensor
    names: list[str]

    def mean(self, values: Tensor) -> tuple[float, float, float]:
        """Mean of values (N,) and its interval; NaN values are left out."""
        return bootstrap(values, self.names)


@dataclass(frozen=True)
class State:
    """A network whose maps are compared."""

    changed: str | int  # number of random layers, or name of a control
    share: float | str  # of the layers; empty for a control
    title: str  # for people
    network: nn.Module
    targets: Tensor  # the classes (N,) of its maps


States = Callable[[], Iterator[State]]
"""Makes the networks again for each method, one at a time: large ones do not fit into memory together."""


def correlations(
    methods: Mapping[str, Method], trained: Trained, states: States
) -> tuple[Table, dict[str, dict[str, Tensor]]]:
    """Rank correlations of each state's maps with the trained network's maps, with ceiling and floor.

    Returns:
        The table, and by method the first image's maps: title → (H,W).
    """
    columns = ("method", "layers drawn anew", "share of the layers", "rank correlation", "from", "to", "images")
    limits = ("ceiling", "ceiling from", "ceiling to", "ceiling by", "floor", "floor from", "floor to", "says")
    table = Table((*columns, *limits))
    drawn: dict[str, dict[str, Tensor]] = {}
    other_class = State(OTHER, "", OTHER, trained.network, trained.others)
    pairs = another_photo(trained.names)
    # A pair of photos is the same in either order.
    photos = ["/".join(sorted((name, trained.names[pair]))) for name, pair in zip(trained.names, pairs, strict=False)]
    for name, method in methods.items():
        other = reseeded(method)
        original, again = _twice(method, trained)
        drawn[name] = {"trained": original[0]} | ({} if other is None else {CEILING: again[0]})
        ceiling = (1.0, 1.0, 1.0) if other is None else trained.mean(rank_correlation(original, again))
        by = DETERMINISTIC if other is None else CEILING
        floor = bootstrap(rank_correlation(original, again[pairs]), photos) if pairs else (math.nan,) * 3
        print(f"{name}: ceiling {ceiling[0]:.3f} ({by}), floor {floor[0]:.3f}", flush=True)
        for state in chain(states(), [other_class]):
            maps = (other or method)(state.network, trained.x, state.targets).cpu()
            values = rank_correlation(original, maps)
            found, known = trained.mean(values), int((~values.isnan()).sum())
            drawn[name][state.title] = maps[0]
            verdict = says(found, ceiling, floor)
            table.add((name, state.changed, state.share, *found, known, *ceiling, by, *floor, verdict))
            print(f"{name}: {state.title}{' layers drawn anew' * bool(state.share)}, {found[0]:.3f}", flush=True)
    return table, drawn


def says(found: Interval, ceiling: Interval, floor: Interval) -> str:
    """Verdict on a correlation by its interval; overlapping intervals count as not different."""
    if math.isnan(found[0]):
        return "no ranks: a map is constant"
    if math.isnan(found[1]):
        return "no verdict from a single image"
    if math.isnan(ceiling[1]):
        return "the ceiling is unknown"
    text = "below the ceiling" if found[2] < ceiling[1] - ROUNDING else "not below the ceiling"
    if math.isnan(floor[1]):
        return text
    return text + (", above the floor" if found[1] > floor[2] else ", not above the floor")


def rises(methods: Mapping[str, Method], trained: Trained, states: States, bins: int) -> Table:
    """Complexity of maps, its rise until all layers are random, and its correlation with the outputs' entropy.

    The relative rise is ``(c(ê) - c(e)) / c(e)`` for maps e of the trained and ê of the random network; for comparison
    there is the rise for the trained network's maps by another seed. The correlation is between each image's
    complexities and its outputs' entropies over the trained network and all states, at least three networks.
    """
    columns = ("relative rise", "by another seed", "correlation with the outputs' entropy")
    table = Table(
        ("method", "trained", "random", *(f"{name}{end}" for name in columns for end in ("", " from", " to")))
    )
    task, networks = task_of(trained.network), chain([trained.network], (state.network for state in states()))
    with torch.no_grad():
        entropies = torch.stack([output_entropy(network(trained.x), task) for network in networks], 1)
    for name, method in methods.items():
        original, again = (complexity(maps, bins) for maps in _twice(method, trained))
        later = [complexity((reseeded(method) or method)(s.network, trained.x, s.targets), bins) for s in states()]
        before = torch.where(original > 0, original, torch.nan)
        curve = torch.stack([original, *later], 1)
        follows = rank_correlation(curve[:, None], entropies[:, None])
        measured = [(later[-1] - before) / before, (again - before) / before]
        measured.append(follows if curve.shape[1] > 2 else torch.full_like(follows, torch.nan))
        means = [cell for values in measured for cell in trained.mean(values)]
        table.add((name, float(original.mean()), float(later[-1].mean()), *means))
        print(f"{name}: complexity {table.rows[-1][1]:.3f} → {table.rows[-1][2]:.3f}", flush=True)
    return table


def sensitivities(methods: Mapping[str, Method], trained: Trained, samples: int) -> Table:
    """Max-sensitivity of each method on the trained network, see `fgvis_lightning.metrics.max_sensitivity`."""
    name = "max-sensitivity"
    table = Table(("method", name, f"{name} from", f"{name} to"))
    for method_name, method in methods.items():
        maps = partial(method, trained.network)
        found = trained.mean(max_sensitivity(maps, trained.x, trained.targets, samples=samples).cpu())
        table.add((method_name, *found))
        print(f"{method_name}: {name} {found[0]:.3f}", flush=True)
    return table


def _twice(method: Method, trained: Trained) -> tuple[Tensor, Tensor]:
    """The trained network's maps, and its maps by another seed; the same maps for a method without a seed."""
    other = reseeded(method)
    original = method(trained.network, trained.x, trained.targets).cpu()
    return original, original if other is None else other(trained.network, trained.x, trained.targets).cpu()
