"""Does the defense hold on residual streams, and what does it leave of the evidence?

Trains small networks of several families to say which of some photos a 48-pixel crop comes from, and attacks them::

    python benchmarks/residual_streams.py PHOTO … --networks resnet convnext vit --seeds 0 1 --weights trained/

For how many of the crops the least likely class reaches p > 0.5 at some time, and, in parentheses, holds it in the last
ten iterations: without gates, with gates behind activations alone, and with those that the container puts
(`fgvis_lightning.defense.graph`), strict, restoring, restoring without those behind normalizations, and without those
behind attention. These last four counts are those of the strongest attacks of all optimizers and starts of
``tests/attacking.py``; for the others Adam from 0 is enough. "Small steps" is SGD with a learning rate of 0.01 for five
times as many iterations, from 0 and 0.5. Classes that the network sees in an empty crop are not attacked, since an
empty mask shows them. Then the evidence that preservation needs for the class that is there, by its default settings,
and for how many crops it reaches the full score.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.convnext import ConvNeXt
from timm.models.metaformer import GroupNorm1, MetaFormer, Pooling
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from fgvis_lightning import DefendedCNN, explain
from fgvis_lightning.defense.nonlinearities import KINDS
from fgvis_lightning.networks.classifier import freeze

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from attacking import OPTIMIZERS, STARTS, attack, uniform

SIZE = 48
MEAN, STD = 0.45, 0.25
NETWORKS = {
    "resnet": partial(timm.create_model, "test_resnet"),
    "mobilenet": partial(timm.create_model, "mobilenetv2_035"),
    "efficientnet": partial(timm.create_model, "test_efficientnet"),
    "mobilenetv4": partial(timm.create_model, "mobilenetv4_conv_small_050"),
    "convnext": partial(ConvNeXt, depths=(1, 1, 2, 1), dims=(16, 32, 64, 96), patch_size=2, ls_init_value=None),
    "convnextv2": partial(
        ConvNeXt, depths=(1, 1, 2, 1), dims=(16, 32, 64, 96), patch_size=2, ls_init_value=None, use_grn=True
    ),
    "edgenext": partial(timm.create_model, "edgenext_xx_small"),
    "poolformer": partial(
        MetaFormer,
        depths=(1, 1, 2, 1),
        dims=(24, 48, 96, 128),
        token_mixers=Pooling,
        norm_layers=GroupNorm1,
        use_mlp_head=False,
    ),
    "swin": partial(
        SwinTransformer,
        img_size=SIZE,
        patch_size=2,
        window_size=6,
        embed_dim=24,
        depths=(1, 1, 2),
        num_heads=(2, 4, 8),
    ),
    "vit": partial(VisionTransformer, SIZE, patch_size=6, embed_dim=96, depth=4, num_heads=4, mlp_ratio=3),
}
"""Networks of 0.1 to 1.2 million weights."""

GATES: dict[str, dict[str, Any]] = {
    "none": {},
    "activations": {"gate": "restoring", "exempt": KINDS},
    "strict": {"gate": "strict"},
    "restoring": {"gate": "restoring"},
    "not normalizations": {"gate": "restoring", "exempt": ["normalization"]},
    "not attention": {"gate": "restoring", "exempt": ["attention"]},
    "small steps": {"gate": "restoring"},
}

SMALL_STEPS = partial(torch.optim.SGD, lr=0.01)
"""A mask that moves so slowly that a gate closes before a neuron is far outside its range."""


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


def train(network: nn.Module, photos: list[Tensor], steps: int, generator: torch.Generator) -> None:
    """AdamW with a learning rate that rises for 60 steps and falls linearly."""
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    network.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 60) * (0.002 + 0.998 * (1 - step / steps))
        labels = torch.randint(len(photos), (64,), generator=generator)
        logits = network((crops(photos, labels, generator) - MEAN) / STD)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


def trained(name: str, seed: int, photos: list[Tensor], steps: int, weights: Path | None) -> nn.Module:
    """A network in eval mode, from its weights' file where there is one."""
    torch.manual_seed(seed)
    network = NETWORKS[name](num_classes=len(photos))
    file = None if weights is None else weights / f"{name}_{seed}.pt"
    if file is not None and file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
    else:
        train(network, photos, steps, torch.Generator().manual_seed(seed))
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), file)
    return network.eval()


