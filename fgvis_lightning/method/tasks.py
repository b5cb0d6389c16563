"""Tasks, with torchmetrics' names: the meaning of a network's outputs (B,K).

The single output z of a binary classifier is treated as logits (-z/2, z/2) of two classes, whose softmax equals its
sigmoid; so there are only two rules. All functions take logits (B,K) and targets (B,) and return (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fgvis_lightning.method.games import log_odds, log_probability

ATTRIBUTE = "fgvis_task"
"""Name of the attribute that holds a network's `Task`; a network without it is a multiclass network."""


class Task:
    """Exactly one of K classes applies: softmax."""

    name = "multiclass"
    says = "softmax over the classes"
    threshold = 0.5  # probability above which a label is predicted, if several can apply

    def log_odds(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Log p/(1 - p) of the target class, exact for p near 0 or 1."""
        return log_odds(logits, targets)

    def log_probability(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of the target class."""
        return log_probability(logits, targets)

    def probability(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Probability of the target class."""
        return self.log_probability(logits, targets).exp()

    def present(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Whether the network predicts the target class, that is, whether it is the most probable one."""
        return logits.argmax(1) == targets

    def same_decision(self, logits: Tensor, others: Tensor, targets: Tensor) -> Tensor:
        """Whether two sets of logits predict the same class."""
        return logits.argmax(1) == others.argmax(1)

    def score(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """One of `fgvis_lightning.method.games.SCORES` by its name."""
        function: Callable[[Tensor, Tensor], Tensor] = getattr(self, name)
        return function


class Binary(Task):
    """One class applies or not: sigmoid."""

    name = "binary"
    says = "sigmoid of the one output; class 0 is the complement of class 1"


class Multilabel(Task):
    """Each of K labels applies or not, independently of the others: a sigmoid for each.

    Args:
        threshold: probability above which a label is predicted.
    """

    name = "multilabel"
    says = "sigmoid of each label"

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def log_odds(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.gather(1, targets[:, None]).squeeze(1)

    def log_probability(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.logsigmoid(self.log_odds(logits, targets))

    def present(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Whether the target label's probability is above the threshold."""
        return self.log_odds(logits, targets) > math.log(self.threshold / (1 - self.threshold))

    def same_decision(self, logits: Tensor, others: Tensor, targets: Tensor) -> Tensor:
        """Whether the target label is above the threshold in both or in neither."""
        return self.present(logits, targets) == self.present(others, targets)


MULTICLASS = Task()
TASKS: dict[str, Task] = {task.name: task for task in (MULTICLASS, Binary(), Multilabel())}


def task_of(network: Any) -> Task:
    """The task of a network; multiclass unless it was loaded with another task."""
    task = getattr(network, ATTRIBUTE, None)
    return task if isinstance(task, Task) else MULTICLASS
