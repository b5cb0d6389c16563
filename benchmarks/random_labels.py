"""Do maps depend on what labels mean? Two networks, one of which was trained on random labels.

Trains a small network on real handwriting, once with its labels and once with the labels permuted at random (Adebayo
et al., NeurIPS 2018, section 4.2), which it can only learn by heart, and compares the maps of held-out digits by
``python train.py sanity --random_labels``::

    python benchmarks/random_labels.py --output results/random_labels

Takes about two minutes on two cores. A method whose maps are the same for both shows digits, not what the network
knows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.utils import save_image

from fgvis_lightning.cli import main

TRAINED, SHOWN = 1000, 16  # images to learn, and to explain
SIZE = 32
METHODS = {
    "gradient": {"class_path": "fgvis_lightning.baselines.Gradient"},
    "guided backprop": {"class_path": "fgvis_lightning.baselines.GuidedBackprop"},
    "excitation backprop": {"class_path": "fgvis_lightning.baselines.ExcitationBackprop"},
    "Grad-CAM": {"class_path": "fgvis_lightning.baselines.GradCAM"},
    "FGVis": {
        "class_path": "fgvis_lightning.baselines.FGVisMethod",
        "init_args": {"game": "deletion", "iterations": 240, "noise": 0.1},
    },
}


def small_cnn() -> nn.Sequential:
    """Of images (B,3,32,32), ten classes; large enough to learn a thousand random labels by heart."""
    modules: list[nn.Module] = []
    for inside, outside, stride in ((3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 128, 2)):
        modules += [nn.Conv2d(inside, outside, 3, stride, 1), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(128 * 16, 10)).eval()


def train(images: Tensor, labels: Tensor, seed: int = 0) -> tuple[nn.Module, float]:
    """A network, and the share of the images that it gets right."""
    torch.manual_seed(seed)
    network = small_cnn().train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(40):
        for batch in torch.randperm(len(images)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        return network, (network(images).argmax(1) == labels).float().mean().item()


def run() -> None:
    """Train both, write their weights and the images to explain, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/random_labels"))
    output: Path = parser.parse_args().output
    (output / "images").mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    ink = torch.from_numpy(digits.images).float()[:, None] / 16
    images = F.interpolate(ink, SIZE, mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target).long()
    shuffled = labels[:TRAINED][torch.randperm(TRAINED, generator=torch.Generator().manual_seed(0))]
    for name, taught in (("labels", labels[:TRAINED]), ("random_labels", shuffled)):
        network, right = train((images[:TRAINED] - 0.5) / 0.25, taught)
        torch.save(network.state_dict(), output / f"{name}.pth")
        print(f"{name}: {100 * right:.1f} % of {TRAINED} images learned", flush=True)
    listing = ["path,target"]
    for number in range(TRAINED, TRAINED + SHOWN):
        save_image(images[number], output / "images" / f"{number}.png")
        listing.append(f"images/{number}.png,{labels[number]}")
    (output / "images.csv").write_text("\n".join(listing) + "\n")
    (output / "methods.yaml").write_text(yaml.safe_dump({"methods": METHODS}, sort_keys=False))
    main(
        [
            *("sanity", "--config", str(output / "methods.yaml"), "--images", str(output / "images.csv")),
            *("--targets", "label", "--output", str(output), "--random_labels", str(output / "random_labels.pth")),
            *(
                "--model.network",
                "random_labels.small_cnn",
                "--model.classifier.checkpoint",
                str(output / "labels.pth"),
            ),
            *("--model.classifier.mean", "[0.5, 0.5, 0.5]", "--model.classifier.std", "[0.25, 0.25, 0.25]"),
            *("--model.classifier.size", f"[{SIZE}, {SIZE}]"),
        ]
    )


if __name__ == "__main__":
    run()
