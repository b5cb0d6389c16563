"""FGVis: a LightningModule whose only parameter is the mask.

One epoch is one pass over the items; one training step is one iteration of the masks' optimizer, on what
`fgvis_lightning.method` defines. Lightning's automatic optimization drives it:

1. ``training_step``: ``e = blend(x, mask)``, the network's logits with gates in their backward pass, the game's loss;
2. ``on_before_optimizer_step``: a solver is told how far each mask reaches beyond its level; for any other optimizer
   the gradient of each mask is divided by its largest value (Wagner et al., CVPR 2019, supplement A);
3. ``optimizer.step``: the masks that are tried next;
4. ``on_train_batch_end``: masks are projected back to [0,1].

Each place of the batch has an item at an iteration of its own, and a row of the mask for each of its ``seeds``. An item
that is finished goes to every `ExplanationCallback`, and its place to the next one; the others do not notice, bit for
bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fgvis_lightning.data.image_data import Batch, ImageData
from fgvis_lightning.defense.container import DefendedCNN
from fgvis_lightning.defense.coverage import GATE_FREE, Coverage
from fgvis_lightning.defense.nonlinearities import resolve as resolve_names
from fgvis_lightning.engine.batch_size import FreeMemory, largest_batch_size
from fgvis_lightning.engine.strategy import check_strategy
from fgvis_lightning.engine.sweep_module import SweepModule
from fgvis_lightning.errors import InputError
from fgvis_lightning.method.convergence import EVERY, Plateau
from fgvis_lightning.method.games import GAMES, REFERENCES, SCORES, blend, probability
from fgvis_lightning.method.gates import RULES
from fgvis_lightning.method.level import bound, lead
from fgvis_lightning.method.solver import Solver, give_back
from fgvis_lightning.method.solvers import SOLVERS
from fgvis_lightning.networks.classifier import DEFAULT, load_classifier
from fgvis_lightning.networks.folding import folded
from fgvis_lightning.networks.logits import resolve
from fgvis_lightning.results.store import Explanation, rounded

NOISE = 0.3
"""Chosen on 13 ImageNet photos by deletion and insertion AUC (``benchmarks/rules.py``)."""


NEAR_ONE = 0.99
"""Where masks start that no solver moves and no noise disturbs, in place of 1.

On the image itself all gates are open, so the first step would be an ordinary gradient's: one sign step of 3 % leaves a
photo's class 0.07 of its score (median of 13). From here, as with noise of 0.1 on the image, it leaves 0.96.
"""


def sgd(params: Iterable[nn.Parameter]) -> Optimizer:
    """The literature's optimizer: SGD with learning rate 0.1 on the normalized gradient."""
    return torch.optim.SGD(params, lr=0.1)


