"""Images whose evidence is known, because it was put there, and small networks that have learned to see it.

Three kinds, each with a class 0 for "nothing there", which is also what the networks say of a plain gray image:

* *digits*: two handwritten digits that overlap a little, each in a tint of its own. Both are classes of the image;
* *patch*: stripes on one small square, whose direction is the class, among clouds and beside a square of noise;
* *channel*: on one small square, stripes of a direction of its own in each color channel. Green's is the class.

Everything follows from seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fgvis_lightning import Explanation, explain
from fgvis_lightning.baselines import (
    LIME,
    RISE,
    CheapMeaningfulPerturbation,
    CheapOcclusion,
    ExcitationBackprop,
    GradCAM,
    Gradient,
    GuidedBackprop,
    Method,
)
from fgvis_lightning.experiments.statistics import bootstrap
from fgvis_lightning.metrics import energy_pointing_game, pointing_game

SIZE = 40
PATCH = 12  # side of a square that tells the class
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
DIGITS = 5  # 0 to 4
DIGIT = 22  # side of the square in which a digit is written
DIRECTIONS = 4
GREEN = 1
DRAWN = 144  # held-out images, of which the first that the network sees right are explained


@dataclass(frozen=True)
class Scenes:
    """Images with what is true of them.

    Attributes:
        images: (B,3,40,40) in [0,1].
        labels: (B,N), N classes that each image has.
        truth: (B,N,40,40), where the evidence for each of these classes is.
    """

    images: Tensor
    labels: Tensor
    truth: Tensor


def clouds(count: int, generator: torch.Generator) -> Tensor:
    """Backgrounds (count,3,40,40) around 0.5: colored clouds with some noise."""
    coarse = F.interpolate(torch.randn(count, 3, 9, 9, generator=generator), SIZE, mode="bilinear")
    return 0.5 + 0.07 * coarse + 0.04 * torch.randn(count, 3, SIZE, SIZE, generator=generator)


def tints(count: int, generator: torch.Generator) -> Tensor:
    """Colors (count,3,1,1), each at a distance of 0.45 from gray."""
    return 0.5 + 0.45 * F.normalize(torch.randn(count, 3, generator=generator), dim=1)[:, :, None, None]


def squares(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two squares (count,1,40,40) of `PATCH` pixels a side, that are apart, as 0 and 1."""
    span = SIZE - PATCH
    first = torch.randint(span + 1, (count, 2), generator=generator)
    # Half a turn away on the torus of places along the axis on which there is more room, anywhere on the other.
    second = torch.randint(span + 1, (count, 2), generator=generator)
    axis = torch.randint(2, (count, 1), generator=generator)
    away = torch.where(first <= span / 2, first + PATCH, first - PATCH).clamp(0, span)
    second = second.scatter(1, axis, away.gather(1, axis))
    place = torch.arange(SIZE)

    def square(corner: Tensor) -> Tensor:
        inside = (place >= corner[..., None]) & (place < corner[..., None] + PATCH)
        return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None].float()

    return square(first), square(second)


def stripes(direction: Tensor, generator: torch.Generator) -> Tensor:
    """Waves (B,40,40) in [-1,1] of 5 pixels, in directions (B,) from 0 to 3, at random phases."""
    angle = direction[:, None, None] * torch.pi / DIRECTIONS
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    phase = torch.rand(len(direction), 1, 1, generator=generator)
    return torch.cos(2 * torch.pi * ((x * angle.cos() + y * angle.sin()) / 5 + phase))


def patch_scenes(count: int, generator: torch.Generator, held_out: bool = False, decoys: float = 0.9) -> Scenes:
    """Kind *patch*; an image of class 0 has the square of noise only, which is in this share of all images."""
    labels = torch.randint(DIRECTIONS + 1, (count,), generator=generator)
    there, decoy = squares(count, generator)
    there = there * (labels > 0).float()[:, None, None, None]
    decoy = decoy * (torch.rand(count, 1, 1, 1, generator=generator) < decoys)
    images = clouds(count, generator)
    wave = stripes(labels - 1, generator)[:, None]
    images = torch.lerp(images, 0.5 + (tints(count, generator) - 0.5) * wave, there)
    noise = torch.randn(count, 1, SIZE, SIZE, generator=generator).clamp(-1.5, 1.5) / 1.1
    images = torch.lerp(images, 0.5 + (tints(count, generator) - 0.5) * noise, decoy)
    return Scenes(images.clamp(0, 1), labels[:, None], there > 0)


