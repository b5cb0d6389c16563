"""Is the evidence where it was put, in networks with residual streams?

Trains a small ConvNeXt and a small vision transformer on the squares of stripes of ``tests/planted.py``, and explains
held-out images with the gates that the container puts, and with those behind activations alone::

    python benchmarks/planted_streams.py --images 24

Prints the share of the evidence that is in the square, which is 0.09 of the image, with 95 % bootstrap intervals over
images; the size of the evidence; and for how many images the level was reached. Takes five minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from common import header, row
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from planted import KINDS, SIZE, energy, fgvis, interval, normalized

NETWORKS = {
    "ConvNeXt": (
        partial(ConvNeXt, depths=(1, 1, 1, 1), dims=(16, 32, 48, 64), patch_size=2, kernel_sizes=3, ls_init_value=None),
        3000,
    ),
    "vision transformer": (
        partial(
            VisionTransformer, SIZE, patch_size=4, embed_dim=64, depth=3, num_heads=4, mlp_ratio=2, global_pool="avg"
        ),
        1500,
    ),
}
"""Networks, and steps of their training, each with 64 new images."""

SETTINGS = (("deletion", 0.1), ("preservation", 0.5), ("preservation", 1.0))
SQUARE = KINDS["patch"]


def trained(name: str, seed: int) -> nn.Module:
    """A network in eval mode."""
    make, steps = NETWORKS[name]
    torch.manual_seed(seed)
    network, generator = make(num_classes=SQUARE.classes), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        scenes = SQUARE.make(64, generator, False)
        optimizer.zero_grad()
        F.cross_entropy(network(normalized(scenes.images)), scenes.labels[:, 0]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*meets no gate")
    header("network", "accuracy", "gates", "game", "level", "in the square", "evidence", "reached")
    for name in NETWORKS:
        network = trained(name, options.seed)
        scenes, accuracy = SQUARE.seen(network, options.images), SQUARE.accuracy(network)
        for gates, exempt in (("all", []), ("activations alone", ["residual", "normalization"])):
            for game, level in SETTINGS:
                found = fgvis(network, scenes.images, scenes.labels[:, 0], game=game, level=level, exempt=exempt)
                assert found.feasible is not None
                inside = energy(found.evidence.mean(1), scenes.truth[:, 0])
                mean, low, high = interval(inside)
                share, size = f"{mean:.2f} ({low:.2f} to {high:.2f})", 1 - float(found.sparsity.mean())
                row(name, f"{accuracy:.3f}", gates, game, level, share, f"{size:.3f}", int(found.feasible.sum()))


if __name__ == "__main__":
    main()