class FGVis(SweepModule):
    """Explains a batch of (image, target class) items at a time.

    Args:
        network: a classifier of normalized images, left as it is; the name of a timm model; or a
            packaged network, ``packaged_efficientnet_lite0``, the default where the demo's packages are installed; else
            the default is timm's ``resnet50``, whose weights are downloaded once.
        checkpoint: file with the network's weights (a ``state_dict``), read with ``weights_only=True``.
        weights: torchvision's weights entry of ``network``, for its preprocessing and class names;
            the command line fills it in from ``network``.
        mean: mean by channel that images are normalized with, where it is not to be the network's own.
        std: standard deviation by channel, where it is not to be the network's own.
        size: height and width of the network's input in pixels, where they are not to be the network's own.
        resize: length of an image's short side before the center crop, where it is not to be the network's own.
        interpolation: how images are resized, ``bilinear``, ``bicubic``, …, if not in the network's own way.
        classes: names of the classes, or a text file with one on each line, where the network does not bring its own.
        order: of the color channels that the network takes, e.g. ``BGR``; mean and std are in the order RGB anyhow.
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
        gate: ``strict``, the paper's, or ``restoring``, see `fgvis_lightning.method.gates`; unless given, restoring
            where ``lam: auto`` is to keep a class, and strict elsewhere.
        patience: an image is finished earlier when this many iterations have brought no progress, see
            `fgvis_lightning.method.convergence`; 0 for all iterations in any case, as with several ``seeds``.
        tolerance: what is progress: for ``lam: auto`` evidence that is smaller by this share (0.02 unless given), for
            a fixed λ a loss that is lower by this much, in units of the score (0.001).
        defended: whether the gradient is gated; without, masks find adversarial patterns.
        exempt: nonlinearities to leave without a gate, by the name of a function or the class of a module:
            ``sigmoid``, ``my_project.layers.LayerNorm``. What flows through them is not defended.
        gated: nonlinearities to gate beside those that always are, by the name of a function or the class of a module:
            ``abs``, ``my_project.layers.Swish``.
        output: which of the network's several outputs the logits are: a key, an attribute or an index; unless
            given, the one that is called ``logits``.
        score: ``probability`` or ``log_probability`` of the target class, which matters for a fixed λ alone.
        reference: what the mask uncovers where it is 0: ``zero``, ``blurred``, ``noise`` or ``black``.
        noise: standard deviation of the Gaussian noise added to e in each iteration, in normalized space; unless given,
            0.3 in the deletion game with a fixed λ, whose maps are the most faithful then, and 0 otherwise.
        seed: of the noise, and of the disturbances of the first of the ``seeds``; the others count on from it.
        optimizer: of the masks: a solver for ``lam: auto``, `Pruning` where the class stays and `Thresholding` where it
            goes unless given; for a fixed λ any of torch's, the literature's `sgd` unless given.
        fold: whether batch normalization is folded into the convolutions before it, see
            `fgvis_lightning.networks.folding`.
        fused: whether gates are fused with the activations that they follow, which changes no bit.
    """

    def __init__(
        self,
        network: nn.Module | str = DEFAULT,
        *,
        checkpoint: str | None = None,
        weights: str | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        size: tuple[int, ...] | None = None,
        resize: int | None = None,
        interpolation: str | None = None,
        classes: list[str] | str | None = None,
        order: str = "RGB",
        game: Literal["preservation", "deletion", "generation", "repression"] = "deletion",
        lam: float | Literal["auto"] = "auto",
        level: float | None = None,
        iterations: int | None = None,
        seeds: int | None = None,
        gate: Literal["strict", "restoring"] | None = None,
        patience: int = 100,
        tolerance: float | None = None,
        defended: bool = True,
        exempt: list[str] | None = None,
        gated: list[str] | None = None,
        output: int | str | None = None,
        score: Literal["probability", "log_probability"] = "log_probability",
        reference: Literal["zero", "blurred", "noise", "black"] = "zero",
        noise: float | None = None,
        seed: int = 0,
        optimizer: Callable[[Iterable[Any]], Optimizer] | None = None,
        fold: bool = True,
        fused: bool = True,
    ) -> None:
        for name, given, known in (
            ("game", game, GAMES),
            ("score", score, SCORES),
            ("reference", reference, REFERENCES),
        ):
            if given not in known:
                raise InputError(f"Expected {name} to be one of {', '.join(known)}, but got {given!r}.")
        if lam != "auto" and not (isinstance(lam, int | float) and 0 <= lam < float("inf")):
            raise InputError(f"Expected lam to be 'auto' or a number of at least 0, but got {lam!r}.")
        auto = lam == "auto"
        if gate is None:
            gate = "restoring" if auto and GAMES[game].keeps else "strict"
        if gate not in RULES:
            raise InputError(f"Expected gate to be one of {', '.join(RULES)}, but got {gate!r}.")
        iterations = iterations if iterations is not None else 200 if auto else 500
        seeds = seeds if seeds is not None else 6 if auto else 1
        if seeds < 1:
            raise InputError(f"Expected seeds to be at least 1, but got {seeds}.")
        if optimizer is None:
            optimizer = SOLVERS[game] if auto else sgd
        if isinstance(optimizer([nn.Parameter(torch.zeros(1))]), Solver) != auto:
            solvers = "fgvis_lightning.method.solvers.Pruning or Thresholding"
            raise InputError(
                f"Expected optimizer to be a solver for lam: auto, {solvers}, but got torch's. Give lam a number."
                if auto
                else f"Expected an optimizer of torch's for lam {lam}, but got a solver. Give lam: auto."
            )
        if iterations < 1:
            raise InputError(f"Expected iterations to be at least 1, but got {iterations}.")
        if patience < 0:
            raise InputError(f"Expected patience to be at least 0, but got {patience}.")
        if tolerance is not None and not 0 <= tolerance < 1:
            raise InputError(f"Expected tolerance to be at least 0 and less than 1, but got {tolerance}.")
        if noise is None:
            noise = NOISE if lam != "auto" and game == "deletion" else 0.0
        if not 0 <= noise < float("inf"):
            raise InputError(f"Expected noise to be a number of at least 0, but got {noise}.")
        if level is not None and not level > 0:
            raise InputError(f"Expected level to be more than 0, but got {level}.")
        super().__init__(
            load_classifier(
                network,
                checkpoint=checkpoint,
                weights=weights,
                mean=mean,
                std=std,
                size=size,
                resize=resize,
                interpolation=interpolation,
                classes=classes,
                order=order,
            )
        )
        frozen = self.classifier.network
        if fold:
            listed = (*resolve_names(exempt or (), "exempt")[1], *resolve_names(gated or (), "gated")[1])
            frozen, _ = folded(frozen, self.classifier.preprocessing.size, keep=listed)
        self.fold = fold
        self.network = DefendedCNN(
            frozen, gate=gate, exempt=exempt or (), gated=gated or (), output=output, fused=fused
        ).eval()
        self.game = GAMES[game]
        undisturbed = not auto and not noise and self.game.start == 1
        self.start = NEAR_ONE if undisturbed else self.game.start
        self.lam = lam
        self.level = level if level is not None else (1.0 if self.game.keeps else 0.1)
        self.iterations = iterations
        self.seeds = self.rows_per_item = seeds
        self.defended = defended
        # For λ = 0 both scores have gradients of one direction, but the logarithm's do not vanish where p is small.
        self.score = SCORES["log_probability" if lam == "auto" else score]
        self.reference = REFERENCES[reference]
        self.noise = noise
        self.seed = seed
        self.make_optimizer = optimizer
        self.patience = patience if seeds == 1 else 0
        self.tolerance = tolerance if tolerance is not None else 0.02 if lam == "auto" else 0.001
        self.mask = nn.Parameter(torch.empty(0))
        self.coverage = self.network.coverage
        self._bound: Tensor | None = None  # log-odds of the level of each row, for lam: auto
        self._logits: Tensor | None = None
        self._active = slice(None)  # the rows that are passed through the network
        self._warned = False

    # --- Lightning's hooks, in the order in which they run ---

    def setup(self, stage: str) -> None:
        check_strategy(self.trainer.strategy, self.trainer.world_size)
        self.network.to(memory_format=torch.channels_last)
        data = getattr(self.trainer, "datamodule", None)
        batch = data.sweep.batch if isinstance(data, ImageData) and data.sweep is not None else None
        if batch is not None and batch.size != "auto":
            image = batch.peek()
            if image is not None:
                self.mask = nn.Parameter(torch.ones(batch.size * self.seeds, *image.shape))  # for Lightning's summary

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer([self.mask])

    def on_train_start(self) -> None:
        self._counting = self.cost.of(self.network.network)
        self._counting.__enter__()

    def on_train_end(self) -> None:
        self._counting.__exit__(None, None, None)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch is not self.batch:
            self.batch = batch
            self._open(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self._bound is not None and self.seeds > 1:
            self._narrow()
        # Without a reason to slice there is none: even a view of everything would change the memory format.
        mask, targets = self._of(self.mask), self._of(self.targets)
        clean = blend(self._of(self._x), mask, None if self._reference is None else self._of(self._reference))
        e = clean
        if self.noise:
            # Each image has its own stream, so that none depends on its place or on when it got it.
            draw = torch.empty_like(e)
            for image, generator in zip(draw, self._generators[self._active], strict=True):
                image.copy_(torch.randn(image.shape, generator=generator, device=e.device, dtype=e.dtype))
            e = clean + self.noise * draw
        with nullcontext() if self.defended else self.network.undefended():
            logits = self.network(e)
        score = self.score(logits, targets)
        self._logits = logits.detach()
        self._log()
        if self._bound is not None:
            # The gradient may be a noisy one; what a mask is worth is not.
            judged = self.plain(clean) if self.noise else self._logits
            self._lead = lead(self.game, judged, targets, self._of(self._bound))
        loss = self.game.loss(score, mask, 0.0 if self.lam == "auto" else self.lam)
        self._loss = loss.detach()
        return loss.sum()

    def on_after_backward(self) -> None:
        assert self.mask.grad is not None
        for part, gradient in zip(self._parts, self.mask.grad, strict=True):
            part.grad = gradient

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Tell a solver of the masks' leads; for others divide the gradient of each mask by its largest value."""
        assert self.mask.grad is not None
        if isinstance(optimizer, Solver):
            optimizer.tell(self._lead)
        else:
            largest = self.mask.grad.abs().amax((1, 2, 3), keepdim=True)
            self.mask.grad /= torch.where(largest > 0, largest, 1)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        self.mask.grad = None
        optimizer.zero_grad()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        with torch.no_grad():
            self.mask.clamp_(0, 1)
        if self._bound is not None:
            self._confirm(batch)
        for place in batch.used:
            batch.iterations[place] += 1
        if places := self._finished(batch):
            self.hand_out(places, self.explanation(places))
            self._fill(batch.refill(places))
            if not batch.used:
                self.trainer.should_stop = True

    # --- the places of the batch ---

    def _open(self, batch: Batch) -> None:
        """Make the places of a new sweep and put its first items in."""
        image, size = batch.peek(), batch.size
        assert image is not None
        if size == "auto":
            local = getattr(self.trainer.strategy, "num_processes", 1)
            size = largest_batch_size(
                lambda size: self._rehearse(image.expand(size, *image.shape)),
                batch.most or 2**16,
                batch.first_try or 1,
                FreeMemory(local) if self.device.type == "cpu" else None,
            )
        batch.open(size)
        self._allocate(batch.images)
        self._plateau = Plateau(size, self.patience, self.tolerance, relative=self.lam == "auto")
        self._fill(batch.refill(range(size)))

    def _allocate(self, images: Tensor) -> None:
        """Everything that has a row for each place."""
        # All in the images' memory format: mask * x takes the mask's, and another one rounds differently.
        self._x = self._rows(self.normalize(images))
        self.mask.data = torch.full_like(self._x, self.start)
        self.mask.grad = None
        # The optimizer sees a group of parameters for each place, so that its state can start anew with each item.
        self._parts = [nn.Parameter(part) for part in self.mask.data]
        own = {"keeps": self.game.keeps, "iterations": self.iterations, "seed": self.seed}
        rows = [self._parts[start : start + self.seeds] for start in range(0, len(self._parts), self.seeds)]
        groups: Any = [{"params": parts, **own} for parts in rows]
        self.trainer.optimizers = [self.make_optimizer(groups)]
        self._generators = [torch.Generator(self._x.device) for _ in self._parts]
        self._reference: Tensor | None = None
        self.targets = torch.zeros(len(self._x), dtype=torch.long, device=self._x.device)
        self.score_image = self._x.new_zeros(len(self._x))
        self._bound = self._x.new_zeros(len(self._x)) if self.lam == "auto" else None

    def _fill(self, places: Sequence[int]) -> None:
        """Begin with the items that are new in these places: masks, references, reference activations."""
        if not places:
            return
        assert self.batch is not None
        rows = [row for place in places for row in self._rows_of(place)]
        at = torch.tensor(rows, device=self._x.device)
        new = torch.zeros(len(self._x), dtype=torch.bool, device=self._x.device).index_fill(0, at, True)
        self._x[at] = self._rows(self.normalize(self.batch.images[places]))
        logits = self.first_pass(self._x, self.seeds)
        targets = self._rows(resolve(self.batch.targets.to(self._x.device), logits, self.classifier))
        self.targets, logits = torch.where(new, targets, self.targets), self._rows(logits)
        self.score_image = torch.where(new, probability(logits, self.targets), self.score_image)
        if self._bound is not None:
            self._bound = torch.where(new, bound(self.level, logits, self.targets).to(self._bound), self._bound)
        black = self.normalize(torch.zeros(3, 1, 1, device=self._x.device))
        for row in rows:
            generator = self._generators[row].manual_seed(self.seed)
            reference = self.reference(self._x[row : row + 1], black, generator)
            if reference is not None:
                if self._reference is None:
                    self._reference = torch.zeros_like(self._x)
                self._reference[row] = reference[0]
            generator.manual_seed(self.seed + row % self.seeds)
        for place in places:
            self._restart(place)
        with torch.no_grad():
            self.mask.masked_fill_(new[:, None, None, None], self.start)
        self._record()

    def _rows(self, of_places: Tensor) -> Tensor:
        """What places have (B,…) for each of their rows (B·seeds,…), in the same memory format."""
        rows = of_places.repeat_interleave(self.seeds, 0)
        return rows.contiguous(memory_format=torch.channels_last) if rows.ndim == 4 else rows

    @property
    def _every(self) -> slice:
        """The first row of each place."""
        return slice(None, None, self.seeds)

    def _rows_of(self, place: int) -> range:
        return range(place * self.seeds, (place + 1) * self.seeds)

    def _restart(self, place: int) -> None:
        """Forget the item that was in this place."""
        self._plateau.restart(place)
        parts = [self._parts[row] for row in self._rows_of(place)]
        fresh = self.make_optimizer(parts).state  # empty, or what the optimizer starts from
        for optimizer in self.trainer.optimizers:
            for part in parts:
                optimizer.state.pop(part, None)
            optimizer.state.update(fresh)

    def _narrow(self) -> None:
        """Go on with the first row of each place where a solver has joined the runs of all images."""
        active = self._every if self._solver.finishing else slice(None)
        if active != self._active:
            self._active = active
            with self.trainer.precision_plugin.forward_context():
                self.network.record(self._of(self._x))

    def _of(self, rows: Tensor) -> Tensor:
        """What has a row for each run (B·seeds,…), for those that are active."""
        if self._active == slice(None):
            return rows
        rows = rows[self._active]
        return rows.contiguous(memory_format=torch.channels_last) if rows.ndim == 4 else rows

    def _record(self) -> None:
        """The reference pass on all images; those that were there before get what they had, bit for bit."""
        self._active = slice(None)
        with self.trainer.precision_plugin.forward_context():
            self.network.record(self._x)
            if self.defended:
                self.network.verify(blend(self._x, torch.ones_like(self.mask), self._reference))
        self.coverage = self.network.coverage
        if self.defended and self.coverage.gate_free and not self._warned:
            self._warned = True
            warnings.warn(f"{self.classifier.name}: {GATE_FREE}", stacklevel=2)

    def _rehearse(self, images: Tensor) -> None:
        """All that takes memory, once, for a batch of images (B,3,H,W)."""
        self._allocate(images)
        self.first_pass(self._x)
        self._record()
        if self.reference is not REFERENCES["zero"]:
            self._reference = torch.zeros_like(self._x)
        with (
            nullcontext() if self.defended else self.network.undefended(),
            self.trainer.precision_plugin.forward_context(),
        ):
            logits = self.network(blend(self._x, self.mask, self._reference))
            self.score(logits, self.targets).sum().backward()
        if self._bound is not None:  # what a solver remembers of each row
            self._rehearsed = [torch.zeros_like(self._x) for _ in range(4)]
            del self._rehearsed
        self._final_coverage(self.mask.detach()[self._every])
        self.mask.grad = None

    def _confirm(self, batch: Batch) -> None:
        """Under mixed precision, judge the best evidence by the network's own precision now and then."""
        if "mixed" not in str(self.trainer.precision) or self.noise:  # where noise is, masks are judged so anyway
            return
        due = [place for place in batch.used if (batch.iterations[place] + 1) % EVERY == 0]
        if due:
            leads = self._judge(self._best())[1].tolist()
            for place in due:
                self._solver.confirm(self._solver.param_groups[place], leads[place])

    @property
    def _solver(self) -> Any:
        (optimizer,) = self.trainer.optimizers
        return optimizer

    def _best(self) -> Tensor:
        """The best masks of the places so far (B,3,H,W)."""
        runs = [self._solver.found(group) for group in self._solver.param_groups]
        starts = self.mask.detach()[self._every]
        found = [
            start if run is None else self.game.evidence(run.best) for run, start in zip(runs, starts, strict=True)
        ]
        return torch.stack(found).contiguous(memory_format=torch.channels_last)

    def _judge(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B,K) by the plain network, and leads (B,), of masks (B,3,H,W)."""
        assert self._bound is not None
        logits, every = self._score_mask(mask), self._every
        return logits, lead(self.game, logits, self.targets[every], self._bound[every])

    def _finished(self, batch: Batch) -> list[int]:
        """The places whose item has had all its iterations, or has converged."""
        due = [place for place in batch.used if self._plateau.is_due(batch.iterations[place])]
        objective = self._objective().tolist() if due else []
        converged = {
            place for place in due if self._plateau.converged(place, batch.iterations[place], objective[place])
        }
        return [place for place in batch.used if batch.iterations[place] >= self.iterations or place in converged]

    def _objective(self) -> Tensor:
        """What is to become smaller (B,): the evidence that reaches the level, or the game's loss."""
        if self._bound is None:
            return self._loss.reshape(-1, self.seeds).mean(1)
        runs = [self._solver.found(group) for group in self._solver.param_groups]
        return torch.tensor([run.size if run is not None and run.reached >= 0 else torch.inf for run in runs])

    def plain(self, x: Tensor) -> Tensor:
        with self.network.undefended():
            return super().plain(x)

    @torch.no_grad()
    def explanation(self, places: Sequence[int]) -> Explanation:
        """The explanations in these places as they are now, on the CPU: masks rounded to the files' type.

        Their scores come from plain passes of the network over e made from the rounded masks.
        """
        self.cost.images += len(places)
        every, more = self._every, dict[str, Any]()
        if self._bound is None:
            mask = rounded(self.masks, self.game)
            logits = self._score_mask(mask)
        else:
            mask, logits, leads = give_back(self._best(), self.game, self._judge)
            more = self._known(places, leads)
        at = torch.tensor(places, device=mask.device)
        self.coverage = self._final_coverage(mask)
        closed = self.coverage.closed
        self.coverage = replace(self.coverage, closed=None if closed is None else closed[at].cpu())
        assert self.batch is not None
        return Explanation(
            mask=mask[at].float().contiguous().cpu(),
            targets=self.targets[every][at].cpu(),
            score_image=self.score_image[every][at].float().cpu(),
            score_explanation=probability(logits, self.targets[every])[at].float().cpu(),
            game=self.game,
            seeds=self.seeds,
            **more,
            coverage=self.coverage,
            iterations=torch.tensor([self.batch.iterations[place] for place in places]),
        )

    def _known(self, places: Sequence[int], leads: Tensor) -> dict[str, Any]:
        """What a solver knows beside the masks, for the places: fields of an `Explanation`."""
        groups = [self._solver.param_groups[place] for place in places]
        runs = [self._solver.found(group) for group in groups]
        known: dict[str, Any] = {
            "feasible": (leads[list(places)] >= 0).cpu(),
            "reached": torch.tensor([-1 if run is None else run.reached for run in runs]),
            "ranking": torch.stack([self._solver.ranking(group).mean(0).float().cpu() for group in groups]),
        }
        if self.seeds > 1:
            known["agreement"] = torch.tensor([self._solver.agreement(group) for group in groups])
        return known

    def _final_coverage(self, mask: Tensor) -> Coverage:
        """Coverage with the share of closed gates at the masks (B,3,H,W)."""
        reference = None if self._reference is None else self._of(self._reference)
        e = blend(self._of(self._x), self._of(self._rows(mask)), reference)
        if not self.defended:
            with self.network.undefended(), torch.no_grad():
                self.network(e)
            return self.network.coverage
        with self.trainer.precision_plugin.forward_context():
            closed = self.network.closed(e)
        return replace(self.network.coverage, closed=closed[self._every] if self._active == slice(None) else closed)

    def _score_mask(self, mask: Tensor) -> Tensor:
        """The plain network's logits (B,K) for masks (B,3,H,W), in a batch of all rows: rounding depends on that."""
        return self.plain(blend(self._x, self._rows(mask), self._reference))[self._every]

    @property
    def masks(self) -> Tensor:
        """The masks of the places (B,3,H,W) as they are now, each the mean of its rows."""
        return self.mask.detach().unflatten(0, (-1, self.seeds)).mean(1)

    def latest_each(self) -> tuple[Tensor, Tensor] | None:
        """Score and sparsity of each place (B,), at the latest iteration; before the first one, None."""
        if self._logits is None:
            return None
        with torch.no_grad():
            each = probability(self._logits, self._of(self.targets)), 1 - self.game.size(self._of(self.mask))
            score, sparsity = (values.unflatten(0, (len(self.targets) // self.seeds, -1)).mean(1) for values in each)
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
        optimizer = self.make_optimizer([nn.Parameter(torch.zeros(1))])
        rule = {key: value for key, value in sorted(optimizer.defaults.items()) if value is not None}
        preprocessing = asdict(self.classifier.preprocessing)
        del preprocessing["source"]
        return {
            "network": self.classifier.name,
            **preprocessing,
            "game": self.game.name,
            "lam": self.lam,
            **({"level": self.level} if self.lam == "auto" else {}),
            "iterations": self.iterations,
            "seeds": self.seeds,
            "gate": self.network.gate,
            "patience": self.patience,
            **({"tolerance": self.tolerance} if self.patience else {}),
            "defended": self.defended,
            "exempt": self.network.listed["exempt"],
            "gated": self.network.listed["gated"],
            "output": self.network.output,
            "fold": self.fold,
            "score": self.score.__name__,
            "reference": self.reference.__name__,
            "noise": self.noise,
            "seed": self.seed,
            "optimizer": f"{type(optimizer).__name__} {rule}",
            "precision": str(self.trainer.precision),
        }
