"""The command line: Lightning's own for ``fit``.

Exit codes: 0, all items are explained; 1, something of ours or of the system's went wrong; 2, a user's mistake, or
images that cannot be read; 75 (EX_TEMPFAIL), stopped by SIGTERM, so run the same command again; 130, by Ctrl-C.
"""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torchvision
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from fgvis_lightning import folder
from fgvis_lightning.batch_size import is_out_of_memory
from fgvis_lightning.callbacks import ExplanationWriter, TensorBoardImages
from fgvis_lightning.data import ImageData
from fgvis_lightning.errors import InputError
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.items import Item, split_by_done
from fgvis_lightning.progress import SweepProgress
from fgvis_lightning.signals import as_exceptions
from fgvis_lightning.store import write_whole
from fgvis_lightning.strategy import RankFailedError, check_processes, check_strategy, chosen_strategy

GET_MODEL = "torchvision.models.get_model"

# Lightning's advice for training that does not hold here.
QUIET = (
    r"Found .* module\(s\) in eval mode",  # the frozen network is to be in eval mode
    r"The 'train_dataloader' does not have many workers",  # one batch lasts for hundreds of steps
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # within Lightning
    r"Image size .* exceeds limit",  # such images are refused by name
)


GO_ON = "What is finished is kept: the same command goes on from there."
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

    def before_instantiate_classes(self) -> None:
        """Refuse a folder early; let torchvision's weights entry, which the network forgets, tell its preprocessing."""
        folder.prepare_folder(Path(self.config.fit.output))
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
        """What can go wrong for all ranks alike goes wrong here, before rank 0 starts the others."""
        # Short runs have curves, too.
        trainer: Any = self.trainer  # whose class does not declare the attribute
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, self.model.iterations)
        self.model.trainer = self.trainer
        self.datamodule.list_items(self.model.classifier)
        self._writer.claim(self.trainer, self.model)
        if trainer.is_global_zero:
            print(f"network: {self.model.classifier.name}; {self.model.classifier.preprocessing}", flush=True)

    def fit(self, **kwargs: Any) -> None:
        """Run the trainer; whatever happens, what is finished is summed up."""
        try:
            self.trainer.fit(**kwargs)
        except RankFailedError as error:
            raise RankFailedError(f"{error}. {self._what_is_missing(self._split()[0])}") from error
        except BaseException as error:
            if is_out_of_memory(error):
                raise InputError(self._too_large()) from error
            raise
        finally:
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, SweepProgress):
                    callback.close()
            self._writer.close()

    def after_fit(self) -> None:
        """Say what was done, where to look, and what went wrong."""
        if not self.trainer.is_global_zero:
            return
        output, data = Path(self.config.fit.output), self.datamodule
        missing, present = self._split()
        written = len(present) - data.skipped + len(data.recomputed)
        already = f", {len(present) - written:,} were already there" if len(present) > written else ""
        if written and self.model.coverage.calls:
            print(f"\n{self.model.coverage}")
        print(f"{written:,} of {data.total:,} items explained{already}.")
        panels = f"{output / 'panels'} and " if self._writer.panels else ""
        print(f"Look at {panels}{output / 'summary.csv'}")
        if isinstance(self.trainer.logger, TensorBoardLogger):
            print(f"and at masks and curves with: tensorboard --logdir {Path(self.trainer.logger.log_dir)}")
        if self._writer.damaged:
            raise InputError("\n  ".join(["Some files in the results folder are not used:", *self._writer.damaged]))
        if missing:
            raise InputError(self._what_is_missing(missing))

    @property
    def _writer(self) -> ExplanationWriter:
        return next(c for c in self.trainer.callbacks if isinstance(c, ExplanationWriter))  # type: ignore[attr-defined]

    def _split(self) -> tuple[list[Item], list[tuple[Item, str]]]:
        """Items without and with a file, of the whole sweep."""
        classifier = self.model.classifier
        return split_by_done(
            self.datamodule.list_items(classifier), classifier, folder.finished(Path(self.config.fit.output))
        )

    def _what_is_missing(self, missing: Sequence[Item]) -> str:
        """These items have no file: which they are, and why, in a few lines."""
        notes = folder.failures(Path(self.config.fit.output))
        unread = [item for item in missing if item.image_id in notes]
        rest = [item for item in missing if item.image_id not in notes]
        total, lines = len(self.datamodule.list_items(self.model.classifier)), []
        if unread:
            reasons = list(dict.fromkeys(notes[item.image_id] for item in unread))
            more = [f"and {len(reasons) - 10} more in {Path(self.config.fit.output) / folder.FAILURES}"]
            shown = "\n  ".join(reasons[:10] + (more if len(reasons) > 10 else []))
            lines.append(f"{len(unread):,} of {total:,} items could not be read:\n  {shown}")
        if rest:
            names = ", ".join(item.prefix.rstrip("-@") for item in rest[:10])
            more_names = f" and {len(rest) - 10:,} more" if len(rest) > 10 else ""
            lines.append(
                f"{len(rest):,} of {total:,} items are missing: {names}{more_names}. "
                f"Run the same command again to go on."
            )
        return "\n".join(lines) or f"All {total} items are there."

    def _too_large(self) -> str:
        size = len(self.model.batch.items) if self.model.batch is not None else 0
        return (
            f"Expected a batch of {size or self.datamodule.batch_size} to fit the memory of {self.model.device}, but "
            f"it does not. Use --data.batch_size {max(1, size // 2)} or auto, smaller images (--model.size), or "
            f"--trainer.precision bf16-mixed. {GO_ON}"
        )


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
        SystemExit: with the status that the module's text tells, and one line on standard error, if not all went well.
    """
    # Lightning's advertisement, and its word for a sweep that has come to its end.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.msg and "max_epochs" not in record.msg
    )
    try:
        with as_exceptions(), warnings.catch_warnings():
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
        _stop(1, f"Expected to write{where}, but: {error.strerror}. Mend that. {GO_ON}")


def _stop(code: int, message: str) -> NoReturn:
    rank = getattr(rank_zero_only, "rank", 0)  # as the strategy has set it
    print(f"fgvis: {f'rank {rank}: ' if rank else ''}{message}", file=sys.stderr, flush=True)
    sys.exit(code)
