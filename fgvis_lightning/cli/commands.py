"""The command line: Lightning's own for ``fit``, and the commands beside it.

Exit codes: 0, all items are explained; 1, something of ours or of the system's went wrong; 2, a user's mistake, or
images that cannot be read; 75 (EX_TEMPFAIL), stopped by SIGTERM, so run the same command again; 130, by Ctrl-C.
"""

from __future__ import annotations

import errno
import importlib
import logging
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from fgvis_lightning.callbacks.progress import SweepProgress
from fgvis_lightning.callbacks.tensorboard import TensorBoardImages
from fgvis_lightning.callbacks.writer import ExplanationWriter
from fgvis_lightning.data.image_data import ImageData
from fgvis_lightning.engine.signals import as_exceptions
from fgvis_lightning.engine.strategy import RankFailedError, check_processes, check_strategy, chosen_strategy
from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.experiments.network_option import building, check_optimizers, complete_network
from fgvis_lightning.experiments.parsing import Parser, asks_for_help
from fgvis_lightning.experiments.run import GO_ON, Run
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.results import folder
from fgvis_lightning.results.tensor_files import write_whole

# Lightning's advice for training that does not hold here.
QUIET = (
    r"Found .* module\(s\) in eval mode",  # the frozen network is to be in eval mode
    r"The 'train_dataloader' does not have many workers",  # one batch lasts for hundreds of steps
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # within Lightning
    r"Image size .* exceeds limit",  # such images are refused by name
)


EXPERIMENTS = "fgvis_lightning.experiments."
COMMANDS = {
    "fit": ("fgvis_lightning.cli.commands", "explain images: masks, panels, tables, TensorBoard"),
    "report": ("fgvis_lightning.report.command", "a results folder as one page to look at, sort and filter"),
    "compare": (EXPERIMENTS + "comparison", "FGVis beside eight other methods, in pictures and costs"),
    "evaluate": (EXPERIMENTS + "evaluation", "how faithful explanations are: curves, metrics, best and worst"),
    "bias": (EXPERIMENTS + "bias", "whether a network goes by color, or by position"),
    "adversarial": (EXPERIMENTS + "adversarial", "whether evidence can be made for classes that are not there"),
    "sanity": (EXPERIMENTS + "sanity", "whether maps depend on what the network has learned"),
}
"""Each command's module, which has ``make_parser`` and ``main``, and what it tells or makes."""

FIT = (
    "Explain decisions of a CNN: which pixels and colors it needs to see its class (game preservation), or which take "
    "the class away when they are gone (deletion). Leaves masks, panels and tables in the results folder."
)

STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the results folder, after `ExplanationWriter` has accepted the folder."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pass

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            text = self.parser.dump(self.config, skip_none=False)
            write_whole(Path(self.config.output) / "config.yaml", text.encode(), "rank0")


class FGVisCLI(LightningCLI):
    """LightningCLI with ``--output`` and the callbacks that fill that folder."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        versions = (
            f"fgvis-lightning=={version('fgvis-lightning')}",
            f"pytorch-lightning=={version('pytorch-lightning')}",
        )
        parser = Parser(**{"dump_header": list(versions), **kwargs})
        parser.add_argument("-c", "--config", action="config", help="YAML file with these options.")
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": LightningCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output", type=str, default="results", help="Results folder.")
        parser.add_lightning_class_args(ExplanationWriter, "writer")
        parser.add_lightning_class_args(TensorBoardImages, "tensorboard")
        parser.add_lightning_class_args(SweepProgress, "progress")
        parser.link_arguments("output", "writer.folder")
        parser.link_arguments("output", "data.done")
        parser.link_arguments("output", "trainer.default_root_dir")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        if asks_for_help(args):
            fit = self._subcommand_parsers["fit"]
            assert isinstance(parser, Parser)
            assert isinstance(fit, Parser)
            fit.needed = parser.find_needed("fit")
        super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        """Refuse a folder early; let torchvision's weights entry, which the network forgets, tell its preprocessing."""
        check_optimizers(self.config.fit)
        folder.prepare_folder(Path(self.config.fit.output))
        complete_network(
            self.config.fit.model,
            lambda name: (
                self.parser.parse_args(["fit", "--data.images", "", "--model.network", name]).fit.model.network
            ),
        )

    def instantiate_classes(self) -> None:
        with building(self.config.fit.model.network):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self.config.fit
        if config.trainer.strategy == "auto":
            own = {name: config.trainer[name] for name in ("accelerator", "devices", "num_nodes")}
            kwargs["strategy"] = chosen_strategy(**own)
        if config.trainer.logger is None:
            kwargs["logger"] = TensorBoardLogger(config.output, name="tensorboard", version="", default_hp_metric=False)
        trainer: pl.Trainer = super().instantiate_trainer(**kwargs)
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        if config.get("enable_progress_bar") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, SweepProgress)]
        trainer: pl.Trainer = super()._instantiate_trainer(config, callbacks)
        check_processes(trainer)
        check_strategy(trainer.strategy, trainer.world_size)
        return trainer

    def before_fit(self) -> None:
        # Short runs have curves, too.
        trainer: Any = self.trainer  # whose class does not declare the attribute
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, self.model.iterations)
        self.run = Run(trainer, self.model, self.datamodule)
        self.run.prepare()
        if trainer.is_global_zero:
            print(f"network: {self.model.classifier.name}; {self.model.classifier.preprocessing}", flush=True)

    def fit(self, model: Any, datamodule: Any = None, **kwargs: Any) -> None:
        self.run.fit(**kwargs)

    def after_fit(self) -> None:
        """Say what was done, where to look, and what went wrong."""
        if not self.trainer.is_global_zero:
            return
        output, data = self.run.output, self.datamodule
        present = self.run.split()[1]
        written = len(present) - data.skipped + len(data.recomputed)
        already = f", {len(present) - written:,} were already there" if len(present) > written else ""
        if written and self.model.coverage.calls:
            print(f"\n{self.model.coverage}")
        print(f"{written:,} of {data.total:,} items explained{already}.")
        if self.model.options.auto and (missed := self.run.what_missed(present)):
            print(missed)
        panels = f"{output / 'panels'} and " if self.run.writer.panels else ""
        print(f"Look at {panels}{output / 'summary.csv'}")
        print(f"and at all of it as a page, with: python train.py report {output}")
        if isinstance(self.trainer.logger, TensorBoardLogger):
            print(f"and at masks and curves with: tensorboard --logdir {Path(self.trainer.logger.log_dir)}")
        self.run.check()


