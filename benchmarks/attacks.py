"""Does the defense hold, whichever optimizer attacks it, and from wherever?

    python benchmarks/attacks.py PHOTO … --classes 2 --iterations 60

Masks are optimized for nothing but the probability of a class that is not on the photo (``tests/attacking.py``), by
several optimizers, from several starts, with either gate and with none. The classes are those of ``--data.targets
absent2``: so many of the less probable half, evenly spread. For how many pairs of a photo and a class it became the
network's top class on the way, and in brackets its largest probability there.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from common import DEVICE, header, parser, row

from fgvis_lightning.data.images import load_image
from fgvis_lightning.data.items import list_items
from fgvis_lightning.networks.folding import folded
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.networks.logits import resolve

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from attacking import GATES, OPTIMIZERS, STARTS, attack, gated, uniform


def main() -> None:
    """Print the table."""
    made = parser(__doc__)
    made.set_defaults(iterations=60)
    made.add_argument("--classes", type=int, default=2)
    made.add_argument("--batch_size", type=int, default=8)
    options = made.parse_args()

    classifier = load_classifier(options.network)
    preprocessing = classifier.preprocessing
    network = folded(classifier.network, (3, *preprocessing.size))[0].to(DEVICE).to(memory_format=torch.channels_last)
    items = list_items(options.photos, f"absent{options.classes}", classifier)
    images = torch.stack([load_image(item.path, preprocessing) for item in items]).to(DEVICE) / 255
    mean, std = (images.new_tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    x = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
    wanted = torch.tensor([item.target for item in items], device=DEVICE)

    batches = []  # of images, their classes, and a network for each gate
    for part, ranks in zip(x.split(options.batch_size), wanted.split(options.batch_size), strict=True):
        with torch.no_grad():
            targets = resolve(ranks, network(part), classifier)
        batches.append((part, targets, {gate: gated(network, gate, part) for gate in GATES}))

    print(f"{len(items)} pairs, {classifier.name}, {options.iterations} iterations\n")
    header("optimizer", "start", *GATES)
    starts = {**STARTS, "random": partial(uniform, seed=options.seed)}
    for name, optimizer in OPTIMIZERS.items():
        for start, mask in starts.items():
            cells = []
            for gate in GATES:
                found = [
                    attack(networks[gate], part, targets, optimizer, mask, options.iterations)
                    for part, targets, networks in batches
                ]
                tops = sum(int(one.top.sum()) for one in found)
                highest = max(one.highest.max().item() for one in found)
                cells.append(f"{tops} ({highest:.4f})")
            row(name, start, *cells)


if __name__ == "__main__":
    main()
