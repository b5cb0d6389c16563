"""``python train.py adversarial``: does the defense keep adversarial evidence out?

For many classes that are not in an image, a mask is optimized only for the score of that class (λ = 0), with and
without the defense (Wagner et al., CVPR 2019, section 4.1). Then the network classifies the resulting evidence.
Undefended masks make any class appear; defended masks can only use features of the image. A defense that resists one
optimizer may fail against another, so there are several optimizers::

    <output>/<game>_<defended or undefended>/explanations/<item id>.safetensors   the masks of the default optimizer
    <output>/<game>_<defended or undefended>_<optimizer>/…                        of another optimizer
    <output>/<game>_<defended or undefended>_<optimizer>_from_<start>/…           from another start
    <output>/adversarial.csv, .md                         how often the false class became the most probable one
    <output>/adversarial_pairs.csv                        each pair of an image and a false class, with its best start

The defense may also depend on the start: ``--starts`` offers others. An explanation would be the last mask, while an
attacker would choose the best mask on the way; the tables contain both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from torch.optim import Optimizer

from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.adversarial_tables import Row, count, strongest
from fgvis_lightning.experiments.attack import OWN, RANDOM, AttackMethod, Start, named
from fgvis_lightning.experiments.output import save_table
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.experiments.run import SweepRun
from fgvis_lightning.experiments.sweeps import Methods, sweep, sweep_parser
from fgvis_lightning.method.options import sgd, within
from fgvis_lightning.results.tensor_files import write_whole

GAMES = ("generation", "preservation", "deletion", "repression")
TWINS = GAMES[:2]  # with λ = 0 they differ only in their starts; with any other start, the first game represents both


class SignSGD(Optimizer):
    """Steps of equal size for all entries, by the gradient's sign: Adam's first step, repeated.

    Args:
        params: the masks.
        lr: the size of a step.
        momentum: share of the previous gradient sum added to each gradient (Dong et al., CVPR 2018, eq. 6 and 7).
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.03, momentum: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                if group["momentum"]:
                    state = self.state[parameter]
                    gradient = state["sum"] = gradient + group["momentum"] * state.get("sum", 0)
                parameter.sub_(gradient.sign(), alpha=group["lr"])
        return loss


DEFAULT = "default"
SOLVER = "solver"
OPTIMIZERS: dict[str, Callable[[Iterable[Any]], Optimizer] | None] = {
    "sgd": partial(torch.optim.SGD, lr=1.0),
    "adam": partial(torch.optim.Adam, lr=0.05),
    "sign": SignSGD,
    "momentum": partial(SignSGD, momentum=0.9),
    SOLVER: None,
}
"""Optimizers besides FGVis's own. Before each step, an image's gradient is divided by its largest absolute value."""


def make_parser() -> Parser:
    """The options of ``adversarial``."""
    parser = sweep_parser("adversarial", (__doc__ or "").partition("::")[0], "results/adversarial")
    parser.set_defaults({"data.targets": "absent10"})
    parser.add_argument(
        "--games",
        type=list[Literal[GAMES]],  # type: ignore[valid-type]
        default=list(GAMES),
        help="Games to attack. The first two make the class appear; the last two remove it, and their evidence is the "
        "removed part.",
    )
    parser.add_argument("--iterations", type=int, default=60, help="Iterations for each mask.")
    parser.add_argument(
        "--score", type=Literal["probability", "log_probability"], default="log_probability", help="Maximized score."
    )
    parser.add_argument(
        "--optimizers",
        type=list[Literal[(DEFAULT, *OPTIMIZERS)]],  # type: ignore[valid-type]
        default=[DEFAULT],
        help=f"Optimizers, each with its own masks: {DEFAULT} is that of --optimizer; sgd has learning rate 1, "
        "adam 0.05, sign and momentum take steps of 0.03; solver is FGVis with lam: auto, as in fit.",
    )
    parser.add_argument(
        "--optimizer",
        type=Callable[[Iterable[Any]], Optimizer],
        default=sgd,
        help=f"The optimizer called {DEFAULT} in --optimizers. By default, the literature's SGD.",
    )
    parser.add_argument(
        "--starts",
        type=list[Start],
        default=[OWN],
        help=f"Starts, each with its own masks: a value from 0 to 1; {RANDOM}, uniform in [0,1] by image and "
        f"class; {OWN}, FGVis's own start. The solver always uses its own start and runs once. With another start, "
        f"{' and '.join(TWINS)} are one attack.",
    )
    parser.add_argument("--restarts", type=int, default=1, help=f"Draws of the start {RANDOM}; the best draw counts.")
    parser.add_argument(
        "--gate",
        type=Literal["strict", "restoring"] | None,
        default=None,
        help="Gate of the defense. By default as in FGVis: strict, or restoring for the solver if the class is kept.",
    )
    return parser


