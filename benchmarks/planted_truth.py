"""Is the evidence where it was put? Small networks, and images of which it is known what they must look at.

Trains a network on each of three kinds of images, which `tests/planted.py` tells of, and explains held-out ones
by FGVis and eight other methods::

    python benchmarks/planted_truth.py --figure planted_truth.png

Prints Markdown tables. Means over the images, in brackets where 95 % of bootstrap samples of the images have them.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import header, row
from matplotlib.figure import Figure
from torch import Tensor, nn

from fgvis_lightning import Explanation
from fgvis_lightning.experiments.output import save_figure
from fgvis_lightning.method.games import log_odds
from fgvis_lightning.results.figures import brightened, explanation_image, grid, heat

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from planted import (
    GREEN,
    KINDS,
    Scenes,
    channel_share,
    contrast,
    energy,
    fgvis,
    hit,
    interval,
    normalized,
    others,
)

SETTINGS = (
    ("deletion", 0.1, 0.0),
    ("repression", 0.1, 0.0),
    ("preservation", 1.0, 0.0),
    ("preservation", 0.5, 0.0),
)
"""Games with levels and noise; the first is what is compared with other methods."""

WAVES = ("stripes |", "stripes /", "stripes –", "stripes \\")
INCHES = 280 / 300  # of a picture: seven dots for each pixel


def shown(values: Tensor) -> str:
    """Mean and interval."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*interval(values))


def over_classes(measure: Callable[[Tensor, Tensor], Tensor], maps: Tensor, truth: Tensor) -> Tensor:
    """A measure's mean over an image's classes (B,), from maps and truth (B,N,H,W)."""
    return torch.stack([measure(maps[:, n], truth[:, n]) for n in range(maps.shape[1])], 1).mean(1)


def elsewhere(maps: Tensor, truth: Tensor) -> Tensor:
    """How much of the energy is on the other class's digit (B,)."""
    return over_classes(energy, maps, truth.flip(1))


def first(scenes: Scenes, count: int) -> Scenes:
    """The first of the images."""
    return Scenes(scenes.images[:count], scenes.labels[:count], scenes.truth[:count])


def run(networks: dict[str, nn.Module], scenes: dict[str, Scenes], **options: Any) -> dict[str, list[Explanation]]:
    """FGVis on all images, for each kind and each class that an image has."""
    return {
        name: [fgvis(networks[name], part.images, targets, **options) for targets in part.labels.unbind(1)]
        for name, part in scenes.items()
    }


def planted(name: str, scenes: Scenes) -> Tensor:
    """What the evidence should be (B,N,3,40,40), 0 or 1: all of the truth's pixels, or their green."""
    truth = scenes.truth[:, :, None].repeat(1, 1, 3, 1, 1)
    if name == "channel":
        truth[:, :, [channel for channel in range(3) if channel != GREEN]] = 0
    return truth


@torch.no_grad()
def needed(name: str, network: nn.Module, scenes: Scenes, explanations: Sequence[Explanation]) -> None:
    """Print what the evidence outside the truth is for: log-odds without any, and without as much from inside."""
    x = normalized(scenes.images)
    rows = []
    for number, explanation in enumerate(explanations):
        evidence, truth = explanation.evidence, planted(name, scenes)[:, number]
        outside = evidence * (1 - truth)
        share = outside.sum((1, 2, 3)) / (evidence * truth).sum((1, 2, 3))
        kept = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) >= share[:, None, None, None]
        parts = evidence, evidence * truth, outside + evidence * truth * kept
        targets = explanation.targets
        rows.append([log_odds(network(image), targets) for image in (x, *(x * (1 - part) for part in parts))])
    image, explained, without, less = (torch.cat(values) for values in zip(*rows, strict=True))
    row(name, *(f"{values.mean():.2f}" for values in (image, explained, without, less)))


