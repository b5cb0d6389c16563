"""Heads of networks: outputs of any kind made logits (B,K) of K ≥ 2 classes or of labels.

A network may end in a sigmoid or a softmax, which the paper leaves without a gate (Wagner et al., CVPR 2019, section
3.2): where its output is that function's, the function is left out, which loses no digit where it saturates. Other
outputs that are probabilities are turned back into logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fgvis_lightning.errors import InputError
from fgvis_lightning.method.tasks import TASKS, Task
from fgvis_lightning.networks.outputs import select

FINAL: dict[Any, str] = {
    **dict.fromkeys((torch.sigmoid, torch.Tensor.sigmoid, F.sigmoid, torch.special.expit), "sigmoid"),
    **dict.fromkeys((torch.softmax, torch.Tensor.softmax, F.softmax, torch.special.softmax), "softmax"),
}
IMAGES = 2
"""Images of noise that a network is tried on."""

NO_REGRESSION = (
    "An amount has no probability of which evidence could keep a share. Ask a yes-or-no question of it: a module that "
    "returns (amount - threshold) / scale, as binary."
)

MANY = 8
"""Outputs that are hardly all from 0 to 1 if they are logits."""


class _Finals(TorchFunctionMode):
    """Counts calls of sigmoid and softmax, and leaves the one with the number ``skip`` out."""

    def __init__(self, skip: int | None = None) -> None:
        super().__init__()
        self.skip = skip
        self.calls: list[tuple[str, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = FINAL.get(func), kwargs or {}
        if name is None:
            return func(*args, **kwargs)
        number = len(self.calls)
        output = (args[0] if args else kwargs["input"]) if number == self.skip else func(*args, **kwargs)
        self.calls.append((name, output if self.skip is None else None))
        return output


class Inverse(nn.Module):
    """Logits of probabilities. It is no part of the network, and has no gate.

    Args:
        function: ``sigmoid`` or ``softmax``, which made them.
    """

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = function

    def forward(self, p: Tensor) -> Tensor:
        least = torch.finfo(p.dtype).tiny
        log_p = p.clamp(min=least).log()
        return log_p if self.function == "softmax" else log_p - (1 - p).clamp(min=least).log()


class Head(nn.Module):
    """A network that returns logits (B,K), K ≥ 2 unless they are labels'.

    Args:
        network: takes images.
        output: which of its outputs, see `fgvis_lightning.networks.outputs.select`.
        skip: number of the call of a sigmoid or a softmax that is left out.
        inverse: what makes logits of its outputs, if they are probabilities.
        two: whether one output is made two classes.
    """

    def __init__(
        self, network: nn.Module, output: str | int | None, skip: int | None, inverse: Inverse | None, two: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.output = output
        self.skip = skip
        self.inverse = inverse
        self.two = two

    def forward(self, x: Tensor) -> Tensor:
        if self.skip is None:
            outputs = self.network(x)
        else:
            with _Finals(self.skip):
                outputs = self.network(x)
        logits = select(outputs, self.output, type(self.network).__name__)
        logits = logits[:, None] if logits.ndim == 1 else logits
        logits = logits if self.inverse is None else self.inverse(logits)
        return torch.cat([-logits / 2, logits / 2], 1) if self.two else logits


def with_head(
    network: nn.Module, output: str | int | None, task: str, kind: str | None, x: Tensor
) -> tuple[nn.Module, Task, str]:
    """A network as one that returns logits, its task, and what was found out, for people.

    Args:
        network: frozen.
        output: which of its outputs.
        task: as the user says.
        kind: of the outputs, ``logits`` or ``probabilities``; None to find out.
        x: normalized images of the size and channels that it takes.

    Raises:
        InputError: a task that the outputs cannot have.
    """
    if task not in TASKS:
        more = f" {NO_REGRESSION}" if task == "regression" else ""
        raise InputError(f"Expected task to be one of {', '.join(TASKS)}, but got {task!r}.{more}")
    finals = _Finals()
    try:
        with torch.no_grad(), finals:
            found = select(network(x), output, type(network).__name__)
    except Exception:  # the first batch of real images will tell the user
        return network, TASKS[task], ""
    if found.ndim > 2 or found.shape[0] != len(x):
        return network, TASKS[task], ""
    count = 1 if found.ndim == 1 else found.shape[1]
    number, final = _final(finals, found)
    inverse, seen = None, True if kind else None if final else _are_probabilities(found)
    if task == "multilabel" and final == "softmax":
        number, inverse = None, Inverse("sigmoid")
    elif kind == "logits":
        number, final = None, ""
    elif not final and (kind == "probabilities" or seen):
        total = torch.allclose(found.sum(-1), torch.ones_like(found.sum(-1)), atol=1e-3)
        final = "softmax" if count > 1 and total and task != "multilabel" else "sigmoid"
        inverse = Inverse(final)
    if task == "binary" and count > 2:
        raise InputError(f"Expected one output, or two, for task binary, but got {count}: multiclass or multilabel?")
    if task == "multiclass" and count == 1:
        task = "binary"
    elif task != "multilabel" and final == "sigmoid" and count > 1:
        task = "multilabel"
    two = task == "binary" and count == 1
    says = f"{task}, {TASKS[task].says}" if task != "binary" or two else "binary, softmax over two outputs"
    says += f"; the network's outputs are probabilities ({final})" if final else ""
    if not final and seen is None:
        says += "; the outputs, all from 0 to 1, taken for logits: are they --model.outputs probabilities?"
    if number is None and inverse is None and not two:
        return network, TASKS[task], says
    return Head(network, output, number, inverse, two), TASKS[task], says


def _final(finals: _Finals, found: Tensor) -> tuple[int | None, str]:
    """Number and name of the call of a sigmoid or softmax that made the outputs; None where none did."""
    for number, (name, made) in enumerate(finals.calls):
        if made is found:
            return number, name
    return None, ""


def _are_probabilities(found: Tensor) -> bool | None:
    """Whether outputs are from 0 to 1, and sum to 1 or are so many that they are no logits; None if it is unclear.

    A sigmoid is never 0 where the network is sane; a ReLU is, as at the end of SqueezeNet.
    """
    if not ((found >= 0).all() and (found <= 1).all()):
        return False
    sums = found.sum(-1)
    many = found.ndim == 2 and found.shape[1] >= MANY and bool((found > 0).all())
    sure = found.ndim == 2 and (torch.allclose(sums, torch.ones_like(sums), atol=1e-4) or many)
    return sure or None
