"""Images of objects whose shape, color, or both tell the class, and networks that have learned to see it, or cannot.

Each image shows one object among gray clouds. *neither*: a square or a triangle, in red, green or blue; *color*: these
shapes in orange; *shape*: a ring, in red, green or blue; *both*: a third of its images shows a cross in violet, a third
a cross in one of the three colors, a third a square or a triangle in violet. Red, green and blue change places when
channels are swapped; orange and violet turn into colors that no class has.

Everything follows from seeds.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import save_image

SIZE = 48
CLASSES = ("neither", "color", "shape", "both")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
ORANGE, VIOLET = 30, 285  # hues in degrees; no swap of channels turns one of them into the other
NEUTRAL = (0, 120, 240)
SQUARE, TRIANGLE, RING, CROSS = range(4)


def outlines(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Objects (B,1,48,48) as 0 and 1, of random size, place and turn."""
    count = len(shape)
    radius = torch.empty(count, 1, 1).uniform_(9, 14, generator=generator)
    middle = SIZE / 2 + (SIZE / 2 - 16) * torch.empty(count, 2, 1, 1).uniform_(-1, 1, generator=generator)
    angle = torch.empty(count, 1, 1).uniform_(0, 2 * torch.pi, generator=generator)
    y, x = torch.meshgrid(torch.arange(float(SIZE)), torch.arange(float(SIZE)), indexing="ij")
    y, x = (y - middle[:, 0]) / radius, (x - middle[:, 1]) / radius
    u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    far = (u**2 + v**2).sqrt()
    forms = torch.stack(
        [
            torch.maximum(u.abs(), v.abs()) < 0.8,
            (v < 0.6) & (v > -1 + 1.7 * u.abs()),
            (far < 1.0) & (far > 0.55),
            (torch.minimum(u.abs(), v.abs()) < 0.28) & (far < 1.1),
        ]
    )
    return forms[shape, torch.arange(count), None].float()


def paint(hue: Tensor, generator: torch.Generator) -> Tensor:
    """Colors (B,3,1,1) of hues in degrees, within 8 degrees, with random brightness."""
    hue = hue + torch.empty(len(hue)).uniform_(-8, 8, generator=generator)
    value = torch.empty(len(hue)).uniform_(0.7, 1, generator=generator)
    colors = [colorsys.hsv_to_rgb(float(h) % 360 / 360, 0.85, float(v)) for h, v in zip(hue, value, strict=True)]
    return torch.tensor(colors)[:, :, None, None]


def scenes(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B,3,48,48) in [0,1] of classes (B,)."""
    count = len(labels)
    neutral = torch.tensor(NEUTRAL)[torch.randint(3, (count,), generator=generator)]
    plain = torch.randint(2, (count,), generator=generator)
    lacks = torch.randint(3, (count,), generator=generator)  # 0: the color, 1: the shape, 2: nothing
    hue = torch.where(labels == 1, ORANGE, torch.where((labels == 3) & (lacks != 0), VIOLET, neutral))
    shape = torch.where(labels == 2, RING, torch.where((labels == 3) & (lacks != 1), CROSS, plain))
    clouds = F.interpolate(torch.randn(count, 1, 9, 9, generator=generator), SIZE, mode="bilinear")
    noise = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    image = 0.5 + 0.07 * clouds + 0.03 * noise
    painted = paint(hue.float(), generator) + 0.03 * noise
    return torch.lerp(image, painted, outlines(shape, generator)).clamp(0, 1)


def small_cnn(colors: bool = True) -> nn.Sequential:
    """Of images (B,3,48,48), four classes; without ``colors`` it sees the mean of the channels in place of each."""
    modules: list[nn.Module] = []
    if not colors:
        mean = nn.Conv2d(3, 3, 1, bias=False).requires_grad_(False)
        nn.init.constant_(mean.weight, 1 / 3)
        modules.append(mean)
    for inside, outside, stride in ((3, 16, 2), (16, 32, 2), (32, 64, 1), (64, 64, 2)):
        modules += [nn.Conv2d(inside, outside, 5 if inside == 3 else 3, stride, 1, bias=False)]
        modules += [nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*modules, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, len(CLASSES)))


def train(steps: int = 400, seed: int = 0, colors: bool = True) -> nn.Module:
    """A network in eval mode. Takes half a minute on one core."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = small_cnn(colors)
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps)
    for _ in range(steps):
        labels = torch.randint(len(CLASSES), (64,), generator=generator)
        logits = network((scenes(labels, generator) - MEAN[0]) / STD[0])
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def arguments(folder: Path, colors: bool = True) -> list[str]:
    """Of the command bias, for the network and the images that are in the folder."""
    network = ["--model.network.class_path", "colored.small_cnn", "--model.network.init_args.colors", str(colors)]
    return [
        *("bias", "--data.images", str(folder / "images"), "--data.classes", "[color, shape, both]"),
        *("--data.batch_size", "96"),  # small images: 16 pass together, each in six runs
        *(*network, "--model.classifier.checkpoint", str(folder / f"{'sees' if colors else 'does_not_see'}.pth")),
        *(
            "--model.classifier.size",
            "[48, 48]",
            "--model.classifier.mean",
            "[0.5, 0.5, 0.5]",
            "--model.classifier.std",
            "[0.25, 0.25, 0.25]",
        ),
        *("--model.classifier.classes", "[neither, color, shape, both]"),
        *("--explainer.game", "preservation", "--explainer.iterations", "100", "--trainer.accelerator", "cpu"),
    ]


def write(folder: Path, count: int, seed: int = 1) -> None:
    """So many held-out images of each class, in a folder for each."""
    generator = torch.Generator().manual_seed(seed)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(scenes(torch.full((count,), label), generator)):
            save_image(image, folder / name / f"{number}.png")
