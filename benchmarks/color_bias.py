"""Is a color bias found where it was planted? Two networks on images whose classes are known by color, shape, or both.

``tests/colored.py`` tells of the images. One network sees their colors; the other, for comparison, is fed the mean of
the channels, and can know classes by their shape alone. Trains both, and runs ``python train.py bias`` on held-out
images::

    python benchmarks/color_bias.py --output results/planted_color

Takes two minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from fgvis_lightning.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import colored


def run() -> None:
    """Train, write weights and images, and analyze."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/planted_color"))
    parser.add_argument("--images", type=int, default=30, help="of each class")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    options = parser.parse_args()
    output: Path = options.output
    colored.write(output / "images", options.images, options.seed + 1)
    for name, colors in (("sees", True), ("does_not_see", False)):
        print(f"\nA network that {name.replace('_', ' ')} colors:", flush=True)
        torch.save(colored.train(seed=options.seed, colors=colors).state_dict(), output / f"{name}.pth")
        main([*colored.arguments(output, colors), "--output", str(output / name)])


if __name__ == "__main__":
    run()
