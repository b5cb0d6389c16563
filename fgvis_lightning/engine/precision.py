"""The precision of a run: not the caller's, and not one that the CPU only emulates."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.accelerators import CPUAccelerator

SLOW = 1.6
"""Slowdown relative to float32 from which to warn; CPUs with native instructions stay below it for small images."""

TYPES = {"bf16": torch.bfloat16, "16": torch.float16}


@contextmanager
def undisturbed() -> Iterator[None]:
    """Gradients and no autocast in this context, whatever the caller's is, such as Lightning's validation loop."""
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda", "mps", "xpu")):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def say_if_slow(trainer: pl.Trainer) -> None:
    """Print a line, on one rank, if the trainer's precision is measurably slower than float32 on this CPU."""
    kind = TYPES.get(str(trainer.precision).partition("-")[0])
    if kind is None or not trainer.is_global_zero or not isinstance(trainer.accelerator, CPUAccelerator):
        return
    if (factor := slowdown(kind)) > SLOW:
        print(
            f"fgvis: {trainer.precision} is slow on this CPU: a small convolution took {factor:.1f} times as long as "
            f"in float32. Use --trainer.precision 32-true.",
            file=sys.stderr,
            flush=True,
        )


def slowdown(kind: torch.dtype, repeats: int = 5) -> float:
    """Time of two small convolutions, forward and backward on the CPU, in this data type relative to float32.

    It is the ratio of the minima of several alternating runs, which take some tens of milliseconds.
    """
    times: dict[torch.dtype, list[float]] = {torch.float32: [], kind: []}
    for _ in range(1 + repeats):  # the first one prepares kernels
        for each, found in times.items():
            found.append(_convolve(each))
    ordinary, own = (min(found[1:]) for found in times.values())
    return own / ordinary


def _convolve(kind: torch.dtype, channels: int = 32, side: int = 28) -> float:
    images = torch.linspace(0, 1, channels * side**2).view(1, channels, side, side)
    weights = torch.linspace(-1, 1, channels**2 * 9).view(channels, channels, 3, 3)
    x, weights = (values.to(kind, memory_format=torch.channels_last) for values in (images, weights))
    x.requires_grad_()
    start = time.perf_counter()
    h = F.conv2d(F.conv2d(x, weights, padding=1).relu(), weights, padding=1)
    h.float().mean().backward()
    return time.perf_counter() - start
