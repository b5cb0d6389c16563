"""``python train.py adversarial``: does the defense keep adversarial evidence out?

For many classes that are not in an image, a mask is optimized for nothing but that class's score (λ = 0), with and
without the defense (Wagner et al., CVPR 2019, section 4.1), and what is shown as the class's evidence is handed to the
network. Undefended masks make any class appear; defended ones can only use what the image has. What holds against one
optimizer need not hold against another, so there are several to try::

    <output>/<game>_<defended or undefended>/explanations/<item id>.safetensors   the masks, by the default optimizer
    <output>/<game>_<defended or undefended>_<optimizer>/…                        by another
    <output>/adversarial.csv, .md                         how often the false class became the most probable one
    <output>/adversarial_pairs.csv                        each pair of an image and a false class
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

from fgvis_lightning.baselines.fgvis import FGVisMethod
from fgvis_lightning.data.images import load_image
from fgvis_lightning.experiments.output import save_table
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.experiments.run import Run
from fgvis_lightning.experiments.statistics import wilson
from fgvis_lightning.experiments.sweeps import Methods, raise_problems, sweep, sweep_parser
from fgvis_lightning.method.games import blend
from fgvis_lightning.method.options import sgd
from fgvis_lightning.results.load import load_explanation
from fgvis_lightning.results.tables import Table
from fgvis_lightning.results.tensor_files import EXPLANATIONS, SUFFIX, write_whole

GAMES = ("generation", "preservation", "deletion", "repression")


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
    return parser


def main(args: Sequence[str]) -> None:
    """Parse the command line, run all games, and count.

    Raises:
        InputError: a user's mistake, or images that could not be read.
        RankFailedError: a process has ended before its shard was done.
    """
    parser = make_parser()
    config = parser.parse_args(list(args))

    def methods(objects: Namespace) -> Methods:
        given = {"iterations": config.iterations, "score": config.score}
        chosen: dict[str, Any] = {}
        for game, optimizer, defended in product(config.games, config.optimizers, (False, True)):
            made = OPTIMIZERS.get(optimizer, objects.optimizer)
            lam: Any = "auto" if optimizer == SOLVER else 0.0
            method = FGVisMethod(game=game, lam=lam, patience=0, defended=defended, optimizer=made, **given)
            chosen[_name(game, optimizer, defended)] = (method, {})
        return chosen

    runs, sums_up, problems = sweep(parser, config, methods, ["--data.images", ""])
    if sums_up:
        table, pairs = count(runs, config.games, config.optimizers)
        output = Path(config.output)
        save_table(output / "adversarial", table)
        write_whole(output / "adversarial_pairs.csv", pairs.csv().encode())
        print(f"\n{table.markdown()}\n{strongest(table)}\nEach pair: {output / 'adversarial_pairs.csv'}")
        raise_problems(problems, runs)


def _name(game: str, optimizer: str, defended: bool) -> str:
    name = f"{game} {'defended' if defended else 'undefended'}"
    return name if optimizer == DEFAULT else f"{name} {optimizer}"


def strongest(table: Table) -> str:
    """A sentence on the game and the optimizer that fooled the defended network most."""
    rows: list[dict[str, Any]] = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    defended = [row for row in rows if row["defense"] == "on"]
    if not defended:
        return ""
    worst = max(defended, key=lambda row: (row["false class on top"], row["highest"]))
    tops = round(worst["false class on top"] * worst["pairs"])
    return (
        f"Strongest against the defense: {worst['game']} by {worst['optimizer']}, {tops} of {worst['pairs']} false "
        f"classes on top, highest score {worst['highest']:.3g}."
    )


@torch.no_grad()
def count(runs: dict[str, Run], games: Sequence[str], optimizers: Sequence[str]) -> tuple[Table, Table]:
    """Count how often the false class is the most probable one on its evidence, judged by the plain network.

    Returns:
        The table by network, game, optimizer and defense, with 95 % intervals by Wilson; and that of all pairs.
    """
    table = Table(
        (
            "network",
            "game",
            "optimizer",
            "defense",
            "pairs",
            "false class on top",
            "from",
            "to",
            "mean score",
            "highest",
        )
    )
    pairs = Table(("id", "class", "game", "optimizer", "defense", "score on the image", "score", "on top"))
    for game, optimizer, defended in product(games, optimizers, (False, True)):
        run = runs[_name(game, optimizer, defended)]
        model, tops, scores = run.model, 0, []
        row = game, optimizer, "on" if defended else "off"
        for item, id in run.split()[1]:
            found = load_explanation(run.output / EXPLANATIONS / (id + SUFFIX))
            image = load_image(item.path, model.classifier.preprocessing, upscale=run.data.upscale)
            evidence = blend(model.normalize(image[None]), found.evidence.to(model.device), None)
            logits, targets = model.plain(evidence).float(), found.targets.to(model.device)
            on_top = bool(model.classifier.task.present(logits, targets))
            tops += on_top
            scores.append(float(model.classifier.task.probability(logits, targets)))
            name = model.classifier.class_name(int(found.targets))
            pairs.add((id, name, *row, float(found.score_image), scores[-1], on_top))
        if scores:
            low, high = wilson(tops, len(scores))
            mean = sum(scores) / len(scores)
            rate = tops / len(scores)
            table.add((model.classifier.name, *row, len(scores), rate, low, high, mean, max(scores)))
    return table, pairs