def channel_scenes(count: int, generator: torch.Generator, held_out: bool = False) -> Scenes:
    """Kind *channel*; an image of class 0 has stripes in red and blue only."""
    labels = torch.randint(DIRECTIONS + 1, (count,), generator=generator)
    directions = torch.randint(DIRECTIONS, (count, 3), generator=generator)
    directions[:, GREEN] = labels - 1
    there = squares(count, generator)[0].repeat(1, 3, 1, 1)
    there[:, GREEN] *= (labels > 0).float()[:, None, None]
    none = (labels == 0) & (torch.rand(count, generator=generator) < 0.5)
    there[none] = 0
    waves = torch.stack([stripes(direction, generator) for direction in directions.unbind(1)], 1)
    images = torch.lerp(clouds(count, generator), 0.5 + 0.3 * waves, there)
    return Scenes(images.clamp(0, 1), labels[:, None], there[:, GREEN, None] > 0)


def digit_scenes(count: int, generator: torch.Generator, held_out: bool = False) -> Scenes:
    """Kind *digits*; class d + 1 is digit d. Where people's last 400 of 1797 digits are held out, there are always two.

    Else each is left out of one image in four, so that a network learns what one digit alone is, and none.
    """
    ink, digit = handwriting(held_out)
    first, second = (torch.randint(len(ink), (count,), generator=generator) for _ in range(2))
    while (same := digit[first] == digit[second]).any():
        second[same] = torch.randint(len(ink), (int(same.sum()),), generator=generator)
    # Side by side or one above the other: these places overlap, but for their empty margins only a little.
    places = torch.randint(SIZE - DIGIT + 1, (count, 2, 2), generator=generator)
    axis = torch.randint(2, (count,), generator=generator)
    at = torch.arange(count)
    places[at, 0, axis] = torch.randint(4, (count,), generator=generator)
    places[at, 1, axis] = SIZE - DIGIT - torch.randint(4, (count,), generator=generator)
    there = torch.rand(count, 2, generator=generator) < (1 if held_out else 0.75)

    images, shown = clouds(count, generator), []
    place = torch.arange(SIZE)
    for number, which in enumerate((first, second)):
        large = F.interpolate(ink[which][:, None], DIGIT, mode="bilinear") * there[:, number, None, None, None]
        large = F.pad(large, [0, SIZE - DIGIT] * 2)
        rows, columns = (((place - places[:, number, axis, None]) % SIZE) for axis in range(2))
        alpha = large[at[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
        images = torch.lerp(images, 0.65 + 0.35 * torch.rand(count, 3, 1, 1, generator=generator), alpha[:, None])
        shown.append(alpha > 0.25)
    labels = torch.stack([digit[first] + 1, digit[second] + 1], 1)
    labels = torch.where(there, labels, labels.flip(1) * there.flip(1))
    return Scenes(images.clamp(0, 1), labels, torch.stack(shown, 1))


@cache
def handwriting(held_out: bool) -> tuple[Tensor, Tensor]:
    """Real digits (N,8,8) of 0 to 1, written by many people, and which they are (N,): from scikit-learn."""
    data = load_digits(n_class=DIGITS)
    which = slice(-200, None) if held_out else slice(-200)
    return torch.from_numpy(data.images[which]).float() / 16, torch.from_numpy(data.target[which]).long()


# --- networks ---


def build(classes: int, layers: Sequence[tuple[int, int, int]], pool: type[nn.Module]) -> nn.Sequential:
    """Convolutions of some (kernel, width, stride) with batch norm and ReLU, global pooling, linear."""
    modules: list[nn.Module] = []
    channels = 3
    for kernel, width, stride in layers:
        modules += [nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)]
        modules += [nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*modules, pool(1), nn.Flatten(), nn.Linear(channels, classes))


SMALL = [(3, 12, 2), (3, 24, 1), (3, 36, 2), (3, 48, 1)]
WIDE = [(5, 16, 2), (3, 32, 2), (3, 64, 1), (3, 64, 1)]  # its last neurons see a whole digit


@dataclass(frozen=True)
class Kind:
    """Images of one kind, and the network that is trained on them.

    Attributes:
        make: how many, generator, whether held out → images.
        classes: how many, class 0 among them.
        layers: of the network, see `build`.
        pool: its global pooling.
        steps: of its training, each with 64 new images.
        margin: pixels around the truth that count as inside; ink has soft edges, squares have not.
    """

    make: Callable[[int, torch.Generator, bool], Scenes]
    classes: int
    layers: Sequence[tuple[int, int, int]]
    pool: type[nn.Module]
    steps: int
    margin: int = 0

    def train(self, seed: int = 0) -> nn.Module:
        """A network in eval mode. Takes 5 to 20 seconds on one core."""
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build(self.classes, self.layers, self.pool).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, self.steps)
        for _ in range(self.steps):
            scenes = self.make(64, generator, False)
            # An image of two classes asks for one half each.
            target = F.one_hot(scenes.labels, self.classes).float().mean(1)
            logits = network(normalized(scenes.images).to(memory_format=torch.channels_last))
            optimizer.zero_grad()
            F.cross_entropy(logits, target).backward()
            optimizer.step()
            schedule.step()
        return network.eval()

    def accuracy(self, network: nn.Module, count: int = 500, seed: int = 1) -> float:
        """Share of the classes of held-out images that are the likeliest, or among the two likeliest where two are."""
        scenes = self.make(count, torch.Generator().manual_seed(seed), True)
        with torch.no_grad():
            top = network(normalized(scenes.images)).topk(scenes.labels.shape[1]).indices
        return (scenes.labels[:, :, None] == top[:, None]).any(2).float().mean().item()

    def seen(self, network: nn.Module, count: int, seed: int = 2) -> Scenes:
        """Held-out images in which the network sees all that is there: at least half of its share for each class."""
        scenes = self.make(DRAWN, torch.Generator().manual_seed(seed), True)
        with torch.no_grad():
            share = network(normalized(scenes.images)).softmax(1).gather(1, scenes.labels) * scenes.labels.shape[1]
        chosen = ((scenes.labels > 0) & (share > 0.5)).all(1).nonzero()[:count, 0]
        assert len(chosen) == count
        truth = widened(scenes.truth[chosen].flatten(0, 1), self.margin).reshape(count, -1, SIZE, SIZE)
        return Scenes(scenes.images[chosen], scenes.labels[chosen], truth)


