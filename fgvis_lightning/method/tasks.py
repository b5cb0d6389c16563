"""Tasks, named as torchmetrics names them: what a network's outputs (B,K) say of one class.

A binary classifier's one output z counts as the logits (-z/2, z/2) of two classes, whose softmax is its sigmoid; so
there are two rules alone. All functions take logits (B,K) and targets (B,) and return (B,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fgvis_lightning.method.games import log_odds, log_probability

ATTRIBUTE = "fgvis_task"
"""Name of the attribute of a network that says its `Task`; without it, it is a multiclass network."""


class Task:
    """One of K classes is there: softmax."""

    name = "multiclass"
    says = "softmax over the classes"

    def log_odds(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Log p/(1 - p) of the target class, exact where p is near 0 or 1."""
        return log_odds(logits, targets)

    def log_probability(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logarithm of the target class's probability."""
        return log_probability(logits, targets)

    def probability(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Probability of the target class."""
        return self.log_probability(logits, targets).exp()

    def present(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Whether the network decides for the target class: it is the most probable one."""
        return logits.argmax(1) == targets

    def same_decision(self, logits: Tensor, others: Tensor, targets: Tensor) -> Tensor:
        """Whether other logits make the network decide alike: for the same class."""
        return logits.argmax(1) == others.argmax(1)

    def score(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """One of `fgvis_lightning.method.games.SCORES` by its name."""
        function: Callable[[Tensor, Tensor], Tensor] = getattr(self, name)
        return function


class Binary(Task):
    """One class is there or not: sigmoid."""

    name = "binary"
    says = "sigmoid of the one output; class 0 is the complement of class 1"


class Multilabel(Task):
    """Each of K labels is there or not, whatever the others: sigmoid of each."""

    name = "multilabel"
    says = "sigmoid of each label"

    def log_odds(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.gather(1, targets[:, None]).squeeze(1)

    def log_probability(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.logsigmoid(self.log_odds(logits, targets))

    def present(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Whether the target label's probability is above 0.5."""
        return self.log_odds(logits, targets) > 0

    def same_decision(self, logits: Tensor, others: Tensor, targets: Tensor) -> Tensor:
        """Whether the target label is above 0.5 in both or in neither."""
        return self.present(logits, targets) == self.present(others, targets)


MULTICLASS = Task()
TASKS: dict[str, Task] = {task.name: task for task in (MULTICLASS, Binary(), Multilabel())}


def task_of(network: Any) -> Task:
    """The task of a network; multiclass unless it has been loaded as another."""
    task = getattr(network, ATTRIBUTE, None)
    return task if isinstance(task, Task) else MULTICLASS
