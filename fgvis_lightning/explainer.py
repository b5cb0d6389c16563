"""FGVis: a LightningModule whose only parameter is the mask.

One epoch is one pass over the items; one training step is one iteration of the masks' optimizer (Wagner
et al., CVPR 2019, section 3 and supplement A). Lightning's automatic optimization drives it:
``training_step`` is the objective, ``on_before_optimizer_step`` normalizes the gradient of each image,
``on_train_batch_end`` projects the masks back to [0,1].

Each place of the batch has an item at an iteration of its own. One that is finished goes to every
`ExplanationCallback`, and its place to the next item; the others do not notice, bit for bit.
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

from fgvis_lightning.answers import resolve
from fgvis_lightning.batch_size import FreeMemory, largest_batch_size
from fgvis_lightning.convergence import EVERY, Plateau
from fgvis_lightning.coverage import GATE_FREE, Coverage
from fgvis_lightning.data import Batch, ImageData
from fgvis_lightning.defense import DefendedCNN
from fgvis_lightning.errors import InputError
from fgvis_lightning.folding import folded
from fgvis_lightning.games import GAMES, REFERENCES, SCORES, blend, probability
from fgvis_lightning.module import SweepModule
from fgvis_lightning.network import DEFAULT, load_classifier
from fgvis_lightning.nonlinearities import resolve as resolve_names
from fgvis_lightning.search import Search
from fgvis_lightning.store import Explanation, rounded
from fgvis_lightning.strategy import check_strategy

NOISE = 0.3
"""Chosen on 13 ImageNet photos by deletion and insertion AUC (``benchmarks/rules.py``)."""


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
        game: what is looked for, see `fgvis_lightning.games`.
        lam: weight λ ≥ 0 of the mask's size; ``auto`` finds for each image the smallest evidence that
            reaches ``level``.
        level: for ``lam: auto``, the score to reach as a share of the image's own: at least, for
            preservation and generation (1.0 unless given); at most, for deletion and repression (0.1).
        iterations: steps of the optimizer for each image, at most.
        patience: an image is finished earlier when this many iterations have brought no progress, see
            `fgvis_lightning.convergence`; 0 for all iterations in any case.
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
        seed: of the noise and of the proposals of ``lam: auto``.
        optimizer: of the mask, e.g. ``torch.optim.Adam``.
        fold: whether batch normalization is folded into the convolutions before it, see `fgvis_lightning.folding`.
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
        iterations: int = 500,
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
        optimizer: Callable[[Iterable[Any]], Optimizer] = sgd,
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
        self.network = DefendedCNN(frozen, exempt=exempt or (), gated=gated or (), output=output, fused=fused).eval()
        self.game = GAMES[game]
        self.lam = lam
        self.level = level if level is not None else (1.0 if self.game.keeps else 0.1)
        self.iterations = iterations
        self.defended = defended
        # For λ = 0 both scores have gradients of one direction, but the logarithm's do not vanish where p is small.
        self.score = SCORES["log_probability" if lam == "auto" else score]
        self.reference = REFERENCES[reference]
        self.noise = noise
        self.seed = seed
        self.make_optimizer = optimizer
        self.patience = patience
        self.tolerance = tolerance if tolerance is not None else 0.02 if lam == "auto" else 0.001
        self.mask = nn.Parameter(torch.empty(0))
        self.coverage = self.network.coverage
        self._search: Search | None = None
        self._logits: Tensor | None = None
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
                self.mask = nn.Parameter(torch.ones(batch.size, *image.shape))  # for Lightning's summary

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
        clean = blend(self._x, self.mask, self._reference)
        e = clean
        if self.noise:
            # Each image has its own stream, so that none depends on its place or on when it got it.
            draw = torch.empty_like(e)
            for image, generator in zip(draw, self._generators, strict=True):
                image.copy_(torch.randn(image.shape, generator=generator, device=e.device, dtype=e.dtype))
            e = clean + self.noise * draw
        with nullcontext() if self.defended else self.network.undefended():
            logits = self.network(e)
        score = self.score(logits, self.targets)
        self._logits = logits.detach()
        self._log()
        if self._search is not None:
            # The gradient may be a noisy one; what a mask is worth is not.
            judged = self.plain(clean) if self.noise else logits.detach()
            self._search.observe(self.mask.detach(), judged, batch.iterations)
        loss = self.game.loss(score, self.mask, 0.0 if self.lam == "auto" else self.lam)
        self._loss = loss.detach()
        return loss.sum()

    def on_after_backward(self) -> None:
        assert self.mask.grad is not None
        for part, gradient in zip(self._parts, self.mask.grad, strict=True):
            part.grad = gradient

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradient of each image by its largest absolute value."""
        assert self.mask.grad is not None
        largest = self.mask.grad.abs().amax((1, 2, 3), keepdim=True)
        self.mask.grad /= torch.where(largest > 0, largest, 1)
        if self._search is not None:
            self._search.learn(self.mask.grad)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        self.mask.grad = None
        optimizer.zero_grad()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        with torch.no_grad():
            self.mask.clamp_(0, 1)
            if self._search is not None:
                self._verify(self._search, batch)
                self.mask.copy_(self._search.propose(self.mask, batch.iterations))
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
        self._x = self.normalize(images)
        self.mask.data = torch.full_like(self._x, self.game.start)
        self.mask.grad = None
        # The optimizer sees one parameter for each place, so that its state can start anew with each item.
        self._parts = [nn.Parameter(part) for part in self.mask.data]
        self.trainer.optimizers = [self.make_optimizer(self._parts)]
        self._generators = [torch.Generator(self._x.device) for _ in images]
        self._reference: Tensor | None = None
        self.targets = torch.zeros(len(images), dtype=torch.long, device=self._x.device)
        self.score_image = self._x.new_zeros(len(images))
        self._search = None
        if self.lam == "auto":
            self._search = Search(self.game, self.level, self.mask.detach(), self.iterations, self.seed)

    def _fill(self, places: Sequence[int]) -> None:
        """Begin with the items that are new in these places: masks, references, reference activations."""
        if not places:
            return
        assert self.batch is not None
        at = torch.tensor(places, device=self._x.device)
        new = torch.zeros(len(self._x), dtype=torch.bool, device=self._x.device).index_fill(0, at, True)
        self._x[at] = self.normalize(self.batch.images[places])
        logits = self.first_pass(self._x)
        targets = resolve(self.batch.targets.to(self._x.device), logits, self.classifier)
        self.targets = torch.where(new, targets, self.targets)
        self.score_image = torch.where(new, probability(logits, self.targets), self.score_image)
        black = self.normalize(torch.zeros(3, 1, 1, device=self._x.device))
        for place in places:
            generator = self._generators[place].manual_seed(self.seed)
            reference = self.reference(self._x[place : place + 1], black, generator)
            if reference is not None:
                if self._reference is None:
                    self._reference = torch.zeros_like(self._x)
                self._reference[place] = reference[0]
            self._restart(place)
        with torch.no_grad():
            self.mask.masked_fill_(new[:, None, None, None], self.game.start)
        self._record()
        if self._search is not None:
            whole = logits if self.game.keeps else self._score_mask(torch.zeros_like(self.mask))
            self._search.start(new, self.targets, self.mask.detach(), logits, whole)

    def _restart(self, place: int) -> None:
        """Forget the item that was in this place."""
        self._plateau.restart(place)
        part = self._parts[place]
        fresh = self.make_optimizer([part]).state  # empty, or what the optimizer starts from
        for optimizer in self.trainer.optimizers:
            optimizer.state.pop(part, None)
            optimizer.state.update(fresh)

    def _record(self) -> None:
        """The reference pass on all images; those that were there before get what they had, bit for bit."""
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
        if self._search is not None:
            self._search.learn(torch.zeros_like(self.mask))
            self._search.propose(self.mask, [0] * len(images))
        self._final_coverage(self.mask.detach())
        self.mask.grad = None

    def _verify(self, search: Search, batch: Batch) -> None:
        """Under mixed precision, judge the best masks by the network's own precision now and then."""
        if "mixed" not in str(self.trainer.precision) or self.noise:  # where noise is, masks are judged so anyway
            return
        due = [(iteration + 1) % EVERY == 0 for iteration in batch.iterations]
        if any(due):
            search.verify(self._score_mask, torch.tensor(due, device=self.mask.device))

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
        if self._search is None:
            return self._loss
        return torch.where(self._search.feasible, self.game.size(self._search.best), torch.inf)

    def plain(self, x: Tensor) -> Tensor:
        with self.network.undefended():
            return super().plain(x)

    @torch.no_grad()
    def explanation(self, places: Sequence[int]) -> Explanation:
        """The explanations in these places as they are now, on the CPU: masks rounded to the files' type.

        Their scores come from plain passes of the network over e made from the rounded masks.
        """
        self.cost.images += len(places)
        if self._search is None:
            mask, feasible = rounded(self.mask), None
            logits = self._score_mask(mask)
        else:
            mask, logits = self._search.result(self._score_mask)
            feasible = self._search.feasible & self._search.reached(logits)
        at = torch.tensor(places, device=mask.device)
        self.coverage = self._final_coverage(mask)
        closed = self.coverage.closed
        self.coverage = replace(self.coverage, closed=None if closed is None else closed[at].cpu())
        assert self.batch is not None
        return Explanation(
            mask=mask[at].float().contiguous().cpu(),
            targets=self.targets[at].cpu(),
            score_image=self.score_image[at].float().cpu(),
            score_explanation=probability(logits, self.targets)[at].float().cpu(),
            game=self.game,
            feasible=None if feasible is None else feasible[at].cpu(),
            coverage=self.coverage,
            iterations=torch.tensor([self.batch.iterations[place] for place in places]),
        )

    def _final_coverage(self, mask: Tensor) -> Coverage:
        """Coverage with the share of closed gates at the masks (B,3,H,W)."""
        if not self.defended:
            with self.network.undefended(), torch.no_grad():
                self.network(blend(self._x, mask, self._reference))
            return self.network.coverage
        with self.trainer.precision_plugin.forward_context():
            self.network.closed(blend(self._x, mask, self._reference))
        return self.network.coverage

    def _score_mask(self, mask: Tensor) -> Tensor:
        return self.plain(blend(self._x, mask, self._reference))

    def latest_each(self) -> tuple[Tensor, Tensor] | None:
        """Score and sparsity of each place (B,), at the latest iteration; before the first one, None."""
        if self._logits is None:
            return None
        with torch.no_grad():
            return probability(self._logits, self.targets), 1 - self.game.size(self.mask)

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
