"""Is the evidence where it was put, in networks with residual streams?

Trains a small ConvNeXt and a small vision transformer on images of ``tests/planted.py`` whose evidence is known:
stripes on a square, stripes in the green channel, and two digits. Explains held-out images with the container's gates,
with gates behind activations alone, and by methods made for such networks::

    python benchmarks/planted_streams.py --kinds patch digits channel --images 24

Prints the share of the evidence that is inside: in the square (0.09 of the image), in the square's green channel (0.03
of the image's values), on the digit of the target class; the share on the other digit; the size of the evidence; and
for how many images the level was reached. 95 % bootstrap intervals over images. One kind takes five minutes on two
cores.

The other methods are Grad-CAM by pytorch-grad-cam, with tokens as pixels; attention rollout (Abnar and Zuidema, ACL
2020, section 3); and the relevance of Chefer et al. (ICCV 2021, eq. 5 and 6), written here because no library that the
package uses has them.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from common import header, row
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from planted import GREEN, KINDS, SIZE, Kind, contrast, energy, fgvis, interval, normalized

from fgvis_lightning.defense.nonlinearities import KINDS as STREAM_KINDS

PATCHES = 4  # pixels of a side of a token
NETWORKS = {
    "ConvNeXt": (
        partial(ConvNeXt, depths=(1, 1, 1, 1), dims=(16, 32, 48, 64), patch_size=2, kernel_sizes=3, ls_init_value=None),
        3000,
    ),
    "vision transformer": (
        partial(
            VisionTransformer,
            SIZE,
            patch_size=PATCHES,
            embed_dim=64,
            depth=3,
            num_heads=4,
            mlp_ratio=2,
            global_pool="avg",
        ),
        1500,
    ),
}
"""Networks, and steps of their training, each with 64 new images."""

SETTINGS = (("deletion", 0.1), ("preservation", 0.5), ("preservation", 1.0))


def trained(name: str, kind: Kind, seed: int) -> nn.Module:
    """A network in eval mode."""
    make, steps = NETWORKS[name]
    torch.manual_seed(seed)
    network, generator = make(num_classes=kind.classes), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        scenes = kind.make(64, generator, False)
        target = F.one_hot(scenes.labels, kind.classes).float().mean(1)  # one half each for an image of two classes
        optimizer.zero_grad()
        F.cross_entropy(network(normalized(scenes.images)), target).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


# --- methods made for such networks: (network, images (B,3,H,W), classes (B,)) → maps (B,H,W) ---


def upscaled(tokens: Tensor) -> Tensor:
    """Maps (B,H,W) of values of tokens (B,N), a class token left out."""
    side = SIZE // PATCHES
    small = tokens[:, -side * side :].reshape(-1, 1, side, side)
    return F.interpolate(small, SIZE, mode="bilinear")[:, 0]


def attention(network: nn.Module, x: Tensor, targets: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Attention weights (B,heads,N,N) of all blocks, and the gradients of the target classes' logits by them."""
    found: list[Tensor] = []
    handles = []
    for block in network.blocks:
        block.attn.fused_attn = False
        hook = lambda module, args, output: found.append(output)  # noqa: E731
        handles.append(block.attn.attn_drop.register_forward_hook(hook))
    try:
        logits = network(x)
    finally:
        for handle in handles:
            handle.remove()
    return found, list(torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), found))


def attention_rollout(network: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """Abnar and Zuidema 2020: products of (A + I)/2, heads averaged; the same for every class."""
    weights, _ = attention(network, x, targets)
    total = torch.eye(weights[0].shape[-1])
    for layer in weights:
        total = (layer.mean(1) + torch.eye(layer.shape[-1])) / 2 @ total
    return upscaled(total[:, 1:].mean(1).detach())  # the pooling averages all tokens but the class token


def chefer(network: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """Chefer et al. 2021, eq. 5 and 6: R ← R + Ā R, Ā the positive part of attention × gradient, heads averaged."""
    weights, gradients = attention(network, x, targets)
    total = torch.eye(weights[0].shape[-1]).expand(len(x), -1, -1)
    for layer, gradient in zip(weights, gradients, strict=True):
        total = total + (layer * gradient).clamp(min=0).mean(1) @ total
    total = total - torch.eye(weights[0].shape[-1])  # what a token has of itself tells tokens not apart
    return upscaled(total[:, 1:].mean(1).detach())


def grad_cam(network: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """Grad-CAM at the last stage; at the last block's first normalization where there are tokens."""
    side = SIZE // PATCHES
    if isinstance(network, VisionTransformer):
        layer = network.blocks[-1].norm1
        as_pixels = lambda y: y[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))  # noqa: E731
    else:
        layer, as_pixels = network.stages[-1], None
    with GradCAM(network, [layer], reshape_transform=as_pixels) as cam:
        return torch.from_numpy(cam(x, [ClassifierOutputTarget(int(target)) for target in targets]))


RIVALS: dict[str, dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]]] = {
    "ConvNeXt": {"Grad-CAM": grad_cam},
    "vision transformer": {"Grad-CAM": grad_cam, "attention rollout": attention_rollout, "Chefer et al.": chefer},
}


def shares(maps: Tensor, truth: Tensor, measure: Callable[[Tensor, Tensor], Tensor]) -> tuple[str, str]:
    """Shares of maps (B,H,W) in the regions (B,N,H,W) of the target class, with its interval, and of the other one."""
    inside = "{:.2f} ({:.2f} to {:.2f})".format(*interval(measure(maps, truth[:, 0])))
    return inside, f"{measure(maps, truth[:, 1]).mean():.2f}" if truth.shape[1] > 1 else ""


def green_first(evidence: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The green channel beside the sum of the others (B,H,2W), and where its evidence is to be (B,1,H,2W)."""
    green = evidence[:, GREEN]
    return torch.cat([green, evidence.sum(1) - green], 2), torch.cat([truth, torch.zeros_like(truth)], 3)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=["patch"])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*meets no gate")
    header("kind", "network", "accuracy", "method", "inside", "on the other digit", "evidence", "reached")
    for kind_name in options.kinds:
        kind = KINDS[kind_name]
        for name in options.networks:
            network = trained(name, kind, options.seed)
            scenes, start = kind.seen(network, options.images), (kind_name, name, f"{kind.accuracy(network):.3f}")
            x, targets = normalized(scenes.images), scenes.labels[:, 0]
            for gates, exempt in (("", []), (", activations alone", sorted(STREAM_KINDS))):
                for game, level in SETTINGS:
                    found = fgvis(network, scenes.images, targets, game=game, level=level, exempt=exempt)
                    assert found.feasible is not None
                    maps, truth = found.evidence.mean(1), scenes.truth
                    if kind_name == "channel":
                        maps, truth = green_first(found.evidence, truth)
                    size = f"{1 - float(found.sparsity.mean()):.3f}"
                    method = f"FGVis, {game} {level}{gates}"
                    row(*start, method, *shares(maps, truth, energy), size, int(found.feasible.sum()))
            for method, attribute in RIVALS[name].items() if kind_name != "channel" else ():  # they see no channels
                row(*start, method, *shares(attribute(network, x, targets), scenes.truth, contrast), "", "")


if __name__ == "__main__":
    main()