KINDS = {
    "digits": Kind(digit_scenes, DIGITS + 1, WIDE, nn.AdaptiveMaxPool2d, 500, margin=1),
    "patch": Kind(patch_scenes, DIRECTIONS + 1, SMALL, nn.AdaptiveAvgPool2d, 300),
    "channel": Kind(channel_scenes, DIRECTIONS + 1, SMALL, nn.AdaptiveAvgPool2d, 200),
}


def normalized(images: Tensor) -> Tensor:
    """As the networks want images: 0 is gray."""
    return (images - MEAN[0]) / STD[0]


# --- measures: (maps, (B,H,W); truth, likewise, 0 or 1) → (B,) ---


def widened(truth: Tensor, pixels: int) -> Tensor:
    """Regions (B,H,W) that are larger by some pixels all around, as 0 and 1."""
    return F.max_pool2d(truth.float()[:, None], 2 * pixels + 1, 1, pixels)[:, 0]


def energy(maps: Tensor, truth: Tensor) -> Tensor:
    """Share of a map's sum that is in a region; what is negative counts as zero."""
    return energy_pointing_game(maps, truth.bool())


def contrast(maps: Tensor, truth: Tensor) -> Tensor:
    """`energy` of what is above the map's median, for methods whose zero means nothing."""
    return energy(maps - maps.flatten(1).median(1).values[:, None, None], truth)


def hit(maps: Tensor, truth: Tensor) -> Tensor:
    """1 where the map's largest value is in a region, else 0."""
    return pointing_game(maps, truth.bool(), tolerance=0)


def channel_share(evidence: Tensor, channel: int) -> Tensor:
    """Share of the evidence (B,3,H,W) that is in one color channel (B,)."""
    return evidence[:, channel].sum((1, 2)) / evidence.sum((1, 2, 3)).clamp(min=1e-30)


def interval(values: Tensor) -> tuple[float, float, float]:
    """Mean of the values (N,), each of another image, and its 95 % bootstrap interval."""
    return bootstrap(values, [str(number) for number in range(len(values))])


# --- methods ---


def others() -> dict[str, Method]:
    """The eight other methods with their papers' values, but for fewer samples and superpixels for small images."""
    return {
        "gradient": Gradient(),
        "guided backprop": GuidedBackprop(),
        "excitation backprop": ExcitationBackprop(),
        "Grad-CAM": GradCAM(),
        "occlusion": CheapOcclusion(),  # a window of 11 pixels, about the square, moved by 3
        "meaningful perturbation": CheapMeaningfulPerturbation(),
        "RISE": RISE(masks=500),
        "LIME": LIME(samples=300, kernel_size=1, max_dist=6),
    }


def fgvis(network: nn.Module, images: Tensor, targets: Tensor, **options: Any) -> Explanation:
    """FGVis as the tests and the benchmark use it: deletion as it is by default."""
    options = {"game": "deletion", **options}
    return explain(network, images, targets, normalize=(MEAN, STD), accelerator="cpu", **options)