@torch.no_grad()
def is_true(name: str, network: nn.Module, scenes: Scenes) -> None:
    """Print whether the network looks where it should: its log-odds with and without what was planted."""
    x = normalized(scenes.images)
    rows = []
    for targets, region in zip(scenes.labels.unbind(1), planted(name, scenes).unbind(1), strict=True):
        rows.append([log_odds(network(image), targets) for image in (x, x * region, x * (1 - region))])
    image, alone, without = (torch.stack(parts, 1) for parts in zip(*rows, strict=True))
    gray = network(torch.zeros_like(x[:1])).softmax(1)[0]
    row(
        name,
        f"{KINDS[name].accuracy(network):.3f}",
        f"{gray[0]:.2f}",
        shown(image.mean(1)),
        shown(alone.mean(1)),
        f"{(alone < image).float().mean():.2f}",
        shown(without.mean(1)),
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24, help="of each kind")
    parser.add_argument("--settings_images", type=int, default=8, help="of each kind, for the table of settings")
    parser.add_argument("--iterations", type=int, default=50, help="of FGVis")
    parser.add_argument("--seed", type=int, default=0, help="of the networks")
    parser.add_argument("--figure", type=Path, help="figure to draw, as PDF and as PNG")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers")

    networks = {name: kind.train(options.seed) for name, kind in KINDS.items()}
    scenes = {name: kind.seen(networks[name], options.images) for name, kind in KINDS.items()}
    print(
        "What the networks have learned. Log-odds of the class, on the image, on the truth alone on gray, without it:\n"
    )
    header("images", "accuracy", "p of nothing on gray", "image", "truth alone", "is less for", "truth gone")
    for name, network in networks.items():
        is_true(name, network, scenes[name])

    print("\nFGVis, share of the evidence in the truth (channel: in the green channel; of that, in the square):\n")
    header(
        "game", "level", "noise", "digits: own", "digits: the other", "patch", "channel", "in its square", "mean mask"
    )
    few = {name: first(part, options.settings_images) for name, part in scenes.items()}
    for game, level, noise in SETTINGS:
        made = run(networks, few, game=game, level=level, noise=noise, iterations=options.iterations)
        digits, patch = (torch.stack([e.evidence.mean(1) for e in made[name]], 1) for name in ("digits", "patch"))
        (channel,) = made["channel"]
        row(
            game,
            level,
            noise,
            shown(over_classes(energy, digits, few["digits"].truth)),
            shown(elsewhere(digits, few["digits"].truth)),
            shown(over_classes(energy, patch, few["patch"].truth)),
            shown(channel_share(channel.evidence, GREEN)),
            shown(energy(channel.evidence[:, GREEN], few["channel"].truth[:, 0])),
            ", ".join(f"{torch.stack([e.evidence.mean() for e in parts]).mean():.3f}" for parts in made.values()),
        )

    found = run(networks, scenes, iterations=options.iterations)
    undefended = run(networks, scenes, iterations=options.iterations, defended=False)
    (channel,), (free,) = found["channel"], undefended["channel"]
    print("\nchannel: share of the evidence that is in green, of green's in the square\n")
    header("method", "green", "in its square")
    for label, made_by in (("FGVis", channel), ("without its defense", free)):
        green = made_by.evidence[:, GREEN]
        row(label, shown(channel_share(made_by.evidence, GREEN)), shown(energy(green, scenes["channel"].truth[:, 0])))

    print("\nWhat FGVis's evidence outside the truth is for. Mean log-odds of the class:\n")
    header("images", "image", "evidence deleted", "only that in the truth", "as much less of that in the truth")
    for name, network in networks.items():
        needed(name, network, scenes[name], found[name])

    for name in ("digits", "patch"):
        truth, x = scenes[name].truth, normalized(scenes[name].images)
        maps = {
            label: torch.stack([method(networks[name], x, targets) for targets in scenes[name].labels.unbind(1)], 1)
            for label, method in others().items()
        }
        for label, explanations in (("FGVis without its defense", undefended[name]), ("FGVis", found[name])):
            maps[label] = torch.stack([explanation.evidence.mean(1) for explanation in explanations], 1)
        print(f"\n{name}: share of a map that is in the truth, which is {truth.mean():.3f} of the image\n")
        extra = ["on the other digit"] if name == "digits" else []
        header("method", "energy", *extra, "FGVis has more by", "of what is above the median", "largest value")
        own = over_classes(energy, maps["FGVis"], truth)
        for label, values in maps.items():
            inside = over_classes(energy, values, truth)
            row(
                label,
                shown(inside),
                *([shown(elsewhere(values, truth))] if extra else []),
                shown(own - inside) if label != "FGVis" else "",
                shown(over_classes(contrast, values, truth)),
                shown(over_classes(hit, values, truth)),
            )
    if options.figure:
        save_figure(options.figure.with_suffix(""), draw(networks, scenes, found))


def draw(networks: dict[str, nn.Module], scenes: dict[str, Scenes], found: dict[str, list[Explanation]]) -> Figure:
    """The first images of each kind, their truth, the maps of all methods and FGVis's mask by color channel."""
    rows, names = [], []
    for kind, count in (("digits", 2), ("patch", 2), ("channel", 2)):
        part = scenes[kind]
        x = normalized(part.images[:count])
        classes = list(enumerate(part.labels[:count].unbind(1)))
        maps = {
            label: [method(networks[kind], x, targets) for _, targets in classes] for label, method in others().items()
        }
        maps["FGVis"] = [explanation.evidence.mean(1)[:count] for explanation in found[kind]]
        for index in range(count):
            for number, targets in classes:
                image, truth = part.images[index], planted(kind, part)[index, number]
                inside = part.truth[index : index + 1, number]
                evidence = found[kind][number].evidence[index]
                pictures = [(image, ""), (explanation_image(image, truth, torch.full((3, 1, 1), 0.5)), "")]
                for made in maps.values():
                    own = made[number][index]
                    pictures.append((heat(own), f"{energy(own[None], inside).item():.0%}"))
                share = f"{channel_share(evidence[None], GREEN).item():.0%} green" if kind == "channel" else ""
                rows.append([*pictures, (brightened(evidence), share)])
                label = int(targets[index])
                names.append(f"digit {label - 1}" if kind == "digits" else f"{kind}:\n{WAVES[label - 1]}")
    columns = ["image", "truth", *(label.replace(" ", "\n", 1) for label in maps), "FGVis's mask,\nin its colors"]
    note = (
        "Below: the share of the map that is in the truth (channel: in its square). The first images, not chosen ones."
    )
    return grid(rows, columns, names, inches=INCHES, note=note)


if __name__ == "__main__":
    main()
