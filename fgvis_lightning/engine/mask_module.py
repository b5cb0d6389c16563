"""A LightningModule with masks, which computes their scores and explanations.

Rows can pass through the network in parts, so that all runs of a large image fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from fgvis_lightning.data.batches import Batch
from fgvis_lightning.defense.container import DefendedCNN
from fgvis_lightning.defense.coverage import DIGITS, Coverage
from fgvis_lightning.engine.rows import Rows
from fgvis_lightning.engine.sweep_module import SweepModule
from fgvis_lightning.method.convergence import EVERY
from fgvis_lightning.method.games import Game
from fgvis_lightning.method.options import Options
from fgvis_lightning.method.solver import Solver
from fgvis_lightning.method.storage import give_back, rounded
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.reduce import looking
from fgvis_lightning.results.explanation import Explanation


class MaskModule(SweepModule):
    """The part of `FGVis` that scores masks and makes explanations; the optimization of masks is in `FGVis` itself."""

    mask: nn.Parameter  # the only parameter (B·seeds,3,H,W)
    network: DefendedCNN  # the classifier with its gates
    rows: Rows  # the current batch
    options: Options
    game: Game
    defended: bool  # whether the gradient is gated
    coverage: Coverage  # of the last pass
    _logits: Tensor | None = None

    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier)
        self._counting = ExitStack()

    def configure_callbacks(self) -> list[pl.Callback]:
        return [_RemoveHooks()]

    def on_train_start(self) -> None:
        self._counting.enter_context(self.cost.of(self.network.network))

    def on_train_end(self) -> None:
        self._counting.close()

    @property
    def solver(self) -> Solver:
        """The masks' optimizer, for ``lam: auto``."""
        solver: Any = self.optimizers(use_pl_optimizer=False)
        assert isinstance(solver, Solver)
        return solver

    @property
    def rough(self) -> bool:
        """Whether a solver evaluates masks in mixed precision; with noise, it uses the network's own precision."""
        return self.options.auto and not self.options.noise and "mixed" in str(self.trainer.precision)

    def first_pass(self, x: Tensor, copies: int = 1) -> Tensor:
        with looking(self.network):
            return super().first_pass(x, copies)

    def plain(self, x: Tensor) -> Tensor:
        with self.network.undefended():
            return super().plain(x)

    def plain_rows(self, e: Tensor) -> Tensor:
        """The plain network's logits (B,K) of explanations ``e`` of the rows in use."""
        return torch.cat([self.plain(part) for part in e.split(self.rows.together)])

    def scored(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Detached logits (B,K) of explanations ``e`` of the rows in use, and their scores (B,) with a gradient."""
        score, targets = self.classifier.task.score(self.options.score), self.rows.used_targets
        if len(e) <= self.rows.together:
            logits = self.network(e)
            return logits.detach(), score(logits, targets)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        return in_parts(self.network, score, e, targets, self.game, self.rows.together, scale)

    def judge(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The plain network's logits (B,K), and the leads (B,), of masks (B,3,H,W)."""
        logits = self.logits_of(masks)
        return logits, self.rows.lead_of_images(self.game, logits)

    @torch.no_grad()
    def explanation(self, places: Sequence[int]) -> Explanation:
        """The current explanations in these places, on the CPU, rounded as in files.

        Their scores come from the plain network on explanations e of the rounded masks.
        """
        self.cost.images += len(places)
        at, more = torch.tensor(places, device=self.mask.device), dict[str, Any]()
        if self.options.auto:
            mask, logits, leads = give_back(self.solver.best(), self.game, self.judge)
            more = {"feasible": (leads >= 0)[at].cpu(), **self.solver.summary(places)}
        else:
            mask = rounded(self.masks, self.game)
            logits = self.logits_of(mask)
        self.coverage = self.coverage_at(mask)
        if (closed := self.coverage.closed) is not None:
            shares = closed[at].cpu().double().round(decimals=DIGITS).float()
            self.coverage = replace(self.coverage, closed=shares if shares.shape[1] else None)
        assert self.batch is not None
        targets = self.rows.targets[at].cpu()
        return Explanation(
            mask=mask[at].float().contiguous().cpu(),
            targets=targets,
            names=tuple(map(self.classifier.class_name, targets.tolist())),
            score_image=self.rows.score_image[at].float().cpu(),
            score_explanation=self.classifier.task.probability(logits, self.rows.targets)[at].float().cpu(),
            game=self.game,
            seeds=self.options.seeds,
            bands=self.classifier.preprocessing.bands,
            **more,
            coverage=self.coverage,
            iterations=torch.full((len(places),), self.batch.iterations),
        )

    def coverage_at(self, mask: Tensor) -> Coverage:
        """Coverage with the share of closed gates at the masks (B,3,H,W)."""
        e = self.rows.part(self.rows.explained(self.rows.spread(mask)))
        if not self.defended:
            with self.network.undefended(), torch.no_grad():
                self.network(e)
            return self.network.coverage
        with self.trainer.precision_plugin.forward_context():
            closed = self.network.closed(e)
        return replace(self.network.coverage, closed=self.rows.first(closed) if self.rows.all_used else closed)

    def confirm(self, batch: Batch) -> None:
        """Under mixed precision, confirm the best evidence in the network's own precision from time to time."""
        if self.rough and batch.iterations % EVERY == 0:
            leads = self.judge(self.solver.best())[1].tolist()
            for place in batch.used:
                self.solver.confirm(place, leads[place])

    def logits_of(self, masks: Tensor) -> Tensor:
        """The plain network's logits (B,K) for masks (B,3,H,W), in a batch of all rows, which determines rounding."""
        return self.rows.first(self.plain(self.rows.explained_all(masks)))

    @property
    def targets(self) -> Tensor:
        """Target classes of the places (B,)."""
        return self.rows.targets

    @property
    def masks(self) -> Tensor:
        """The current masks of the places (B,3,H,W), each averaged over its rows."""
        return self.mask.detach().unflatten(0, (-1, self.options.seeds)).mean(1)

    def latest_each(self) -> tuple[Tensor, Tensor] | None:
        """Score and sparsity of each place (B,) in the latest iteration; None before the first one."""
        if self._logits is None:
            return None
        with torch.no_grad():
            mask = self.rows.used(self.mask)
            score = self.classifier.task.probability(self._logits, self.rows.used_targets)
            each = score, 1 - self.game.size(mask)
            score, sparsity = (values.unflatten(0, (len(self.targets), -1)).mean(1) for values in each)
            return score, sparsity

    @property
    def latest(self) -> tuple[Tensor, Tensor] | None:
        """Mean score and sparsity of the current items; None before the first iteration."""
        if self.batch is None or (latest := self.latest_each()) is None:
            return None
        used = self.batch.used
        score, sparsity = (each if len(used) == len(each) else each[used] for each in latest)
        return score.mean(), sparsity.mean()

    def log_latest(self) -> None:
        """Log means over the current items, but only when they are due, since computing them costs 1 % and more."""
        trainer: Any = self.trainer  # whose class does not declare the attribute
        every = trainer.log_every_n_steps
        if every and (trainer.global_step + 1) % every == 0 and (latest := self.latest) is not None:
            assert self.batch is not None
            score, sparsity = latest
            for name, value in (("score", score), ("mean evidence", 1 - sparsity)):
                self.log(name, value, batch_size=len(self.batch.used))


class _RemoveHooks(pl.Callback):
    """Removes the hooks that count passes from the network if a run fails."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, MaskModule)
        pl_module.on_train_end()


def in_parts(
    network: Callable[[Tensor], Tensor],
    score: Callable[[Tensor, Tensor], Tensor],
    e: Tensor,
    targets: Tensor,
    game: Game,
    size: int,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Logits and scores of explanations, of which only a part is in the network's memory at a time.

    Each part's gradient is computed at once. The returned scores have the same gradient with respect to ``e``, bit for
    bit, provided that the loss is linear in them as in `Game.loss`.

    Args:
        network: takes normalized images, returns logits (N,K).
        score: function of logits (N,K) and targets (N,) that returns scores (N,).
        e: explanations (B,3,H,W).
        targets: target classes (B,).
        game: the game, since the direction of the minimized loss determines which gates are open.
        size: number of rows in a part.
        scale: factor of the loss inside the network, as in mixed precision with float16.

    Returns:
        Detached logits (B,K), and scores (B,).
    """
    sign = -1 if game.keeps else 1  # of the score in the loss
    found: list[tuple[Tensor, ...]] = []
    for part, wanted in zip(e.detach().split(size), targets.split(size), strict=True):
        logits = network(part.requires_grad_())
        value = score(logits, wanted)
        (slope,) = torch.autograd.grad(scale * sign * value.sum(), part)
        found.append((logits.detach(), value.detach(), sign / scale * slope))
    logits, value, slope = (torch.cat(each) for each in zip(*found, strict=True))
    return logits, value + ((e - e.detach()) * slope).flatten(1).sum(1)
