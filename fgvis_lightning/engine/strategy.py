"""``--trainer.strategy independent``: one process for each device, each with its own masks.

Plain DDP would average the gradients, and with them the masks, of different images. It also synchronizes all ranks in
every step, so a rank with fewer items would stall the others. Here each rank explains its shard, and ranks exchange no
data: there is no process group. Lightning's own launcher and cluster environments start the processes (on one machine,
with torchrun, or with SLURM).
"""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

# Private: Lightning has neither a public launcher to derive from nor a public function to set the number of threads.
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy, StrategyRegistry
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from pytorch_lightning.utilities.exceptions import SIGTERMException

from fgvis_lightning.errors import InputError

PATIENCE = 60  # seconds that other ranks have to end cleanly after this rank was stopped, before they are killed


class RankFailedError(RuntimeError):
    """A process of the sweep ended before its shard was done."""


class IndependentStrategy(DDPStrategy):
    """Ranks with independent masks, see the module's docstring.

    The process started by the user is rank 0. It always waits for the processes that it has started, even if it fails
    itself, and raises `RankFailedError` if one of them has failed.

    Attributes:
        waits: whether the trainer waits in its teardown; false if the processes have more to do and `join` is called
            later.
    """

    waits = True
    _told_to_stop = False
    _failing = False

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_distributed(self) -> None:
        """Set ranks, but create no process group."""
        self.set_world_ranks()

    def configure_ddp(self) -> None:
        """Do not wrap the module, so that no gradients are averaged."""

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a checkpoint would contain one rank's masks, and a sweep continues from its files."""

    def on_exception(self, exception: BaseException) -> None:
        self._failing = True
        # Any other error concerns only this rank, and the others finish their shards.
        self._told_to_stop = isinstance(exception, KeyboardInterrupt | SIGTERMException)

    def teardown(self) -> None:
        if self.waits:
            self.join()
        super().teardown()

    def join(self) -> None:
        """Wait for the processes that this process has started.

        Raises:
            RankFailedError: if one of them failed, but this process did not.
        """
        if isinstance(self._launcher, _Launcher):
            if self._told_to_stop:
                self._launcher.stop()
            self._launcher.wait()
            failed = self._launcher.failed()
            if failed and not self._failing:
                raise RankFailedError(", ".join(failed))


class _Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher, except that a failing child does not end the others."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self.procs = []
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def wait(self) -> None:
        for process in self.procs:
            process.wait()

    def stop(self) -> None:
        """Ask the child processes to end, and kill them after a while."""
        self.kill(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and any(process.poll() is None for process in self.procs):
            time.sleep(0.05)
        for process in self.procs:
            process.kill()

    def failed(self) -> list[str]:
        """Descriptions of the child processes that failed."""
        own = self.cluster_environment.node_rank() * self.num_processes
        ended = [(own + index, process.returncode) for index, process in enumerate(self.procs, start=1)]
        return [f"rank {rank} {_how(code)}" for rank, code in ended if code]


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


FOR_TRAINING = {
    *("BaseFinetuning", "BatchSizeFinder", "GradientAccumulationScheduler", "LearningRateFinder", "ModelPruning"),
    *("StochasticWeightAveraging", "WeightAveraging"),
}
"""Lightning's callbacks that change a network in training, or how it is trained; older versions lack some of them."""


def check_steps(trainer: pl.Trainer, learning_rate: bool = True) -> None:
    """Check that every batch is one step of its masks, and that masks of different images have nothing in common.

    Args:
        trainer: the trainer.
        learning_rate: whether the masks' optimizer has a learning rate.

    Raises:
        InputError: for a strategy, an option or a callback that does not fit.
    """
    strategy = trainer.strategy
    single = isinstance(strategy, SingleDeviceStrategy) and trainer.world_size == 1
    if not (single or isinstance(strategy, IndependentStrategy)):
        raise InputError(
            f"Expected the strategy independent, or auto, but got {type(strategy).__name__}: it would average the "
            f"masks of different images, and stall if ranks have different numbers of images. Use --trainer.strategy "
            f"independent."
        )
    own = "every batch is one step of its masks, each with its own gradient", ""
    short = "a batch is one iteration", " For a short run, use fewer --model.iterations, or --trainer.max_time."
    for name, neutral, (reason, instead) in (
        ("accumulate_grad_batches", ("1",), own),
        ("gradient_clip_val", ("None", "0", "0.0"), own),
        ("fast_dev_run", ("False", "0"), short),
        ("overfit_batches", ("0", "0.0"), short),
        ("limit_train_batches", ("None", "1.0"), short),  # 1 is a single batch; the two options above set it, too
        ("max_steps", ("-1",), short),
    ):
        given = getattr(trainer, name)
        if str(given) not in neutral:
            raise InputError(f"Expected no --trainer.{name}, since {reason}, but got {given}. Remove it.{instead}")
    unfit = FOR_TRAINING if learning_rate else FOR_TRAINING | {"LearningRateMonitor"}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if unfit & {kind.__name__ for kind in type(callback).__mro__}:
            raise InputError(
                f"Expected callbacks that are not for training a network, since explanations leave it as it is, but "
                f"got {type(callback).__name__}. Remove it."
            )


def check_trainer(trainer: pl.Trainer) -> None:
    """Check the strategy, and that the number of devices equals the number of processes started by torchrun or SLURM.

    Raises:
        InputError: if the numbers differ, since each process would explain the wrong part of the sweep; or see
            `check_steps`.
    """
    for name, kind in (("torchrun", TorchElasticEnvironment), ("SLURM", SLURMEnvironment)):
        started = kind().world_size() if kind.detect() else None
        if started is not None and started != trainer.num_devices * trainer.num_nodes:
            raise InputError(
                f"Expected --trainer.devices times --trainer.num_nodes to be {started}, the number of processes that "
                f"{name} has started, but got {trainer.num_devices} times {trainer.num_nodes}."
            )
    check_steps(trainer)


def chosen_strategy(**trainer: Any) -> str:
    """Resolve ``strategy: auto`` for these Trainer arguments: ``independent`` for more than one device."""
    with quiet(), trainer_options():  # the list of devices is printed later, by the Trainer that is used
        probe = pl.Trainer(**trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return "independent" if probe.world_size > 1 else "auto"


@contextmanager
def quiet(message: str = "", module: str = "") -> Iterator[None]:
    """Restrict Lightning's log to errors within this context, and ignore warnings of this ``message`` or ``module``."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            if message or module:
                warnings.filterwarnings("ignore", message, module=module)
            yield
    finally:
        log.setLevel(level)


if "independent" not in StrategyRegistry:
    StrategyRegistry.register(
        "independent", IndependentStrategy, description="one process for each device, each with its own masks"
    )


@contextmanager
def trainer_options() -> Iterator[None]:
    """Convert errors of Lightning's Trainer about its options to an `InputError` of one line."""
    try:
        yield
    except InputError:
        raise
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"Expected valid options of Lightning's Trainer, but it reports: {reason}.") from error
