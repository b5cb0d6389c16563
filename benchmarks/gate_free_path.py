"""Does the defense hold where a path from image to logits meets no gate?

Trains small networks to say which of some photos a 48-pixel crop comes from, and has the generation game with
λ = 0 look for the least likely class, which is not there::

    python benchmarks/gate_free_path.py PHOTO … --networks resnet convnext vit

Prints for how many of 32 crops the class reaches p > 0.5, without and with the defense. One network of each
kind and seed: large differences mean something, small ones do not.
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from fgvis_lightning import explain

SIZE = 48


def build(name: str, classes: int) -> nn.Module:
    """A network of about 0.1 to 0.4 million weights."""
    if name == "vit":
        return VisionTransformer(
            SIZE, patch_size=6, embed_dim=96, depth=4, num_heads=4, mlp_ratio=3, num_classes=classes
        )
    if name.startswith("convnext"):
        network = ConvNeXt(
            num_classes=classes, depths=(1, 1, 2, 1), dims=(16, 32, 64, 96), patch_size=2, ls_init_value=None
        )
        if name == "convnext_stem_activation":
            network.stem = nn.Sequential(network.stem, nn.GELU())
        return network
    return timm.create_model({"resnet": "test_resnet", "mobilenet": "mobilenetv2_035"}[name], num_classes=classes)


def crops(photos: list[Tensor], labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop (3,48,48) of each labelled photo, mirrored half of the time, of random brightness, in [0,1]."""
    images = []
    for label in labels.tolist():
        photo = photos[label]
        top, left = (int(torch.randint(side - SIZE + 1, (), generator=generator)) for side in photo.shape[1:])
        crop = photo[:, top : top + SIZE, left : left + SIZE]
        images.append(crop.flip(2) if torch.rand((), generator=generator) < 0.5 else crop)
    brightness = 0.7 + 0.6 * torch.rand(len(labels), 1, 1, 1, generator=generator)
    return (torch.stack(images) * brightness).clamp(0, 1)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path)
    names = ["resnet", "mobilenet", "convnext", "convnext_stem_activation", "vit"]
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--seconds", type=float, default=150, help="of training, for each network")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    photos = [
        resize(pil_to_tensor(Image.open(path).convert("RGB")), [128], antialias=True) / 255
        for path in options.photos[:32]
    ]
    mean, std = (0.45, 0.45, 0.45), (0.25, 0.25, 0.25)
    print(f"{'network':26} accuracy  undefended  defended  defended, Adam   (of {len(photos)} crops)")
    for name in options.networks:
        torch.manual_seed(options.seed)
        network = build(name, len(photos))
        generator = torch.Generator().manual_seed(options.seed)
        train(network, photos, options.seconds, generator)
        with torch.no_grad():
            labels = torch.arange(len(photos)).repeat(10)
            held_out = network((crops(photos, labels, generator) - mean[0]) / std[0]).argmax(1)
            images = crops(photos, torch.arange(len(photos)), generator)
            least = network((images - mean[0]) / std[0]).argmin(1)
        adam = partial(torch.optim.Adam, lr=0.05)
        reached = []
        for run in ({"defended": False}, {}, {"optimizer": adam}):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*meets no gate")
                explanation = explain(
                    network,
                    images,
                    least,
                    game="generation",
                    lam=0.0,
                    score="log_probability",
                    iterations=options.iterations,
                    normalize=(mean, std),
                    exempt=["softmax"] if name == "vit" else [],
                    **run,
                )
            reached.append(int((explanation.score_explanation > 0.5).sum()))
        accuracy = (held_out == labels).float().mean()
        print(f"{name:26} {accuracy:8.3f}  {reached[0]:10}  {reached[1]:8}  {reached[2]:14}", flush=True)


def train(network: nn.Module, photos: list[Tensor], seconds: float, generator: torch.Generator) -> None:
    """AdamW with a cosine schedule by the clock; leaves the network in eval mode."""
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    start, step = time.monotonic(), 0
    network.train()
    while (past := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 60) * (0.002 + 0.998 * (1 - past))
        labels = torch.randint(len(photos), (64,), generator=generator)
        logits = network((crops(photos, labels, generator) - 0.45) / 0.25)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
    network.eval()


if __name__ == "__main__":
    main()