def main(args: Sequence[str]) -> None:
    """Parse the command line, run all games, and count."""
    parser = make_parser()
    config = parser.parse_args(list(args))
    rows = _rows(config)

    def methods(objects: Namespace) -> Methods:
        given = {"iterations": config.iterations, "score": config.score, "gate": config.gate, "patience": 0}
        chosen: dict[str, Any] = {}
        for row in rows:
            made = OPTIMIZERS.get(row.optimizer, objects.optimizer)
            options: dict[str, Any] = {"game": row.game, "defended": row.defended, "optimizer": made, **given}
            options["lam"] = "auto" if row.optimizer == SOLVER else 0.0
            for number, name in enumerate(row.runs, 1):
                chosen[name] = AttackMethod(start=row.start, restart=number, **options), {}
        return chosen

    def sum_up(runs: dict[str, SweepRun]) -> None:
        table, pairs = count(runs, rows)
        output = Path(config.output)
        save_table(output / "adversarial", table)
        write_whole(output / "adversarial_pairs.csv", pairs.csv().encode())
        print(f"\n{table.markdown()}\n{strongest(table, pairs)}\nEach pair: {output / 'adversarial_pairs.csv'}")

    sweep(parser, config, methods, sum_up)


def _rows(config: Namespace) -> list[Row]:
    """Rows of the table.

    Raises:
        InputError: a list is empty, a start is not in [0,1], or restarts are given without a random start.
    """
    for option in ("games", "optimizers", "starts"):
        if not config[option]:
            raise InputError(f"Expected one or more --{option}, but got an empty list.")
    for start in config.starts:
        if not isinstance(start, str) and not 0 <= start <= 1:
            raise InputError(f"Expected starts from 0 to 1, {OWN} or {RANDOM}, but got {named(start)}.")
    within("restarts", config.restarts, 1, 1000)
    if config.restarts > 1 and RANDOM not in config.starts:
        raise InputError(
            f"Expected {RANDOM} among --starts for {config.restarts} restarts, but got "
            f"{', '.join(map(named, config.starts))}, for which all would be the same."
        )
    found = []
    for game, optimizer in product(dict.fromkeys(config.games), dict.fromkeys(config.optimizers)):
        starts = {OWN: OWN} if optimizer == SOLVER else {named(start): start for start in config.starts}
        for (word, start), defended in product(starts.items(), (False, True)):
            twins = game in TWINS and start != OWN and {*TWINS} <= {*config.games}
            if twins and game != TWINS[0]:
                continue
            name = f"{game} {'defended' if defended else 'undefended'}"
            name += "" if optimizer == DEFAULT else f" {optimizer}"
            name += "" if start == OWN else f" from {word}"
            again = range(2, config.restarts + 1) if start == RANDOM else ()
            runs = (name, *(f"{name} {number}" for number in again))
            found.append(Row(game, " or ".join(TWINS) if twins else game, optimizer, start, defended, runs))
    return found
