"""Heads of networks, which turn any outputs into logits (B,K) of K ≥ 2 classes or of labels.

A network may end in a sigmoid or a softmax, which the paper does not gate (Wagner et al., CVPR 2019, section 3.2). If
it does, this function is skipped, which keeps full precision where it saturates. Other probabilities are converted back
to logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fgvis_lightning.errors import InputError
from fgvis_lightning.method.tasks import TASKS, Task
from fgvis_lightning.networks.outputs import select, two_classes

FINAL: dict[Any, str] = {
    **dict.fromkeys((torch.sigmoid, torch.Tensor.sigmoid, F.sigmoid, torch.special.expit), "sigmoid"),
    **dict.fromkeys((torch.sigmoid_, torch.Tensor.sigmoid_, F.logsigmoid), "sigmoid"),
    **dict.fromkeys((torch.softmax, torch.Tensor.softmax, F.softmax, torch.special.softmax), "softmax"),
}
IMAGES = 2  # number of noise images for a trial pass
NO_REGRESSION = (
    "An amount is not a probability and cannot be explained. Turn it into a yes-or-no question: a module that "
    "returns (amount - threshold) / scale, with task binary."
)

MANY = 8  # number of outputs from which logits are unlikely to be all between 0 and 1


class OnCopy(nn.Module):
    """A network that changes its input in place, called with a copy of it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x.clone())


class _Finals(TorchFunctionMode):
    """Records calls of sigmoid and softmax, and skips the call with the number ``skip``."""

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
    """Converts probabilities of a ``sigmoid`` or ``softmax`` to logits; no part of the network, and without a gate."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = function

    def forward(self, p: Tensor) -> Tensor:
        least = torch.finfo(p.dtype).tiny
        log_p = p.clamp(min=least).log()
        return log_p if self.function == "softmax" else log_p - (1 - p).clamp(min=least).log()


class Head(nn.Module):
    """A network that returns logits (B,K), K ≥ 2 unless they are logits of labels.

    Args:
        network: a network of images.
        output: the output to use, see `fgvis_lightning.networks.outputs.select`.
        skip: number of the call of sigmoid or softmax to skip.
        inverse: module that converts the outputs to logits, if they are probabilities.
        two: whether to turn the single output into two classes.
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
        logits = logits.reshape(len(x), -1) if logits.ndim < 2 else logits  # squeeze() also drops a batch of one image
        logits = logits if self.inverse is None else self.inverse(logits)
        return two_classes(logits) if self.two else logits


def with_head(
    network: nn.Module, output: str | int | None, task: str, kind: str | None, x: Tensor
) -> tuple[nn.Module, Task, str]:
    """Wrap a frozen network so that it returns logits; also returns its task and a description of its outputs.

    ``kind`` of the outputs is ``logits`` or ``probabilities``, or None to detect it on normalized images ``x``.

    Raises:
        InputError: if the task does not fit the outputs.
    """
    if task not in TASKS:
        more = f" {NO_REGRESSION}" if task == "regression" else ""
        raise InputError(f"Expected task to be one of {', '.join(TASKS)}, but got {task!r}.{more}")
    finals, name = _Finals(), type(network).__name__
    try:
        with torch.no_grad(), finals:
            given = x.clone()
            found = select(network(given), output, name)
    except Exception:  # the first batch of real images raises an error
        return network, TASKS[task], ""
    network = network if torch.equal(given, x) else OnCopy(network)
    if found.ndim not in (1, 2) or found.shape[0] != len(x):
        return network, TASKS[task], ""
    flat, calls = found.ndim == 1 or _drops_one(network, output, x), finals.calls
    count = 1 if found.ndim == 1 else found.shape[1]
    whole = ((number, name) for number, (name, made) in enumerate(calls) if _is_all_of(found, made, name))
    number, final = next(whole, (None, ""))
    inverse, seen = None, True if kind else None if final else _are_probabilities(found)
    if seen is None and not final and _are_values_of(found, [made for _, made in calls]):
        seen = True
    if seen is None and not final and count >= MANY and bool((found > 0).all()):
        if task != "multilabel":
            raise InputError(
                f"Expected outputs of {name} that are clearly logits or clearly probabilities, but all {count} lie "
                f"between 0 and 1, and their sum is not 1. Set --model.outputs to logits or to probabilities (outputs "
                f"in Python)."
            )
        seen = True
    if task == "multilabel" and final == "softmax":
        number, inverse = None, Inverse("sigmoid")
    elif kind == "logits":
        number, final = None, ""
    elif not final and (kind == "probabilities" or seen):
        total = torch.allclose(found.sum(-1), torch.ones_like(found.sum(-1)), atol=1e-3)
        final = "softmax" if count > 1 and total and task != "multilabel" else "sigmoid"
        inverse = Inverse(final)
    if task == "binary" and count > 2:
        raise InputError(f"Expected one or two outputs for task binary, but got {count}. Set multiclass or multilabel.")
    if task == "multiclass" and count == 1:
        task = "binary"
    elif task != "multilabel" and final == "sigmoid" and count > 1:
        task = "multilabel"
    two = task == "binary" and count == 1
    says = f"{task}, {TASKS[task].says}" if task != "binary" or two else "binary, softmax over two outputs"
    says += f"; the network's outputs are probabilities ({final})" if final else ""
    if not final and seen is None:
        says += "; outputs from 0 to 1 treated as logits: set --model.outputs if they are probabilities"
    if number is None and inverse is None and not two and not flat:
        return network, TASKS[task], says
    return Head(network, output, number, inverse, two), TASKS[task], says


def _drops_one(network: nn.Module, output: str | int | None, x: Tensor) -> bool:
    """Whether a network drops the first dimension of a single image's outputs, as ``squeeze()`` does."""
    try:
        with torch.no_grad():
            return select(network(x[:1].clone()), output, "").ndim < 2
    except Exception:  # the first pass of real images raises an error, if it has one image
        return False


def _is_all_of(found: Tensor, made: Tensor, name: str) -> bool:
    """Whether outputs are those of a sigmoid or softmax, or a view of those of a sigmoid, such as ``squeeze(1)``."""
    if made is found or name != "sigmoid":
        return made is found
    same = made.untyped_storage().data_ptr() == found.untyped_storage().data_ptr()
    return same and bool(((found >= 0) & (found <= 1)).all())


def _are_values_of(found: Tensor, made: list[Tensor]) -> bool:
    """Whether each output is a value of a sigmoid or softmax, such as a column of it, or the outputs of several."""
    values = [tensor.flatten().to(found) for tensor in made]
    return bool(values) and bool(torch.isin(found, torch.cat(values)).all())


def _are_probabilities(found: Tensor) -> bool | None:
    """Whether outputs are probabilities: from 0 to 1, and with a sum of 1; None if unclear.

    A sigmoid is never exactly 0 in a sane network, but a ReLU is, as at the end of SqueezeNet.
    """
    if not ((found >= 0).all() and (found <= 1).all()):
        return False
    sums = found.sum(-1)
    return (found.ndim == 2 and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)) or None
