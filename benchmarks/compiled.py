"""Does `torch.compile` make the pass of a frozen network cheaper?

    python benchmarks/compiled.py packaged_efficientnet_lite0 resnet50 --batch_size 4

Pairs of passes there and back to the input, in float32 and channels_last: as it is, and compiled (Inductor); with batch
normalization as it was trained, and folded, as FGVis explains it (`fgvis_lightning.networks.folding`). Prints the time
of the compilation and the median ratio with its quartiles. Compiled code has no gates, so this is the most that
compiling could gain.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import DEVICE, header, row
from step import Bare, make

from fgvis_lightning.networks.classifier import freeze
from fgvis_lightning.networks.folding import folded


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pairs", type=int, default=12)
    options = parser.parse_args()
    header("network", "batch normalization", "compilation, s", "compiled : as it is", "quartiles")
    images = torch.randn(options.batch_size, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    for name in options.networks:
        network = freeze(make(name))
        for state in ("as trained", "folded"):
            if state == "folded":
                network, _ = folded(network, tuple(images.shape[1:]))
            bare = Bare(network.to(DEVICE), images.to(DEVICE), torch.float32)
            compiled = Bare(network.to(DEVICE), images.to(DEVICE), torch.float32)
            compiled.network = torch.compile(compiled.network)
            start = time.perf_counter()
            compiled.run()
            seconds = time.perf_counter() - start
            ratios = torch.tensor([compiled.run() / bare.run() for _ in range(options.pairs)])
            low, middle, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
            row(name, state, f"{seconds:.0f}", f"{middle:.2f}", f"{low:.2f}–{high:.2f}")


if __name__ == "__main__":
    main()
