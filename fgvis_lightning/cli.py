"""The command line: Lightning's own for ``fit``."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torchvision
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger

from fgvis_lightning.callbacks import ExplanationWriter, SweepProgressBar, TensorBoardImages
from fgvis_lightning.data import ImageData
from fgvis_lightning.errors import InputError
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.store import prepare_folder

GET_MODEL = "torchvision.models.get_model"

# Lightning's advice for training that does not hold here.
QUIET = (
    r"Found .* module\(s\) in eval mode",  # the frozen network is to be in eval mode
    r"The 'train_dataloader' does not have many workers",  # one batch lasts for hundreds of steps
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # within Lightning
)


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the results folder, after `ExplanationWriter` has accepted the folder."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pass

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.parser.save(self.config, Path(self.config.output) / "config.yaml", skip_none=False, overwrite=True)


class FGVisCLI(LightningCLI):
    """LightningCLI with ``--output`` and the callbacks that fill that folder."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": LightningCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output", type=str, default="results", help="Results folder.")
        parser.add_lightning_class_args(ExplanationWriter, "writer")
        parser.add_lightning_class_args(TensorBoardImages, "tensorboard")
        parser.add_lightning_class_args(SweepProgressBar, "progress")
        parser.set_defaults({"progress.refresh_rate": 5})
        parser.link_arguments("output", "writer.folder")
        parser.link_arguments("output", "data.done")
        parser.link_arguments("output", "trainer.default_root_dir")

    def before_instantiate_classes(self) -> None:
        """Refuse a folder early; let torchvision's weights entry, which the network forgets, tell its preprocessing."""
        prepare_folder(Path(self.config.fit.output))
        model = self.config.fit.model
        if not isinstance(model.network, Namespace):
            return
        _drop_defaults(model.network, self.parser)
        options = {**vars(model.network.get("init_args") or Namespace()), **(model.network.get("dict_kwargs") or {})}
        entry = options.get("weights")
        if isinstance(entry, str) and model.network.class_path == GET_MODEL:
            with suppress(KeyError, ValueError):  # an unknown name is the builder's to refuse
                entry = torchvision.models.get_model_weights(options["name"])[entry]
        if isinstance(entry, torchvision.models.WeightsEnum) and model.weights is None:
            model.weights = str(entry)

    def instantiate_classes(self) -> None:
        """Build everything; what a network's own constructor raises ends in one line."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            network = self.config.fit.model.network
            if not isinstance(network, Namespace) or f"class_path={network.class_path!r}" not in str(error):
                raise
            raise InputError(
                f"Expected to build the network {network.class_path}, but it raised {error.__cause__!r}. "
                f"Weights that cannot be downloaded can be given as a file with --model.checkpoint."
            ) from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self.config.fit
        if config.trainer.logger is None:
            kwargs["logger"] = TensorBoardLogger(config.output, name="tensorboard", version="", default_hp_metric=False)
        trainer: pl.Trainer = super().instantiate_trainer(**kwargs)
        return trainer

    def before_fit(self) -> None:
        # Short runs have curves, too.
        trainer: Any = self.trainer  # whose class does not declare the attribute
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, self.model.iterations)
        print(f"network: {self.model.classifier.name}; {self.model.classifier.preprocessing}")

    def after_fit(self) -> None:
        """Say what was done, where to look, and what went wrong."""
        output, data = Path(self.config.fit.output), self.datamodule
        failures = data.sweep.failures
        written = data.total - data.skipped - len(failures)
        already = f", {data.skipped} were already there" if data.skipped else ""
        if written:
            print(f"\n{self.model.coverage}")
        print(f"{written} of {data.total} items explained{already}.")
        panels = f"{output / 'panels'} and " if self.config.fit.writer.panels else ""
        print(f"Look at {panels}{output / 'summary.csv'}")
        if isinstance(self.trainer.logger, TensorBoardLogger):
            print(f"and at masks and curves with: tensorboard --logdir {Path(self.trainer.logger.log_dir)}")
        if failures:
            reasons = "\n  ".join(failure.reason for failure in failures)
            raise InputError(f"{len(failures)} of {data.total} items could not be read:\n  {reasons}")


def _drop_defaults(network: Namespace, parser: LightningArgumentParser) -> None:
    """Drop the arguments that nobody gave from those of a torchvision builder.

    The parser fills in the defaults of the network's class, where builders such as ``resnext50_32x4d``
    choose their own and refuse others.
    """
    if not network.class_path.startswith("torchvision.models.") or network.class_path == GET_MODEL:
        return
    defaults = parser.parse_args(["fit", "--data.images", "", "--model.network", network.class_path]).fit.model.network
    for key, value in list(vars(network.init_args).items()):
        if defaults.init_args.get(key) == value:
            del network.init_args[key]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: with status 2 and one line on standard error after a user's mistake.
    """
    # Lightning's advertisement.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)
    try:
        with warnings.catch_warnings():
            for message in QUIET:
                warnings.filterwarnings("ignore", message)
            FGVisCLI(
                FGVis,
                ImageData,
                save_config_callback=SaveConfig,
                seed_everything_default=False,
                auto_configure_optimizers=False,
                trainer_defaults={
                    "max_epochs": -1,
                    "devices": 1,
                    "enable_checkpointing": False,
                    "log_every_n_steps": 10,
                    "use_distributed_sampler": False,
                },
                args=list(args) if args is not None else None,
            )
    except InputError as error:
        print(f"fgvis: {error}", file=sys.stderr)
        sys.exit(2)
