"""One sweep for each of several methods over the same items: the common part of the experiments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace

from fgvis_lightning.baselines.base import Method
from fgvis_lightning.callbacks.progress import SweepProgress
from fgvis_lightning.callbacks.writer import ExplanationWriter
from fgvis_lightning.data.image_data import ImageData
from fgvis_lightning.engine.precision import say_if_slow
from fgvis_lightning.engine.strategy import (
    IndependentStrategy,
    RankFailedError,
    check_trainer,
    chosen_strategy,
    quiet,
    trainer_options,
)
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.arguments import build, new_parser
from fgvis_lightning.experiments.output import check_owner, write_config
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.experiments.run import SweepRun
from fgvis_lightning.names import slug
from fgvis_lightning.networks.load import from_options
from fgvis_lightning.results.folder import prepare_folder
from fgvis_lightning.results.tensor_files import write_whole

NAMES = "methods.json"  # file in the folder of a comparison with the names of the methods in its folders

REPEATED = r"`LightningModule.configure_optimizers` returned `None`"
"""Lightning's warning about modules without anything to train."""


@dataclass(frozen=True)
class Hardware:
    """Accelerator, devices and precision of a sweep.

    Args:
        accelerator: Lightning's, e.g. ``cpu`` or ``gpu``.
        devices: their number or indices; several devices share the items.
        num_nodes: number of machines.
        precision: Lightning's, e.g. ``bf16-mixed``; stored scores are computed in the network's own precision.
    """

    accelerator: str = "auto"
    devices: int | str | list[int] = 1
    num_nodes: int = 1
    precision: str | int = "32-true"


def sweep_parser(command: str, description: str, output: str) -> Parser:
    """A parser with the arguments of all experiments that explain images; for the arguments see `new_parser`."""
    parser = new_parser(command, description, output)
    parser.add_class_arguments(ImageData, "data", skip={"done"}, sub_configs=True)
    parser.add_class_arguments(Hardware, "trainer")
    return parser


def folders_of(output: Path, names: Iterable[str], kind: str) -> dict[str, Path]:
    """Name → folder in ``output``; raises `InputError` if two names, of methods or networks, would share a folder."""
    folders = {name: output / slug(name) for name in names}
    taken: dict[str, str] = {}
    for name, folder in folders.items():
        other = taken.setdefault(str(folder).casefold(), name)
        if other != name:
            raise InputError(
                f"Expected names of {kind} that differ as folder names, but got {other!r} and {name!r}, which are "
                f"both {folder.name}. Rename one of them."
            )
    return folders


Methods = Mapping[str, tuple[Method, dict[str, Any]]]
"""Name → method, and the parameters that determine its maps."""


def sweep(
    parser: Parser,
    config: Namespace,
    methods: Callable[[Namespace], Methods],
    sum_up: Callable[[dict[str, SweepRun]], None],
) -> None:
    """Run several methods over the same items, each into its own folder in ``config.output``, and sum up.

    Args:
        parser: of `sweep_parser`.
        config: parsed by it.
        methods: makes the methods from the instantiated configuration.
        sum_up: writes tables and figures of the runs, by method, in the first process.

    Raises:
        InputError: if the user made a mistake, images could not be read, or methods could not explain the network; the
            others are summed up before.
        RankFailedError: if a process ended before its shard was done.
    """
    objects = build(parser, config)
    chosen = methods(objects)
    output = Path(config.output)
    check_owner(output, parser.prog)
    folders = folders_of(output, chosen, "methods")
    for folder in folders.values():
        prepare_folder(folder)
    classifier = from_options(**vars(objects.model))
    hardware = asdict(objects.trainer)
    strategy = chosen_strategy(**{name: hardware[name] for name in ("accelerator", "devices", "num_nodes")})
    runs: dict[str, SweepRun] = {}
    for name, (method, parameters) in chosen.items():
        data = ImageData(**vars(config.data), done=folders[name])
        data.items = next(iter(runs.values())).data.items if runs else None
        trainer = _trainer(hardware, strategy, name, folders[name])
        runs[name] = SweepRun(trainer, method.module(classifier, name, parameters), data)
        # Before the first run begins, so that mistakes are not reported hours later.
        runs[name].prepare()
    first = next(iter(runs.values())).trainer
    say_if_slow(first)
    if first.is_global_zero:
        write_config(output, parser.prog, parser.dump(config, skip_none=False))
        names = json.dumps({folder.name: name for name, folder in folders.items()}, ensure_ascii=False, indent=2)
        write_whole(output / NAMES, f"{names}\n".encode(), "rank0")
        print(classifier.described, flush=True)
    problems = _run_all(runs)
    if first.is_global_zero:
        sum_up(runs)
        _raise_problems(problems, runs)


def _trainer(hardware: dict[str, Any], strategy: Any, name: str, folder: Path) -> pl.Trainer:
    """A trainer for a method that fills a folder.

    All methods' trainers have the same processes. The first running trainer starts the other ranks, which go through
    all methods like this process, so it waits for them at the end, see `_end`.
    """
    progress = SweepProgress()
    progress.label = f"{name}: "
    with quiet(message=REPEATED), trainer_options():
        trainer = pl.Trainer(
            **hardware,
            strategy=strategy,
            callbacks=[ExplanationWriter(folder, panels=False), progress],
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    check_trainer(trainer)
    if isinstance(trainer.strategy, IndependentStrategy):
        trainer.strategy.waits = False
    return trainer


def _end(runs: Iterable[SweepRun], error: BaseException | None = None) -> None:
    """Wait for the started processes.

    Raises:
        RankFailedError: a process failed, and ``error`` does not explain it already.
    """
    for run in runs:
        if isinstance(strategy := run.trainer.strategy, IndependentStrategy):
            if error is not None:
                strategy.on_exception(error)
            strategy.join()


def _run_all(runs: dict[str, SweepRun]) -> dict[str, str]:
    """Run one method after the other; return why some of them could not explain the network."""
    problems: dict[str, str] = {}
    try:
        for name, run in runs.items():
            try:
                with quiet(message=REPEATED):
                    run.fit()
            except InputError as error:
                problems[name] = str(error)
            if run.model.cost.images:
                run.model.cost.add_to(run.output, run.trainer.global_rank)
    except BaseException as error:
        _end(runs.values(), error)
        raise
    finally:
        for run in runs.values():
            run.writer.close()
    try:
        _end(runs.values())
    except RankFailedError as error:
        missing = [f"{name}: {run.what_is_missing(run.split()[0])}" for name, run in runs.items()]
        raise RankFailedError("\n".join([f"{error}.", *missing])) from error
    return problems


def _raise_problems(problems: dict[str, str], runs: dict[str, SweepRun]) -> None:
    """Raise `InputError` with all problems, each one once, if there are any."""
    for name, run in runs.items():
        if name not in problems:
            try:
                run.check(run.split()[0])
            except InputError as error:
                problems[name] = str(error)
    methods: dict[str, list[str]] = {}
    for name, problem in problems.items():
        methods.setdefault(problem, []).append(name)
    if problems:
        raise InputError("\n".join(f"{', '.join(names)}: {problem}" for problem, names in methods.items()))
