"""FGVis: a LightningModule whose only parameter is the mask.

One epoch is one pass over the items; one training step is one iteration of the masks' optimizer on a batch, as
`fgvis_lightning.method` defines it, under Lightning's automatic optimization:

1. ``training_step``: ``e = blend(x, mask)``, the network's logits with gates in their backward pass, the game's loss;
2. ``on_before_optimizer_step``: a solver is told how far each mask reaches beyond its level; for any other optimizer
   the gradient of each mask is divided by its largest value (Wagner et al., CVPR 2019, supplement A);
3. ``optimizer.step``: the masks that are tried next;
4. ``on_train_batch_end``: masks are projected back to [0,1], and finished items go to every `ExplanationCallback`.

The mask has a row for each of the ``seeds`` runs of each item. Items of a batch do not notice one another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import fields, replace
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fgvis_lightning.data.batches import Batch
from fgvis_lightning.defense.coverage import GATE_FREE
from fgvis_lightning.defense.options import DefenseOptions, defend
from fgvis_lightning.engine.batch_size import FreeMemory, largest_batch_size
from fgvis_lightning.engine.mask_module import MaskModule
from fgvis_lightning.engine.strategy import check_strategy
from fgvis_lightning.engine.work import Work
from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.method.convergence import EVERY, Plateau
from fgvis_lightning.method.games import divide_by_largest
from fgvis_lightning.method.options import choose, within
from fgvis_lightning.method.solver import Solver
from fgvis_lightning.networks.load import ClassifierOptions, from_options
from fgvis_lightning.networks.logits import resolve
from fgvis_lightning.networks.zoo import DEFAULT


class FGVis(MaskModule):
    """Explains a batch of (image, target class) items at a time.

    Args:
        network: a classifier of normalized images, left as it is; the name of a timm model; or a packaged network,
            ``packaged_efficientnet_lite0``, the default where the demo's packages are installed, else ``resnet50``.
        classifier: weights, class names and preprocessing of the network.
        defense: which gates the network gets, and where.
        defended: whether the gradient is gated; without, masks find adversarial patterns.
        task: what the network's outputs say: ``multiclass``, ``multilabel`` or ``binary``, see `load_classifier`.
        outputs: whether they are ``logits`` or ``probabilities``; unless given, found out.
        threshold: probability above which a label is ``predicted``, in a multilabel task.
        game: what is looked for, see `fgvis_lightning.method.games`.
        lam: weight λ ≥ 0 of the mask's size; ``auto`` finds for each image the smallest evidence that reaches
            ``level``, see `fgvis_lightning.method.solvers`.
        level: for ``lam: auto``, the score to reach as a share of the image's own: at least, for
            preservation and generation (1.0 unless given); at most, for deletion and repression (0.1).
        iterations: steps of the optimizer for each image, at most: 200 for ``lam: auto``, 500 for a fixed λ unless
            given. Each is ``seeds`` passes, until a solver has joined the runs, then one: about 360 by default.
        seeds: runs of each image whose mean the explanation is: 6 for ``lam: auto`` and 1 for a fixed λ unless given.
        patience: an image is finished earlier when this many iterations have brought no progress; 0 for all iterations
            in any case, as with several ``seeds``.
        tolerance: what is progress: for ``lam: auto`` evidence that is smaller by this share (0.02 unless given), for a
            fixed λ a loss that is lower by this much (0.001).
        score: ``probability`` or ``log_probability`` of the target class, which matters for a fixed λ alone.
        reference: what the mask uncovers where it is 0: ``zero``, ``blurred``, ``noise`` or ``black``.
        noise: standard deviation of the Gaussian noise added to e in each iteration, in normalized space; unless given,
            0.3 in the deletion game with a fixed λ, whose maps are the most faithful then, and 0 otherwise.
        seed: of the noise, and of the disturbances of the first of the ``seeds``; the others count on from it.
        optimizer: of the masks: a solver for ``lam: auto``, `Pruning` where the class stays and `Thresholding` where it
            goes unless given; for a fixed λ any of torch's, the literature's `sgd` unless given.
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
        patience: int = 100,
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
        self._logits: Tensor | None = None
        self._warned = False

    @classmethod
    def of(cls, network: Any, **options: Any) -> FGVis:
        """Make a module from options of ``classifier`` and ``defense`` side by side with the others.

        Raises:
            InputError: if there is no such option.
        """
        known = signature(cls).parameters.keys() - {"network"}
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
        check_strategy(self.trainer.strategy, self.trainer.world_size)
        if len(self.classifier.preprocessing.size) == 2:
            self.network.to(memory_format=torch.channels_last)

    def configure_optimizers(self) -> Optimizer:
        image = self.sweep.peek()
        if image is not None:
            if self.sweep.size == "auto":
                self.sweep.size = self._largest_batch_size(image)
            self._make_mask(self.normalize(image.expand(self.sweep.size, *image.shape)))
        self.sweep.steps = self.iterations
        return self._make_optimizer()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch is not self.batch:
            self.batch = batch
            self._begin(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        work, options = self.work, self.options
        if options.auto and work.all_used and options.seeds > 1 and self.solver.finishing:
            self._narrow()
        clean = work.explained(self.mask)
        with nullcontext() if self.defended else self.network.undefended():
            logits = self.network(work.disturbed(clean, options.noise))
        self._logits = logits.detach()
        self.log_latest()
        if options.auto:
            # The gradient may be a noisy one; what a mask is worth is not.
            self._lead = work.lead(self.game, self.plain(clean) if options.noise else self._logits)
        score = self.classifier.task.score(options.score)(logits, work.used_targets)
        loss = self.game.loss(score, work.used(self.mask), options.lam)
        self._loss = loss.detach()
        return loss.sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Tell a solver of the masks' leads; for others divide the gradient of each mask by its largest value."""
        assert self.mask.grad is not None
        if isinstance(optimizer, Solver):
            optimizer.tell(self._lead)
        else:
            divide_by_largest(self.mask.grad)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        with torch.no_grad():
            self.mask.clamp_(0, 1)
        batch.iterations += 1
        if self.options.auto:
            self._confirm(batch)
        if places := self._finished(batch):
            self.hand_out(places, self.explanation(places))
            batch.finish(places)

    # --- a batch begins ---

    def _make_mask(self, x: Tensor) -> None:
        """A row for each run of normalized images (B,3,H,W), in their memory format: mask * x takes the mask's."""
        self.work = self._work(x)
        self.mask = nn.Parameter(torch.full_like(self.work.x, self.options.start))

    def _make_optimizer(self) -> Optimizer:
        own = {"runs": self.options.seeds, "keeps": self.game.keeps, "iterations": self.iterations, "seed": self.seed}
        return self.options.optimizer([{"params": [self.mask], **own}])

    def _work(self, x: Tensor) -> Work:
        black = self.normalize(torch.zeros_like(x[0]))
        return Work(x, self.options.seeds, self.options.reference, black, self.seed, self.classifier.task)

    def _begin(self, batch: Batch) -> None:
        """Masks, targets, references and reference activations of a new batch."""
        self._logits = None  # of other rows than those from now on; a signal may ask in the middle
        options, work = self.options, self._work(self.normalize(batch.images))
        self.work = work
        logits = self.first_pass(work.x, options.seeds)
        targets = resolve(batch.targets.to(work.x.device), logits, self.classifier)
        work.aim(targets, logits, options.level if options.auto else None)
        self._plateau = Plateau(len(batch.items), options.patience, options.tolerance, relative=options.auto)
        with torch.no_grad():
            self.mask.fill_(options.start)
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        optimizer.state.clear()
        optimizer.state.update(self._make_optimizer().state)  # what an optimizer starts from, where that is something
        self._record()

    def _record(self) -> None:
        """The reference pass on the images of a batch."""
        with self.trainer.precision_plugin.forward_context():
            self.network.record(self.work.x)
            if self.defended:
                self.network.verify(self.work.explained(torch.ones_like(self.mask)))
        self.coverage = self.network.coverage
        if self.defended and self.coverage.gate_free and not self._warned:
            self._warned = True
            warnings.warn(f"{self.classifier.name}: {GATE_FREE}", stacklevel=2)

    def _narrow(self) -> None:
        """Go on with the first run of each image, now that the solver has joined them."""
        self._logits = None
        self.work.use_first()
        with self.trainer.precision_plugin.forward_context():
            self.network.record(self.work.used(self.work.x))

    def _largest_batch_size(self, image: Tensor) -> int:
        local = getattr(self.trainer.strategy, "num_processes", 1)
        return largest_batch_size(
            lambda size: self._rehearse(image.expand(size, *image.shape)),
            self.sweep.largest,
            self.sweep.first_try or 1,
            FreeMemory(local) if self.device.type == "cpu" else None,
        )

    def _rehearse(self, images: Tensor) -> None:
        """Do everything that takes memory once, for a batch of images (B,3,H,W)."""
        self._make_mask(self.normalize(images))
        self.first_pass(self.work.x)
        self._record()
        with (
            nullcontext() if self.defended else self.network.undefended(),
            self.trainer.precision_plugin.forward_context(),
        ):
            self.network(self.work.explained(self.mask)).logsumexp(1).sum().backward()
        if self.options.auto:  # what a solver remembers of each row
            del [torch.zeros_like(self.work.x) for _ in range(4)][:]
        self.coverage_at(self.work.first(self.mask.detach()))
        self.mask.grad = None

    # --- what has been found ---

    def _confirm(self, batch: Batch) -> None:
        """Under mixed precision, judge the best evidence by the network's own precision now and then."""
        # Where noise is, masks are judged so anyway.
        if "mixed" in str(self.trainer.precision) and not self.options.noise and batch.iterations % EVERY == 0:
            leads = self.judge(self.solver.best())[1].tolist()
            for place in batch.used:
                self.solver.confirm(place, leads[place])

    def _finished(self, batch: Batch) -> list[int]:
        """The places whose item has had all its iterations, or has converged."""
        if batch.iterations >= self.iterations:
            return list(batch.used)
        if not self._plateau.is_due(batch.iterations):
            return []
        return [
            place for place in batch.used if self._plateau.converged(place, batch.iterations, self._objective(place))
        ]

    def _objective(self, place: int) -> float:
        """The value to minimize: the size of the evidence that reaches the level, or the game's loss."""
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
