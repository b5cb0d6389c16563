"""An attack: FGVis from any start, with a record of the best masks on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from fgvis_lightning.baselines.fgvis import FGVisMethod
from fgvis_lightning.data.batches import Batch
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.results.explanation import Explanation

OWN: Literal["own"] = "own"
RANDOM: Literal["random"] = "random"
Start = Literal["own", "random"] | float
"""Start of the masks: FGVis's own; values uniform in [0,1]; or one value in [0,1] for all entries."""


def named(start: Start) -> str:
    """Name of a start."""
    return start if isinstance(start, str) else f"{start:g}"


class Attack(FGVis):
    """`FGVis` with a chosen start, which records the highest score that any of its masks reached.

    The last mask may not be the best, and an attacker would choose the best. The scores of masks on the way are known
    if each step computes them anyway: if the mask is the evidence (preservation and generation), in the precision of
    the network itself, and without noise.
    """

    start: Start = OWN  # of the masks; with ``random`` each pair of an image and a class has its own draw
    restart: int = 1  # number of the draw
    _highest: Tensor
    _topped: Tensor

    @classmethod
    def of(cls, network: Any, start: Start = OWN, restart: int = 1, **options: Any) -> Self:
        """Make an attack from options of `FGVis.of` and its own."""
        attack = super().of(network, **options)
        attack.start, attack.restart = start, restart
        return attack

    @property
    def watches(self) -> bool:
        """Whether the scores of the masks on the way are known."""
        return self.game.keeps and not self.options.noise and "mixed" not in str(self.trainer.precision)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.watches:
            assert self._logits is not None
            task, logits, targets = self.classifier.task, self._logits.float(), self.rows.used_targets
            scores, tops = (
                rows.unflatten(0, (len(self.targets), -1))
                for rows in (task.probability(logits, targets), task.present(logits, targets))
            )
            self._highest = torch.maximum(self._highest, scores.amax(1))
            self._topped |= tops.any(1)
        return loss

    def on_train_end(self) -> None:
        """Free memory: a command may have a hundred attacks and keeps them until its summary."""
        super().on_train_end()
        self._logits = None
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        self.mask.grad, self.mask.data = None, self.mask.detach().new_empty(0)

    def explanation(self, places: Sequence[int]) -> Explanation:
        found = super().explanation(places)
        if not self.watches:
            return found
        at = list(places)
        return replace(found, highest=self._highest[at].cpu(), topped=self._topped[at].cpu())

    def settings(self) -> dict[str, Any]:
        start: dict[str, Any] = {} if self.start == OWN else {"start": self.start}
        if self.start == RANDOM:
            start["restart"] = self.restart
        return {**super().settings(), **start}

    def _begin(self, batch: Batch) -> None:
        super()._begin(batch)
        self._highest = torch.zeros(len(self.targets), device=self.device)
        self._topped = torch.zeros(len(self.targets), dtype=torch.bool, device=self.device)
        with torch.no_grad():
            if self.start == RANDOM:
                self.mask.copy_(self.rows.spread(self._drawn(batch)))
            elif not isinstance(self.start, str):
                self.mask.fill_(self.start)

    def _drawn(self, batch: Batch) -> Tensor:
        """Masks uniform in [0,1] (B,3,H,W), on the CPU: by image, class and restart, not by place in the batch."""
        draws = []
        for image, target in zip(batch.images, self.targets.tolist(), strict=True):
            text = image.cpu().numpy().tobytes() + f" {target} {self.seed} {self.restart}".encode()
            seed = int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
            draws.append(torch.rand(self.rows.x.shape[1:], generator=torch.Generator().manual_seed(seed)))
        return torch.stack(draws)


@dataclass(frozen=True)
class AttackMethod(FGVisMethod):
    """`Attack` as one method among others."""

    kind = Attack
    start: Start = OWN
    restart: int = 1
