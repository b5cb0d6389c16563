"""Says so where a CPU merely imitates the precision that was asked for, which takes many times as long as float32."""

from __future__ import annotations

import sys
import time

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.accelerators import CPUAccelerator

SLOW = 1.6
"""How many times as long as float32 is worth a word: what has instructions of its own stays below, for small images."""

TYPES = {"bf16": torch.bfloat16, "16": torch.float16}


def say_if_slow(trainer: pl.Trainer) -> None:
    """Print a line, on one rank, if the trainer's precision is slower than float32 on this CPU, as a measurement says.

    Args:
        trainer: not yet at work.
    """
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
    """How many times as long as in float32 two small convolutions take in this type, there and back, on the CPU.

    The least of several times each, by turns, so that both meet the same machine; some tens of milliseconds.
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
