"""Measurements of a bias analysis, by image and by class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fgvis_lightning.bias import Pair
from fgvis_lightning.data.explained import load_explanation
from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.run import SweepRun
from fgvis_lightning.experiments.statistics import bootstraps, interval, resampled, wilson
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.results.tensor_files import item_file

ROWS = 32  # images in memory at once


@dataclass(frozen=True)
class Measured:
    """Measurements of one image."""

    id: str  # of the item
    image: str  # its file
    target: int  # index of its class
    right: bool  # whether the network predicts that class
    evidence: Tensor  # the statistic of the explanation (K,)
    contrast: Tensor  # the statistic of the image itself (K,)
    stays: dict[str, bool]  # intervention → whether the network still predicts the class
    scores: dict[str, float]  # intervention → the class's probability; the empty name stands for the unchanged image


@dataclass(frozen=True)
class Findings:
    """Measurements of one pair."""

    pair: Pair  # the suspicion
    items: list[Measured]  # the images
    classes: dict[int, str]  # index → name of all requested classes, including classes without images
    interventions: list[str]  # names of the interventions whose mean effect is the dependence
    controls: list[str]  # names of the other interventions
    averages: dict[str, list[str]]  # name → interventions whose mean is shown

    def images(self, target: int) -> list[Measured]:
        return self._by_class.get(target, [])

    def right(self, target: int) -> list[Measured]:
        """A class's correctly classified images."""
        return [item for item in self.images(target) if item.right]

    @cached_property
    def _by_class(self) -> dict[int, list[Measured]]:
        found: dict[int, list[Measured]] = {}
        for item in self.items:
            found.setdefault(item.target, []).append(item)
        return found

    def statistics(self, items: Sequence[Measured]) -> tuple[Tensor, Tensor, Tensor]:
        """Means and intervals (K,3) over images: of the evidence, of the images themselves, and of the difference."""
        numbers = self._numbers(items)
        evidence, contrast = numbers.chunk(2, 1)
        both = bootstraps(torch.cat([numbers, evidence - contrast], 1), [item.image for item in items])
        of_evidence, of_contrast, of_difference = both.chunk(3)
        return of_evidence, of_contrast, of_difference

    def by_explanations(self, items: Sequence[Measured]) -> list[float]:
        """Dependence by explanations: of the evidence minus of the images themselves, with its interval."""

        def excess(means: Tensor) -> Tensor:
            evidence, contrast = means.chunk(2, -1)
            return self.pair.statistic.dependence(evidence) - self.pair.statistic.dependence(contrast)

        means, draws = resampled(self._numbers(items), [item.image for item in items])
        values: list[float] = interval(excess(means), excess(draws)).tolist()
        return values

    def _numbers(self, items: Sequence[Measured]) -> Tensor:
        """Statistics of the evidence and of the images themselves (N,2K)."""
        empty = torch.empty(0, 2 * len(self.pair.statistic.names))
        return torch.stack([torch.cat([item.evidence, item.contrast]) for item in items]) if items else empty

    @staticmethod
    def stays(items: Sequence[Measured], interventions: Sequence[str]) -> list[float]:
        """Share of items that stay right, averaged over interventions, with its interval over images."""
        total = sum(item.stays[name] for item in items for name in interventions) / len(interventions)
        return [total / len(items) if items else float("nan"), *wilson(total, len(items))]

    def by_interventions(self, items: Sequence[Measured]) -> list[float]:
        """Dependence by interventions, with its interval: the share of items that do not stay right."""
        middle, low, high = self.stays(items, self.interventions)
        return [1 - middle, 1 - high, 1 - low]


@torch.no_grad()
def measure(run: SweepRun, pairs: Mapping[str, Pair]) -> dict[str, Findings]:
    """Measure all explanations, and the effect of the interventions on their images, for each pair."""
    classifier, model = run.model.classifier, run.model
    pairs = {name: pair.suited(classifier) for name, pair in pairs.items()}
    asked = set(_asked(run.data.classes or [], classifier))
    changes = {name: (pair.interventions(classifier), pair.controls(classifier)) for name, pair in pairs.items()}
    reference = classifier.preprocessing.background()
    measured: dict[str, list[Measured]] = {name: [] for name in pairs}
    present = run.split()[1]
    for start in range(0, len(present), ROWS):
        part = present[start : start + ROWS]
        found = [load_explanation(item_file(run.output, id)) for _, id in part]
        images = [load_image(item.path, classifier.preprocessing, upscale=run.data.upscale) for item, _ in part]
        x = as_float(torch.stack(images))
        targets = torch.cat([one.targets for one in found])
        evidence = torch.cat([one.evidence for one in found]).float()

        def judge(pictures: Tensor, targets: Tensor = targets) -> tuple[Tensor, Tensor]:
            """Whether the network predicts the classes (B,), and their probabilities (B,)."""
            logits = model.plain(model.normalize(pictures)).float().cpu()
            return classifier.task.present(logits, targets), classifier.task.probability(logits, targets)

        right, score = judge(x)
        for name, pair in pairs.items():
            of_evidence = pair.statistic(x, evidence, reference)
            of_contrast = pair.statistic(x, (x - reference).abs(), reference)
            judged = {change.name: judge(change(x)) for kind in changes[name] for change in kind}
            measured[name] += [
                Measured(
                    id,
                    item.path,
                    int(targets[row]),
                    bool(right[row]),
                    of_evidence[row],
                    of_contrast[row],
                    {change: bool(stays[row]) for change, (stays, _) in judged.items()},
                    {"": float(score[row]), **{change: float(after[row]) for change, (_, after) in judged.items()}},
                )
                for row, (item, id) in enumerate(part)
            ]
    return {
        name: Findings(
            pair,
            measured[name],
            {index: classifier.class_name(index) for index in sorted({one.target for one in measured[name]} | asked)},
            [change.name for change in changes[name][0]],
            [change.name for change in changes[name][1]],
            {average: list(parts) for average, parts in pair.averages(classifier).items()},
        )
        for name, pair in pairs.items()
    }


def _asked(classes: Sequence[str | int], classifier: Classifier) -> Iterator[int]:
    """Classes that the user named by index or name; classes named by labels have images anyway."""
    for word in map(str, classes):
        with suppress(InputError):
            yield int(word) if word.isdigit() else classifier.class_index(word)
