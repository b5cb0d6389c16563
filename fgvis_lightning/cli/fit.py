"""``python train.py fit``: Lightning's own command line, with a results folder and the callbacks that write to it."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger

from fgvis_lightning.callbacks.progress import SweepProgress
from fgvis_lightning.callbacks.tensorboard import TensorBoardImages
from fgvis_lightning.callbacks.writer import ExplanationWriter
from fgvis_lightning.data.image_data import ImageData
from fgvis_lightning.engine.precision import say_if_slow
from fgvis_lightning.engine.strategy import check_trainer, chosen_strategy, trainer_options
from fgvis_lightning.experiments.arguments import building, check_optimizers, complete_network
from fgvis_lightning.experiments.outline import check_lists, outline_of, required
from fgvis_lightning.experiments.output import check_owner, write_config
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.experiments.run import SweepRun
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.names import program
from fgvis_lightning.results import folder
from fgvis_lightning.results.lines import item_lines

PROG = "fgvis fit"

FIT = (
    "Explain decisions of a CNN: find the pixels and color channels that are enough for its class (game preservation), "
    "or whose removal loses the class (deletion). Writes masks, panels and tables to the results folder."
)


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the results folder, after `ExplanationWriter` has accepted the folder."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pass

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            write_config(Path(self.config.output), PROG, self.parser.dump(self.config, skip_none=False))


class FGVisCLI(LightningCLI):
    """LightningCLI with ``--output`` and the callbacks that write to this folder."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        versions = [f"{name}=={version(name)}" for name in ("fgvis-lightning", "pytorch-lightning")]
        parser = Parser(**{"dump_header": versions, **kwargs})
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
        fit = self._subcommand_parsers["fit"]
        assert isinstance(fit, Parser)
        fit.needed = required(fit)
        check_lists(sys.argv[1:] if args is None else args, outline_of(fit))
        super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        """Check the folder early, and keep torchvision's weights entry, which determines the preprocessing."""
        check_optimizers(self.config.fit)
        output = Path(self.config.fit.output)
        check_owner(output, PROG)
        folder.prepare_folder(output)
        complete_network(self.config.fit.model)

    def instantiate_classes(self) -> None:
        with building(self.config.fit.model.network):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self.config.fit
        if config.trainer.strategy == "auto":
            own = {name: config.trainer[name] for name in ("accelerator", "devices", "num_nodes")}
            kwargs["strategy"] = chosen_strategy(**own)
        if config.trainer.logger is None:
            own = {"name": "", "version": "tensorboard", "default_hp_metric": False}  # a run <output>/tensorboard
            kwargs["logger"] = TensorBoardLogger(config.output, **own)
        trainer: pl.Trainer = super().instantiate_trainer(**kwargs)
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        own = config.get("callbacks") or []
        another = any(isinstance(each, pl.callbacks.ProgressBar) for each in (own if isinstance(own, list) else [own]))
        if another or config.get("enable_progress_bar") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, SweepProgress)]
        with trainer_options():
            trainer: pl.Trainer = super()._instantiate_trainer(config, callbacks)
        check_trainer(trainer)
        return trainer

    def before_fit(self) -> None:
        # Short runs should have curves, too.
        trainer: Any = self.trainer  # the class does not declare the attribute
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, self.model.iterations)
        self.run = SweepRun(trainer, self.model, self.datamodule)
        self.run.prepare()
        say_if_slow(trainer)
        if trainer.is_global_zero:
            print(self.model.classifier.described, flush=True)

    def fit(self, model: Any, datamodule: Any = None, **kwargs: Any) -> None:
        self.run.fit(**kwargs)

    def after_fit(self) -> None:
        """Print the results, where to find them, and problems."""
        if not self.trainer.is_global_zero:
            return
        output, data = self.run.output, self.datamodule
        missing, present = self.run.split()
        written = len(present) - data.skipped + len(data.recomputed)
        old = len(present) - written
        already = f", {old:,} {'was' if old == 1 else 'were'} already there" if old else ""
        if written and self.model.coverage.calls:
            print(f"\n{self.model.coverage}")
        print(f"{written:,} of {data.total:,} items explained{already}.")
        ids = sorted({id for _, id in present})  # as in summary.csv
        if lines := item_lines(output, ids):
            print("\n" + "\n".join(lines) + "\n")
        if drawn := self.run.writer.draw_missing(ids):
            print(f"{drawn:,} panels of earlier explanations drawn.")
        if others := folder.count_finished(output) - len(ids):
            belong = "1 explanation belongs" if others == 1 else f"{others:,} explanations belong"
            print(f"{belong} to other images in {output}; see summary.csv (listed: no).")
        if self.model.options.auto:
            for line in self.run.what_to_look_at():
                print(line)
        panels = f"{output / 'panels'} and " if self.run.writer.panels else ""
        print(f"See {panels}{output / 'summary.csv'}")
        print(f"To view all results on one page: {program()} report {output}")
        self.run.check(missing)


class _ParserAlone(FGVisCLI):
    """Makes only the parser."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_method_arguments(pl.Trainer, "fit", skip={*self.subcommands()["fit"]})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = Namespace(seed_everything=False)

    def _add_instantiators(self) -> None:  # in older Lightning, this needs a complete configuration
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


def make_parser() -> Parser:
    """The options of ``fit``."""
    return run_cli(_ParserAlone, run=False, parser_kwargs={"description": FIT, "prog": PROG}).parser


def run_cli(cli: type[FGVisCLI], **options: Any) -> Any:
    """Run ``fit`` with a command line class and this package's defaults."""
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
            "enable_model_summary": False,
            "log_every_n_steps": 10,
            "use_distributed_sampler": False,
        },
        **options,
    )
