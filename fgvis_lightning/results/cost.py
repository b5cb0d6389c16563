"""Cost of explanations: seconds, and numbers of forward and backward passes of images."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fgvis_lightning.results.tensor_files import write_whole


@dataclass
class Cost:
    """Accumulated cost of explaining ``images`` images; `of` adds to it."""

    images: int = 0  # explained
    seconds: float = 0.0  # wall-clock time
    forward: int = 0  # images passed through the network
    backward: int = 0  # images whose gradient was computed

    @contextmanager
    def of(self, network: nn.Module) -> Iterator[None]:
        """Add the cost of the passes within this context."""

        def before(module: nn.Module, inputs: Any) -> None:
            self.forward += len(inputs[0])

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda gradient: count(len(gradient)))

        def count(images: int) -> None:
            self.backward += images

        hooks = network.register_forward_pre_hook(before), network.register_forward_hook(after)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start
            for hook in hooks:
                hook.remove()

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def add_to(self, folder: Path, rank: int) -> None:
        """Add this cost to this rank's total in the folder."""
        known = Cost.read(folder, f"cost.rank{rank}.json")
        write_whole(folder / f"cost.rank{rank}.json", json.dumps(asdict(known + self)).encode(), f"rank{rank}")

    @classmethod
    def read(cls, folder: Path, pattern: str = "cost.rank*.json") -> Cost:
        """The sum over all ranks."""
        return sum((cls(**json.loads(path.read_text())) for path in sorted(folder.glob(pattern))), Cost())
