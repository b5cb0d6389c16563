"""FGVis: a LightningModule whose only parameter is the mask.

One epoch is one pass over the items. One training step is one iteration of the masks' optimizer on a batch, as defined
in `fgvis_lightning.method`, under Lightning's automatic optimization:

1. ``training_step``: ``e = blend(x, mask)``, the network's logits with gates in their backward pass, the game's loss;
2. ``on_before_optimizer_step``: a solver receives the distance of each mask from its level; for any other optimizer,
   the gradient of each mask is divided by its largest value (Wagner et al., CVPR 2019, supplement A);
3. ``optimizer.step``: computes the next masks;
4. ``on_train_batch_end``: masks are projected to [0,1], and finished items are passed to every `ExplanationCallback`.

The mask has one row for each of the ``seeds`` runs of each item. Items of a batch do not influence each other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import fields, replace
from inspect import signature
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fgvis_lightning.data.batches import Batch, divided
from fgvis_lightning.defense.coverage import GATE_FREE
from fgvis_lightning.defense.options import DefenseOptions, defend
from fgvis_lightning.engine.batch_size import FreeMemory, largest_batch_size
from fgvis_lightning.engine.mask_module import MaskModule
from fgvis_lightning.engine.rows import Rows
from fgvis_lightning.engine.strategy import check_steps
from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.method.convergence import Plateau
from fgvis_lightning.method.games import divide_by_largest
from fgvis_lightning.method.options import PATIENCE, choose, within
from fgvis_lightning.method.solver import Solver
from fgvis_lightning.networks.load import ClassifierOptions, from_options
from fgvis_lightning.networks.logits import resolve
from fgvis_lightning.networks.zoo import DEFAULT


class FGVis(MaskModule):
    """Explains items (an image and a target class) in batches.

    Args:
        network: a classifier of normalized images, which is not changed; the name of a timm model; or the packaged
            ``packaged_efficientnet_lite0``, the default if the demo's packages are installed, otherwise ``resnet50``.
        classifier: weights, class names and preprocessing of the network.
        defense: kind and places of the gates.
        defended: whether the gradient is gated; without gates, masks become adversarial patterns.
        task: meaning of the network's outputs: ``multiclass``, ``multilabel`` or ``binary``, see `from_options`.
        outputs: whether the network returns ``logits`` or ``probabilities``; detected by default.
        threshold: probability above which a label is ``predicted`` in a multilabel task.
        game: the game to play, see `fgvis_lightning.method.games`.
        lam: weight λ ≥ 0 of the mask's size; ``auto`` finds the smallest evidence that reaches ``level`` for each
            image, see `fgvis_lightning.method.solvers`.
        level: for ``lam: auto``, the score to reach as a share of the image's own score: a minimum for preservation
            and generation (default: 1.0), a maximum for deletion and repression (default: 0.1).
        iterations: maximum number of optimizer steps for each image; default: 200 for ``lam: auto``, 500 for a fixed λ.
            Each step takes ``seeds`` passes until a solver has joined the runs, then one: about 360 by default.
        seeds: number of runs for each image, which are averaged; default: 6 for ``lam: auto``, 1 for a fixed λ.
        patience: number of iterations without progress after which an image is finished early; 0 for never, as with
            several ``seeds``.
        tolerance: smallest progress: for ``lam: auto``, the share by which the evidence shrinks (default: 0.02); for a
            fixed λ, the amount by which the loss decreases (default: 0.001).
        score: ``probability`` or ``log_probability`` of the target class; matters only for a fixed λ.
        reference: what the mask shows where it is 0: ``zero``, ``blurred``, ``noise`` or ``black``.
        noise: standard deviation of the Gaussian noise added to e in each iteration, in normalized space; default: 0.3
            in the deletion game with a fixed λ, where it made maps of photos more faithful, otherwise 0.
        seed: seed of the noise, and of the perturbations of the first run; the other runs use the following seeds.
        optimizer: optimizer of the masks. For ``lam: auto``, a solver (default: `Pruning` for games that keep the
            class, `Thresholding` for games that lose it); for a fixed λ, any torch optimizer (default: `sgd`).
    """

    def __init__(
        self,
        network: nn.Module | str = DEFAULT,
        *,
        classifier: ClassifierOptions = ClassifierOptions(),  # noqa: B008, it is frozen
        defense: DefenseOptions = DefenseOptions(),  # noqa: B008
        defended: bool = True,
        task: Literal["multiclass", "multilabel", "binary"] = "multiclass",
        outputs: Literal["logits", "probabilities"] | None = None,
        threshold: float = 0.5,
        game: Literal["preservation", "deletion", "generation", "repression"] = "preservation",
        lam: float | Literal["auto"] = "auto",
        level: float | None = None,
        iterations: int | None = None,
        seeds: int | None = None,
        patience: int = PATIENCE,
        tolerance: float | None = None,
        score: Literal["probability", "log_probability"] = "log_probability",
        reference: Literal["zero", "blurred", "noise", "black"] = "zero",
        noise: float | None = None,
        seed: int = 0,
        optimizer: Callable[[Iterable[Any]], Optimizer] | None = None,
    ) -> None:
        options = choose(
            game, lam, level, iterations, seeds, defense.gate, patience, tolerance, score, reference, noise, optimizer
        )
        super().__init__(from_options(network, classifier, task, outputs, threshold))
        self.network = defend(self.classifier, defense, options.gate)
        self.options = options
        self.game = options.game
        self.iterations = options.iterations
        self.rows_per_item = options.seeds
        self.defended = defended
        self.fold, self.seed = defense.fold, within("seed", seed, 0, 2**62)
        self.mask = nn.Parameter(torch.empty(0))
        self.coverage = self.network.coverage
        self._warned = False

    @classmethod
    def of(cls, network: Any, **options: Any) -> Self:
        """Make a module from a flat set of options, including those of ``classifier`` and ``defense``.

        Raises:
            InputError: if an option does not exist.
        """
        kinds = [kind for kind in cls.__mro__ if issubclass(kind, FGVis)]  # a subclass may pass options on as **options
        known = {name for kind in kinds for name in signature(kind).parameters} - {"network"}
        groups: dict[str, Any] = {"classifier": ClassifierOptions(), "defense": DefenseOptions()}
        for group, default in groups.items():
            names = {field.name for field in fields(default)}
            given = {name: options.pop(name) for name in names & options.keys()}
            options[group] = replace(options.get(group, default), **given)
            known |= names
        for name in options.keys() - known:
            raise InputError(f"Expected options of FGVis, but got {name}.{nearest(name, known)}")
        return cls(network, **options)

    # --- Lightning's hooks, in the order in which they run ---

    def setup(self, stage: str) -> None:
        check_steps(self.trainer, learning_rate=not self.options.auto)
        super().setup(stage)

    def configure_optimizers(self) -> Optimizer:
        image = self.sweep.peek()
        if image is not None:
            size = self.sweep.size
            size = self._divide(self._most_rows(image)) if size == "auto" else size
            self._make_mask(self.normalize(image.expand(size, *image.shape)))
        self.sweep.steps = self.iterations
        return self._make_optimizer()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch is not self.batch:
            self.batch = batch
            self._begin(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        rows, options = self.rows, self.options
        if options.auto and rows.all_used and options.seeds > 1 and self.solver.finishing:
            self._narrow()
        clean = rows.explained(self.mask)
        with nullcontext() if self.defended else self.network.undefended():
            self._logits, score = self.scored(rows.disturbed(clean, options.noise))
        self.log_latest()
        if options.auto:
            # The gradient may be noisy, but masks are evaluated without noise.
            self._lead = rows.lead(self.game, self.plain_rows(clean) if options.noise else self._logits)
        loss = self.game.loss(score, rows.used(self.mask), options.lam)
        self._loss = loss.detach()
        return loss.sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Pass the masks' leads to a solver; for other optimizers, divide each mask's gradient by its largest value."""
        assert self.mask.grad is not None
        if isinstance(optimizer, Solver):
            optimizer.tell(self._lead)
        else:
            divide_by_largest(self.mask.grad)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        with torch.no_grad():
            self.mask.clamp_(0, 1)
        batch.iterations += 1
        self.confirm(batch)
        if places := self._finished(batch):
            self.hand_out(places, self.explanation(places))
            batch.finish(places)

    # --- a batch begins ---

    def _make_mask(self, x: Tensor) -> None:
        """Make a mask row for each run of the images (B,3,H,W), in their memory format, which mask * x keeps."""
        self.rows = self._rows(x)
        self.mask = nn.Parameter(torch.full_like(self.rows.x, self.options.start))

    def _make_optimizer(self) -> Optimizer:
        own = {"runs": self.options.seeds, "keeps": self.game.keeps, "iterations": self.iterations, "seed": self.seed}
        return self.options.optimizer([{"params": [self.mask], **own}])

    def _rows(self, x: Tensor) -> Rows:
        black = self.normalize(torch.zeros_like(x[0]))
        own = self.options.seeds, self.options.reference
        return Rows(x, *own, black, self.seed, self.classifier.task, self.sweep.together)

    def _begin(self, batch: Batch) -> None:
        """Prepare masks, targets, references and reference activations of a new batch."""
        self._logits = None  # the old rows are not valid any more, and a signal may ask for them
        options, rows = self.options, self._rows(self.normalize(batch.images))
        self.rows = rows
        logits = self.first_pass(rows.part(rows.x), options.seeds)
        targets = resolve(batch.targets.to(rows.x.device), logits, self.classifier)
        rows.aim(targets, logits, options.level if options.auto else None)
        self._plateau = Plateau(len(batch.images), options.patience, options.tolerance, relative=options.auto)
        with torch.no_grad():
            self.mask.fill_(options.start)
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        optimizer.state.clear()
        optimizer.state.update(self._make_optimizer().state)  # initial state, if any
        recorded = self._record()
        if self.rough:
            rows.calibrate(recorded)

    def _record(self) -> Tensor:
        """Record a batch's reference activations, and return the logits of the rows of a pass."""
        with self.trainer.precision_plugin.forward_context():
            logits = self.network.record(self.rows.part(self.rows.x))
            if self.defended:
                self.network.verify(self.rows.part(self.rows.explained(torch.ones_like(self.mask))))
        self.coverage = self.network.coverage
        if self.defended and self.coverage.gate_free and not self._warned:
            self._warned = True
            warnings.warn(f"{self.classifier.name}: {GATE_FREE}", stacklevel=2)
        return logits

    def _narrow(self) -> None:
        """Continue with only the first run of each image, now that the solver has joined the runs."""
        self._logits = None
        self.rows.all_used = False
        with self.trainer.precision_plugin.forward_context():
            self.network.record(self.rows.used(self.rows.x))

    def _divide(self, rows: int) -> int:
        """Let at most so many rows pass through the network together, and return the number of items in a batch."""
        size, self.sweep.together = divided(rows, self.options.seeds)
        self.sweep.size = size
        return size

    def _most_rows(self, image: Tensor) -> int:
        """The largest number of rows of images like this one (3,H,W) that pass through the network together."""
        local, runs = getattr(self.trainer.strategy, "num_processes", 1), self.options.seeds
        return largest_batch_size(
            lambda rows: self._rehearse(image.expand(self._divide(rows), *image.shape)),
            self.sweep.largest * runs,
            (self.sweep.first_try or 0) * runs or 1,
            FreeMemory(local) if self.device.type == "cpu" else None,
        )

    def _rehearse(self, images: Tensor) -> None:
        """Perform every step that takes memory once, for a batch of images (B,3,H,W)."""
        self._make_mask(self.normalize(images))
        self.first_pass(self.rows.part(self.rows.x))
        self._record()
        with (
            nullcontext() if self.defended else self.network.undefended(),
            self.trainer.precision_plugin.forward_context(),
        ):
            self.network(self.rows.part(self.rows.explained(self.mask))).logsumexp(1).sum().backward()
        if self.options.auto:  # a solver's state for each row
            del [torch.zeros_like(self.rows.x) for _ in range(4)][:]
        self.coverage_at(self.rows.first(self.mask.detach()))
        self.mask.grad = None

    # --- results ---

    def _finished(self, batch: Batch) -> list[int]:
        """The places whose items have completed all iterations or have converged."""
        if batch.iterations >= self.iterations:
            return list(batch.used)
        if not self._plateau.is_due(batch.iterations):
            return []
        return [
            place for place in batch.used if self._plateau.converged(place, batch.iterations, self._objective(place))
        ]

    def _objective(self, place: int) -> float:
        """The minimized value: the size of the evidence that reaches the level, or the game's loss."""
        if not self.options.auto:
            return float(self._loss.unflatten(0, (-1, self.options.seeds))[place].mean())
        run = self.solver.found(place)
        return run.size if run is not None and run.reached >= 0 else float("inf")

    def settings(self) -> dict[str, Any]:
        return {
            **self.input_settings(),
            **self.options.described(),
            "defended": self.defended,
            **self.network.selection.listed,
            "output": self.network.output,
            "fold": self.fold,
            "seed": self.seed,
        }
