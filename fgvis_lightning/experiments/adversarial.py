"""``python train.py adversarial``: does the defense keep adversarial evidence out?

For many classes that are not in an image, a mask is optimized for nothing but that class's score (λ = 0), with and
without the defense (Wagner et al., CVPR 2019, section 4.1), and what is shown as the class's evidence is handed to the
network. Undefended masks make any class appear; defended ones can only use what the image has. What holds against one
optimizer need not hold against another, so there are several to try::

    <output>/<game>_<defended or undefended>/explanations/<item id>.safetensors   the masks, by the default optimizer
    <output>/<game>_<defended or undefended>_<optimizer>/…                        by another
    <output>/<game>_<defended or undefended>_<optimizer>_from_<start>/…           from another start
    <output>/adversarial.csv, .md                         how often the false class became the most probable one
    <output>/adversarial_pairs.csv                        each pair of an image and a false class, by its best start

Nor need it hold from every start: ``--starts`` has others. What an explanation would be is the last mask, and what an
attacker would take is the best one on the way; the tables have both.
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
from fgvis_lightning.experiments.sweeps import Methods, raise_problems, sweep, sweep_parser
from fgvis_lightning.method.options import sgd, within
from fgvis_lightning.results.tensor_files import write_whole

GAMES = ("generation", "preservation", "deletion", "repression")
TWINS = GAMES[:2]
"""With λ = 0 they differ in their own starts alone, so that from another one the first stands for both."""


class SignSGD(Optimizer):
    """Steps of one size for all entries, whichever way the gradient points: Adam's first step, again and again.

    Args:
        params: the masks.
        lr: the size of a step.
        momentum: share of the sum of former gradients that is added to each (Dong et al., CVPR 2018, eq. 6 and 7).
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
"""Optimizers of the masks beside FGVis's own. Each image's gradient is divided by its largest absolute value first."""


def make_parser() -> Parser:
    """The options of ``adversarial``."""
    parser = sweep_parser("adversarial", (__doc__ or "").partition("::")[0], "results/adversarial")
    parser.set_defaults({"data.targets": "absent10"})
    parser.add_argument(
        "--games",
        type=list[Literal[GAMES]],  # type: ignore[valid-type]
        default=list(GAMES),
        help="The first two are to make the class appear; the last two to remove it: evidence is what they take.",
    )
    parser.add_argument("--iterations", type=int, default=60, help="Of each mask.")
    parser.add_argument(
        "--score", type=Literal["probability", "log_probability"], default="log_probability", help="What is maximized."
    )
    parser.add_argument(
        "--optimizers",
        type=list[Literal[(DEFAULT, *OPTIMIZERS)]],  # type: ignore[valid-type]
        default=[DEFAULT],
        help=f"Of the masks, each with masks of its own: {DEFAULT} is that of --optimizer; sgd has learning rate 1, "
        "adam 0.05, sign and momentum take steps of 0.03; solver is FGVis with lam: auto, as fit has it.",
    )
    parser.add_argument(
        "--optimizer",
        type=Callable[[Iterable[Any]], Optimizer],
        default=sgd,
        help=f"What {DEFAULT} among --optimizers is; the literature's SGD unless given.",
    )
    parser.add_argument(
        "--starts",
        type=list[Start],
        default=[OWN],
        help=f"Of the masks, each with masks of its own: a value from 0 to 1; {RANDOM}, uniform in [0,1] by image and "
        f"class; {OWN}, where FGVis itself begins. The solver always begins by itself, and runs once; from another "
        f"start {' and '.join(TWINS)} are one attack.",
    )
    parser.add_argument("--restarts", type=int, default=1, help=f"Draws of the start {RANDOM}; the best one counts.")
    parser.add_argument(
        "--gate",
        type=Literal["strict", "restoring"] | None,
        default=None,
        help="Of the defense. Unless given, FGVis's own: strict, and restoring for the solver where the class stays.",
    )
    return parser


def main(args: Sequence[str]) -> None:
    """Parse the command line, run all games, and count.

    Raises:
        InputError: a user's mistake, or images that could not be read.
        RankFailedError: a process has ended before its shard was done.
    """
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

    runs, sums_up, problems = sweep(parser, config, methods, ["--data.images", ""])
    if sums_up:
        table, pairs = count(runs, rows)
        output = Path(config.output)
        save_table(output / "adversarial", table)
        write_whole(output / "adversarial_pairs.csv", pairs.csv().encode())
        print(f"\n{table.markdown()}\n{strongest(table, pairs)}\nEach pair: {output / 'adversarial_pairs.csv'}")
        raise_problems(problems, runs)


def _rows(config: Namespace) -> list[Row]:
    """What the table is to have.

    Raises:
        InputError: a list is empty, a start is not in [0,1], or there is nothing to draw anew.
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
            f"{', '.join(map(named, config.starts))}, from where all would be the same."
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