EMPTY = 0.05
"""A class with a higher probability on an empty crop is not attacked."""


@torch.no_grad()
def absent(network: nn.Module, x: Tensor) -> Tensor:
    """The least likely class of each image (B,3,H,W) among those that the network does not see in an empty one."""
    shown = network(torch.zeros_like(x[:1])).softmax(1) > EMPTY
    return network(x).masked_fill(shown, float("inf")).argmin(1)


def attacks(gates: str, iterations: int) -> list[tuple[Any, Any, int]]:
    """Optimizers, starts and iterations of the attacks on one of `GATES`."""
    if gates in ("none", "activations"):
        return [(OPTIMIZERS["adam"], STARTS["0"], iterations)]
    if gates == "small steps":
        return [(SMALL_STEPS, STARTS[start], 5 * iterations) for start in ("0", "0.5")]
    starts = [*STARTS.values(), partial(uniform, seed=1)]
    return [(optimizer, start, iterations) for optimizer in OPTIMIZERS.values() for start in starts]


def strongest(network: nn.Module, gates: str, x: Tensor, iterations: int) -> str:
    """For how many images (B,3,H,W) an absent class reaches p > 0.5, and holds it, by the strongest attacks."""
    least, attacked = absent(network, x), network
    if gates != "none":
        attacked = DefendedCNN(network, **GATES[gates])
        attacked.record(x)
        if gates == "not attention" and not attacked.coverage.exempt["attention"]:
            return ""  # no attention, so the same as restoring
    found = [attack(attacked, x, least, *one) for one in attacks(gates, iterations)]
    at_some_time, held = (max(int((getattr(one, name) > 0.5).sum()) for one in found) for name in ("highest", "held"))
    return f"{at_some_time} ({held})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--gates", nargs="+", choices=GATES, default=list(GATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1500, help="of training, for each network")
    parser.add_argument("--iterations", type=int, default=100, help="of each attack")
    parser.add_argument("--weights", type=Path, help="folder that keeps the trained networks")
    options = parser.parse_args()
    photos = [
        resize(pil_to_tensor(Image.open(path).convert("RGB")), [128], antialias=True) / 255
        for path in options.photos[:32]
    ]
    print(f"of {len(photos)} crops, {options.iterations} iterations\n")
    print(f"| network | seed | accuracy | {' | '.join(options.gates)} | evidence | full score |")
    print("|" + "---|" * (5 + len(options.gates)))
    for name in options.networks:
        for seed in options.seeds:
            network = trained(name, seed, photos, options.steps, options.weights)
            frozen, generator = freeze(network), torch.Generator().manual_seed(1000 + seed)
            labels = torch.arange(len(photos))
            many = labels.repeat(10)
            with torch.no_grad():
                held_out = frozen((crops(photos, many, generator) - MEAN) / STD).argmax(1)
            images = crops(photos, labels, generator)
            counts = [strongest(frozen, gates, (images - MEAN) / STD, options.iterations) for gates in options.gates]
            found = explain(network, images, labels, normalize=((MEAN,) * 3, (STD,) * 3))
            assert found.feasible is not None
            evidence = f"{1 - found.sparsity.mean():.3f} | {int(found.feasible.sum())}"
            accuracy = (held_out == many).float().mean()
            print(f"| {name} | {seed} | {accuracy:.3f} | {' | '.join(map(str, counts))} | {evidence} |", flush=True)


if __name__ == "__main__":
    main()