def overview() -> str:
    """The commands."""
    lines = [f"  {name:13}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fgvis COMMAND [options]",
            "",
            "See, pixel by pixel and color by color, what evidence a CNN's decision rests on.",
            "",
            *lines,
            "  completion   fgvis completion bash: a script that completes commands and options",
            "",
            "fgvis COMMAND --help tells what it needs. To begin: fgvis fit --data.images photo.jpg",
        ]
    )


class _ParserAlone(FGVisCLI):
    """Makes the parser and does nothing with it."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = Namespace(seed_everything=False)

    def _add_instantiators(self) -> None:  # which older Lightning makes of a whole configuration
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


def make_parser() -> Parser:
    """The options of ``fit``."""
    return _run_cli(_ParserAlone, run=False, parser_kwargs={"description": FIT, "prog": "fgvis fit"}).parser


def _run_cli(cli: type[FGVisCLI], **options: Any) -> Any:
    return cli(
        FGVis,
        ImageData,
        save_config_callback=SaveConfig,
        seed_everything_default=False,
        auto_configure_optimizers=False,
        trainer_defaults={
            "max_epochs": 1,
            "devices": 1,
            "enable_checkpointing": False,
            "log_every_n_steps": 10,
            "use_distributed_sampler": False,
        },
        **options,
    )


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: with the status that the module's text tells, and one line on standard error, if not all went well.
    """
    command, *rest = list(sys.argv[1:] if args is None else args) or ["--help"]
    # Lightning's advertisement, and its word for a sweep that has come to its end.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.msg and "max_epochs" not in record.msg
    )
    try:
        with as_exceptions(), warnings.catch_warnings():
            for message in QUIET:
                warnings.filterwarnings("ignore", message)
            _run(command, rest, args)
    except InputError as error:
        _stop(2, str(error))
    except RankFailedError as error:
        _stop(1, str(error))
    except SIGTERMException:
        _stop(75, f"Stopped by SIGTERM. {GO_ON}")
    except KeyboardInterrupt:
        _stop(130, f"Stopped by Ctrl-C. {GO_ON}")
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):  # Lightning makes an exit of it
            _stop(130, f"Stopped by Ctrl-C. {GO_ON}")
        raise
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        where = f" {error.filename}" if error.filename else " the results"
        _stop(1, f"Expected to write{where}, but: {error.strerror}. Fix this and run the command again. {GO_ON}")


def _run(command: str, rest: Sequence[str], args: Sequence[str] | None) -> None:
    if command in {"-h", "--help"}:
        print(overview())
    elif command == "--version":
        print(f"fgvis-lightning {version('fgvis-lightning')}")
    elif command == "completion":
        _print_completion(rest)
    elif command == "fit":
        options = {} if args is None else {"args": list(args)}
        _run_cli(FGVisCLI, parser_kwargs={"fit": {"description": FIT}, "prog": "fgvis"}, **options)
    elif command in COMMANDS:
        importlib.import_module(COMMANDS[command][0]).main(rest)
    else:
        raise InputError(f"Expected a command, {', '.join(COMMANDS)}, but got {command!r}.{nearest(command, COMMANDS)}")


def _print_completion(rest: Sequence[str]) -> None:
    from fgvis_lightning.cli.completion import script

    parsers = {name: importlib.import_module(module).make_parser() for name, (module, _) in COMMANDS.items()}
    print(script(rest[0] if rest else "", parsers))


def _stop(code: int, message: str) -> NoReturn:
    rank = getattr(rank_zero_only, "rank", 0)  # as the strategy has set it
    print(f"fgvis: {f'rank {rank}: ' if rank else ''}{message}", file=sys.stderr, flush=True)
    sys.exit(code)
