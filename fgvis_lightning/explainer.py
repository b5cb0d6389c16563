"""FGVis: a LightningModule whose only parameter is the mask.

One epoch is one pass over the items; one training step is one iteration of the masks' optimizer on a batch, as
`fgvis_lightning.method` defines it. Lightning's automatic optimization drives it:

1. ``training_step``: ``e = blend(x, mask)``, the network's logits with gates in their backward pass, the game's loss;
2. ``on_before_optimizer_step``: a solver is told how far each mask reaches beyond its level; for any other optimizer
   the gradient of each mask is divided by its largest value (Wagner et al., CVPR 2019, supplement A);
3. ``optimizer.step``: the masks that are tried next;
4. ``on_train_batch_end``: masks are projected back to [0,1], and finished items go to every `ExplanationCallback`.

The mask has a row for each of the ``seeds`` runs of each item. Items of a batch do not notice one another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fgvis_lightning.data.batches import Batch
from fgvis_lightning.defense.container import DefendedCNN
from fgvis_lightning.defense.coverage import GATE_FREE, Coverage
from fgvis_lightning.defense.nonlinearities import resolve as resolve_names
from fgvis_lightning.defense.options import DefenseOptions
from fgvis_lightning.engine.batch_size import FreeMemory, largest_batch_size
from fgvis_lightning.engine.rows import Rows
from fgvis_lightning.engine.strategy import check_strategy
from fgvis_lightning.engine.sweep_module import SweepModule
from fgvis_lightning.method.convergence import EVERY, Plateau
from fgvis_lightning.method.games import blend, gaussian, probability
from fgvis_lightning.method.level import bound, lead
from fgvis_lightning.method.options import choose
from fgvis_lightning.method.solver import Solver
from fgvis_lightning.method.storage import give_back
from fgvis_lightning.networks.folding import folded
from fgvis_lightning.networks.load import DEFAULT, ClassifierOptions, load_classifier
from fgvis_lightning.networks.logits import resolve
from fgvis_lightning.results.store import Explanation, rounded


class FGVis(SweepModule):
    """Explains a batch of (image, target class) items at a time.

    Args:
        network: a classifier of normalized images, left as it is; the name of a timm model; or a
            packaged network, ``packaged_efficientnet_lite0``, the default where the demo's packages are installed; else
            the default is timm's ``resnet50``, whose weights are downloaded once.
        classifier: what there is to say about it.
        defense: likewise about the gates.
        defended: whether the gradient is gated; without, masks find adversarial patterns.
        game: what is looked for, see `fgvis_lightning.method.games`.
        lam: weight λ ≥ 0 of the mask's size; ``auto`` finds for each image the smallest evidence that
            reaches ``level``, see `fgvis_lightning.method.solvers`.
        level: for ``lam: auto``, the score to reach as a share of the image's own: at least, for
            preservation and generation (1.0 unless given); at most, for deletion and repression (0.1).
        iterations: steps of the optimizer for each image, at most; unless given, 200 for ``lam: auto`` and the
            literature's 500 for a fixed λ. Each passes the image through the network ``seeds`` times, until a solver
            has joined the runs, and once from then on: about 360 times by default.
        seeds: runs of each image, in one batch, with small disturbances of their own, whose mean the explanation is;
            unless given, 6 for ``lam: auto`` and 1 for a fixed λ. 1 is for speed.
        patience: an image is finished earlier when this many iterations have brought no progress, see
            `fgvis_lightning.method.convergence`; 0 for all iterations in any case, as with several ``seeds``.
        tolerance: what is progress: for ``lam: auto`` evidence that is smaller by this share (0.02 unless given), for
            a fixed λ a loss that is lower by this much, in units of the score (0.001).
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
        game: Literal["preservation", "deletion", "generation", "repression"] = "deletion",
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
        super().__init__(load_classifier(network, **vars(classifier)))
        frozen, exempt, gated = self.classifier.network, defense.exempt or (), defense.gated or ()
        if defense.fold:
            listed = (*resolve_names(exempt, "exempt")[1], *resolve_names(gated, "gated")[1])
            frozen, _ = folded(frozen, self.classifier.preprocessing.size, keep=listed)
        self.network = DefendedCNN(frozen, gate=options.gate, exempt=exempt, gated=gated, fused=defense.fused).eval()
        self.options = options
        self.game = options.game
        self.iterations = options.iterations
        self.rows_per_item = options.seeds
        self.defended = defended
        self.fold = defense.fold
        self.output = classifier.output
        self.seed = seed
        self.rows = Rows(options.seeds)
        self.mask = nn.Parameter(torch.empty(0))
        self.coverage = self.network.coverage
        self._logits: Tensor | None = None
        self._warned = False

    @classmethod
    def of(cls, network: nn.Module | str, **options: Any) -> FGVis:
        """The same, with the options of ``classifier`` and ``defense`` beside the others."""
        groups: dict[str, Any] = {"classifier": ClassifierOptions, "defense": DefenseOptions}
        for group, kind in groups.items():
            names = [field.name for field in fields(kind) if field.name in options]
            options[group] = kind(**{name: options.pop(name) for name in names})
        return cls(network, **options)

    # --- Lightning's hooks, in the order in which they run ---

    def setup(self, stage: str) -> None:
        check_strategy(self.trainer.strategy, self.trainer.world_size)
        self.network.to(memory_format=torch.channels_last)

    def configure_optimizers(self) -> Optimizer:
        image = self.sweep.peek()
        if image is not None:
            if self.sweep.size == "auto":
                self.sweep.size = self._largest_batch_size(image)
            self._make_mask(self.normalize(image.expand(self.sweep.size, *image.shape)))
        self.sweep.steps = self.iterations
        return self._make_optimizer()

    def on_train_start(self) -> None:
        self._counting = self.cost.of(self.network.network)
        self._counting.__enter__()

    def on_train_end(self) -> None:
        self._counting.__exit__(None, None, None)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch is not self.batch:
            self.batch = batch
            self._begin(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.options.auto and self.options.seeds > 1:
            self._narrow()
        used = self.rows.used
        mask, targets = used(self.mask), used(self._targets)
        clean = blend(used(self._x), mask, used(self._reference))
        e = (
            clean + self.options.noise * gaussian(clean, self._generators[self.rows.in_use])
            if self.options.noise
            else clean
        )
        with nullcontext() if self.defended else self.network.undefended():
            logits = self.network(e)
        self._logits = logits.detach()
        self._log()
        if self.options.auto:
            # The gradient may be a noisy one; what a mask is worth is not.
            judged = self.plain(clean) if self.options.noise else self._logits
            self._lead = lead(self.game, judged, targets, self.rows.used(self._bound))
        loss = self.game.loss(self.options.score(logits, targets), mask, self.options.lam)
        self._loss = loss.detach()
        return loss.sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Tell a solver of the masks' leads; for others divide the gradient of each mask by its largest value."""
        assert self.mask.grad is not None
        if isinstance(optimizer, Solver):
            optimizer.tell(self._lead)
        else:
            largest = self.mask.grad.abs().amax((1, 2, 3), keepdim=True)
            self.mask.grad /= torch.where(largest > 0, largest, 1)

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
        """A row for each run of normalized images (B,3,H,W), in their memory format.

        mask * x takes the mask's format, and another one rounds differently.
        """
        self.mask = nn.Parameter(torch.full_like(self.rows.spread(x), self.options.start))

    def _make_optimizer(self) -> Optimizer:
        own = {"runs": self.options.seeds, "keeps": self.game.keeps, "iterations": self.iterations, "seed": self.seed}
        return self.options.optimizer([{"params": [self.mask], **own}])

    def _begin(self, batch: Batch) -> None:
        """Masks, targets, references and reference activations of a new batch."""
        self._allocate(self.normalize(batch.images))
        logits = self.first_pass(self._x, self.options.seeds)
        self.targets = resolve(batch.targets.to(self._x.device), logits, self.classifier)
        self._targets, logits = self.rows.spread(self.targets), self.rows.spread(logits)
        self._score_image = probability(logits, self._targets)
        if self.options.auto:
            self._bound = bound(self.options.level, logits, self._targets).to(self._x)
        self._plateau = Plateau(
            len(batch.items), self.options.patience, self.options.tolerance, relative=self.options.auto
        )
        with torch.no_grad():
            self.mask.fill_(self.options.start)
        optimizer = self._optimizer
        optimizer.state.clear()
        optimizer.state.update(self._make_optimizer().state)  # what an optimizer starts from, where that is something
        self._record()

    def _allocate(self, x: Tensor) -> None:
        """What has a row for each run, of normalized images (B,3,H,W)."""
        self.rows.use_all()
        self._x = self.rows.spread(x)
        # Each run has its own stream, so that it does not depend on the others.
        self._generators = [torch.Generator(self._x.device).manual_seed(self.seed) for _ in self._x]
        black = self.normalize(torch.zeros(3, 1, 1))
        drawn = [
            self.options.reference(self._x[row : row + 1], black, generator)
            for row, generator in enumerate(self._generators)
        ]
        self._reference = None
        if (known := [one for one in drawn if one is not None]) and len(known) == len(drawn):
            self._reference = torch.cat(known).contiguous(memory_format=torch.channels_last)
        for row, generator in enumerate(self._generators):
            generator.manual_seed(self.seed + row % self.options.seeds)

    def _record(self) -> None:
        """The reference pass on the images of a batch."""
        with self.trainer.precision_plugin.forward_context():
            self.network.record(self._x)
            if self.defended:
                self.network.verify(blend(self._x, torch.ones_like(self.mask), self._reference))
        self.coverage = self.network.coverage
        if self.defended and self.coverage.gate_free and not self._warned:
            self._warned = True
            warnings.warn(f"{self.classifier.name}: {GATE_FREE}", stacklevel=2)

    def _narrow(self) -> None:
        """Go on with the first run of each image where a solver has joined them."""
        if self.rows.all_used and self._solver.finishing:
            self.rows.use_first()
            with self.trainer.precision_plugin.forward_context():
                self.network.record(self.rows.used(self._x))

    # --- as many images as fit ---

    def _largest_batch_size(self, image: Tensor) -> int:
        local = getattr(self.trainer.strategy, "num_processes", 1)
        return largest_batch_size(
            lambda size: self._rehearse(image.expand(size, *image.shape)),
            self.sweep.largest,
            self.sweep.first_try or 1,
            FreeMemory(local) if self.device.type == "cpu" else None,
        )

    def _rehearse(self, images: Tensor) -> None:
        """All that takes memory, once, for a batch of images (B,3,H,W)."""
        self._allocate(self.normalize(images))
        self._make_mask(self._x[self.rows.first])
        self.first_pass(self._x)
        self._record()
        with (
            nullcontext() if self.defended else self.network.undefended(),
            self.trainer.precision_plugin.forward_context(),
        ):
            self.network(blend(self._x, self.mask, self._reference)).logsumexp(1).sum().backward()
        if self.options.auto:  # what a solver remembers of each row
            self._rehearsed = [torch.zeros_like(self._x) for _ in range(4)]
            del self._rehearsed
        self._final_coverage(self.mask.detach()[self.rows.first])
        self.mask.grad = None

    # --- what has been found ---

    @property
    def _optimizer(self) -> Any:
        (optimizer,) = self.trainer.optimizers
        return optimizer

    @property
    def _solver(self) -> Solver:
        solver: Solver = self._optimizer
        return solver

    def _best(self) -> Tensor:
        """The best masks of the places so far (B,3,H,W)."""
        runs = [self._solver.found(place) for place in range(len(self.targets))]
        starts = self.mask.detach()[self.rows.first]
        found = [
            start if run is None else self.game.evidence(run.best) for run, start in zip(runs, starts, strict=True)
        ]
        return torch.stack(found).contiguous(memory_format=torch.channels_last)

    def _judge(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B,K) by the plain network, and leads (B,), of masks (B,3,H,W)."""
        logits = self._score_mask(mask)
        return logits, lead(self.game, logits, self.targets, self._bound[self.rows.first])

    def _confirm(self, batch: Batch) -> None:
        """Under mixed precision, judge the best evidence by the network's own precision now and then."""
        # Where noise is, masks are judged so anyway.
        if "mixed" in str(self.trainer.precision) and not self.options.noise and batch.iterations % EVERY == 0:
            leads = self._judge(self._best())[1].tolist()
            for place in batch.used:
                self._solver.confirm(place, leads[place])

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
        """What is to become smaller: the evidence that reaches the level, or the game's loss."""
        if not self.options.auto:
            return float(self._loss.unflatten(0, (-1, self.options.seeds))[place].mean())
        run = self._solver.found(place)
        return run.size if run is not None and run.reached >= 0 else float("inf")

    def plain(self, x: Tensor) -> Tensor:
        with self.network.undefended():
            return super().plain(x)

    @torch.no_grad()
    def explanation(self, places: Sequence[int]) -> Explanation:
        """The explanations in these places as they are now, on the CPU: masks rounded to the files' type.

        Their scores come from plain passes of the network over e made from the rounded masks.
        """
        self.cost.images += len(places)
        at, more = torch.tensor(places, device=self._x.device), dict[str, Any]()
        if self.options.auto:
            mask, logits, leads = give_back(self._best(), self.game, self._judge)
            more = self._known(places, leads)
        else:
            mask = rounded(self.masks, self.game)
            logits = self._score_mask(mask)
        self.coverage = self._final_coverage(mask)
        closed = self.coverage.closed
        self.coverage = replace(self.coverage, closed=None if closed is None else closed[at].cpu())
        assert self.batch is not None
        return Explanation(
            mask=mask[at].float().contiguous().cpu(),
            targets=self.targets[at].cpu(),
            score_image=self._score_image[self.rows.first][at].float().cpu(),
            score_explanation=probability(logits, self.targets)[at].float().cpu(),
            game=self.game,
            seeds=self.options.seeds,
            **more,
            coverage=self.coverage,
            iterations=torch.full((len(places),), self.batch.iterations),
        )

    def _known(self, places: Sequence[int], leads: Tensor) -> dict[str, Any]:
        """What a solver knows beside the masks, for the places: fields of an `Explanation`."""
        runs = [self._solver.found(place) for place in places]
        known: dict[str, Any] = {
            "feasible": (leads[list(places)] >= 0).cpu(),
            "reached": torch.tensor([-1 if run is None else run.reached for run in runs]),
            "ranking": torch.stack([self._solver.ranking(place).mean(0).float().cpu() for place in places]),
        }
        if self.options.seeds > 1:
            known["agreement"] = torch.tensor([self._solver.agreement(place) for place in places])
        return known

    def _final_coverage(self, mask: Tensor) -> Coverage:
        """Coverage with the share of closed gates at the masks (B,3,H,W)."""
        used = self.rows.used
        e = blend(used(self._x), used(self.rows.spread(mask)), used(self._reference))
        if not self.defended:
            with self.network.undefended(), torch.no_grad():
                self.network(e)
            return self.network.coverage
        with self.trainer.precision_plugin.forward_context():
            closed = self.network.closed(e)
        return replace(self.network.coverage, closed=closed[self.rows.first] if self.rows.all_used else closed)

    def _score_mask(self, mask: Tensor) -> Tensor:
        """The plain network's logits (B,K) for masks (B,3,H,W), in a batch of all rows: rounding depends on that."""
        return self.plain(blend(self._x, self.rows.spread(mask), self._reference))[self.rows.first]

    @property
    def masks(self) -> Tensor:
        """The masks of the places (B,3,H,W) as they are now, each the mean of its rows."""
        return self.mask.detach().unflatten(0, (-1, self.options.seeds)).mean(1)

    def latest_each(self) -> tuple[Tensor, Tensor] | None:
        """Score and sparsity of each place (B,), at the latest iteration; before the first one, None."""
        if self._logits is None:
            return None
        with torch.no_grad():
            mask, targets = self.rows.used(self.mask), self.rows.used(self._targets)
            each = probability(self._logits, targets), 1 - self.game.size(mask)
            score, sparsity = (values.unflatten(0, (len(self.targets), -1)).mean(1) for values in each)
            return score, sparsity

    @property
    def latest(self) -> tuple[Tensor, Tensor] | None:
        """Mean score and sparsity of the items in work, likewise."""
        if self.batch is None or (latest := self.latest_each()) is None:
            return None
        used = self.batch.used
        score, sparsity = (each if len(used) == len(each) else each[used] for each in latest)
        return score.mean(), sparsity.mean()

    def _log(self) -> None:
        """Means over the items in work, to the loggers, when they are due: otherwise it would cost 1 % and more."""
        trainer: Any = self.trainer  # whose class does not declare the attribute
        every = trainer.log_every_n_steps
        if every and (trainer.global_step + 1) % every == 0 and (latest := self.latest) is not None:
            assert self.batch is not None
            for name, value in zip(("score", "sparsity"), latest, strict=True):
                self.log(name, value, batch_size=len(self.batch.used))

    def settings(self) -> dict[str, Any]:
        options = self.options
        optimizer = options.optimizer([nn.Parameter(torch.zeros(1))])
        rule = {key: value for key, value in sorted(optimizer.defaults.items()) if value is not None}
        preprocessing = asdict(self.classifier.preprocessing)
        del preprocessing["source"]
        return {
            "network": self.classifier.name,
            **preprocessing,
            "game": self.game.name,
            "lam": "auto" if options.auto else options.lam,
            **({"level": options.level} if options.auto else {}),
            "iterations": self.iterations,
            "seeds": options.seeds,
            "gate": self.network.gate,
            "patience": options.patience,
            **({"tolerance": options.tolerance} if options.patience else {}),
            "defended": self.defended,
            "exempt": self.network.listed["exempt"],
            "gated": self.network.listed["gated"],
            "output": self.output,
            "fold": self.fold,
            "score": options.score.__name__,
            "reference": options.reference.__name__,
            "noise": options.noise,
            "seed": self.seed,
            "optimizer": f"{type(optimizer).__name__} {rule}",
            "precision": str(self.trainer.precision),
        }
