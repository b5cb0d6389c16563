"""Deletion and insertion curves and the other metrics of stored maps, item by item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgvis_lightning.data.explained import explained_image
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.arguments import chosen_device
from fgvis_lightning.experiments.judgements import Judgement, Judgements
from fgvis_lightning.experiments.measured import METRICS
from fgvis_lightning.experiments.own_maps import read, stored
from fgvis_lightning.method.tasks import task_of
from fgvis_lightning.metrics import (
    Profile,
    auc,
    average_drop,
    average_increase,
    conciseness_preciseness,
    connectedness,
    curves,
    highlight,
    infidelity,
    insertion_curve,
    new_edges,
    road,
    road_curves,
    score_preserved,
    sensitivity_n,
    sparsity,
)
from fgvis_lightning.metrics.profiles import ZERO
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.folding import faster
from fgvis_lightning.networks.logits import checked
from fgvis_lightning.results.explanation import Attribution, Explanation
from fgvis_lightning.results.load import load_item

ROWS = 8
"""Items whose images are in memory at once."""


def judge(
    methods: dict[str, dict[str, Path]],
    ids: Sequence[str],
    classifier: Classifier,
    config: Any,
    profile: Profile,
    metrics: Sequence[str],
    known_already: Judgements,
) -> Iterator[Judgement]:
    """Measure every item by every method, a few images at a time; known judgements are reused.

    Raises:
        InputError: an image or a map cannot be read, or the size of a map is not that of the network's input.
    """
    device = chosen_device(config.device)
    network = faster(classifier).to(device).to(memory_format=torch.channels_last)
    source = stored(methods)
    needed = {METRICS[name].shares or name for name in metrics}
    for start in range(0, len(ids), ROWS):
        chosen = ids[start : start + ROWS]
        before = {name: [known_already.get(name, id, paths[id]) for id in chosen] for name, paths in methods.items()}
        todo = {name: paths for name, paths in methods.items() if not all(before[name])}
        yield from (one for name, ones in before.items() if name not in todo for one in ones if one)
        if not todo:
            continue
        known = [load_item(source[id]) for id in chosen]
        images = [explained_image(item.metadata, classifier.preprocessing) for item in known]
        x = classifier.preprocessing.normalize(torch.stack(images)).to(device)
        x = x.contiguous(memory_format=torch.channels_last)
        targets = torch.cat([item.targets for item in known]).to(device)
        with torch.no_grad():
            clean = checked(network(x), x, classifier).float()
        for name, paths in todo.items():
            items = [read(paths[id]) for id in chosen]
            saliency = torch.cat([item if isinstance(item, Tensor) else item.saliency() for item in items]).to(device)
            if saliency.shape != x[:, 0].shape:
                raise InputError(
                    f"Expected maps of {tuple(x.shape[-2:])}, the network's input size, but those of {name} have "
                    f"{tuple(saliency.shape[-2:])}. Give the network that made them, and its size with "
                    f"--model.classifier.size."
                )
            deletion, insertion = curves(network, x, saliency, targets, profile, config.batch_size)
            values = {"deletion": auc(deletion, profile), "insertion": auc(insertion, profile)}
            values["insertion from gray"] = values["insertion"]  # for profiles that insert into gray
            values |= _of_maps(network, x, saliency, targets, profile, metrics, config.batch_size)
            if "average drop" in needed:
                values |= _confidence(network, x, saliency, targets, clean)
            pictures = [explained(item, image, classifier) for item, image in zip(items, images, strict=True)]
            known_pictures = [picture for picture in pictures if picture is not None]
            if len(known_pictures) == len(items):
                shown = torch.stack(known_pictures)
                e = classifier.preprocessing.normalize(shown).to(x)
                if "p(e)" in needed:
                    values |= _of_explanations(network, x, e, targets, clean)
                values["hallucination"] = new_edges(torch.stack(images), shown.clamp(0, 1))
            masks = [item.evidence for item in items if isinstance(item, Explanation)]
            if len(masks) == len(items):
                values |= _of_masks(torch.cat(masks).to(device))
            for row, (id, item) in enumerate(zip(chosen, known, strict=True)):
                numbers = {metric: float(values[metric][row]) for metric in metrics if metric in values}
                curves_of = deletion[row].cpu(), insertion[row].cpu()
                one = Judgement(id, item.metadata["image"], int(item.targets), name, numbers, *curves_of)
                known_already.add(one, paths[id])
                yield one
        print(f"{min(start + ROWS, len(ids)):,} of {len(ids):,} items judged", flush=True)


def _of_maps(
    network: Any,
    x: Tensor,
    saliency: Tensor,
    targets: Tensor,
    profile: Profile,
    metrics: Sequence[str],
    batch_size: int,
) -> dict[str, Tensor]:
    """Metrics with many passes, besides the profile's curves."""
    found, given = {}, (network, x, saliency, targets)
    gray = replace(profile, insertion=ZERO)
    if "insertion from gray" in metrics and gray != profile:
        found["insertion from gray"] = auc(insertion_curve(*given, gray, batch_size), gray)
    if "ROAD" in metrics:
        found["ROAD"] = road(*road_curves(*given, ties=profile.ties, seed=profile.seed, batch_size=batch_size))
    if "sensitivity-n" in metrics:
        found["sensitivity-n"] = sensitivity_n(*given, batch_size=batch_size).mean(1)
    if "infidelity" in metrics:
        found["infidelity"] = infidelity(*given, batch_size=batch_size)
    return found


def explained(item: Tensor | Explanation | Attribution, image: Tensor, classifier: Classifier) -> Tensor | None:
    """The part of the image that an item keeps as evidence (C,H,W), before normalization; None for a map without it.

    Args:
        item: of one image.
        image: (C,H,W) in [0,1].
        classifier: its mean color replaces everything that is not evidence.
    """
    if isinstance(item, Explanation):
        background = classifier.preprocessing.background().to(image).expand_as(image)
        return torch.lerp(background, image, item.evidence[0].to(image))
    return item.explanation[0] if isinstance(item, Attribution) and item.explanation is not None else None


@torch.no_grad()
def _confidence(network: Any, x: Tensor, saliency: Tensor, targets: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Average drop and increase: effect on the score when the image is multiplied by the map."""
    score = task_of(network).probability
    before = score(clean, targets)
    after, stretched = (
        score(network(highlight(x, saliency, scale)).float(), targets) for scale in ("maximum", "min-max")
    )
    return {
        "average drop": average_drop(after, before),
        "average drop min-max": average_drop(stretched, before),
        "increase": average_increase(after, before),
    }


@torch.no_grad()
def _of_explanations(network: Any, x: Tensor, e: Tensor, targets: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Scores of explanations e of the images x, both normalized (B,C,H,W)."""
    logits, task = network(e).float(), task_of(network)
    after, before = task.probability(logits, targets), task.probability(clean, targets)
    return {
        "p(e)": after,
        "score kept": score_preserved(after, before),
        "average drop as is": average_drop(after, before),
        "CP entropy": conciseness_preciseness(after, before, e, x),
        "CP l1": conciseness_preciseness(after, before, e, x, "l1"),
        "class kept": task.same_decision(logits, clean, targets).float(),
    }


def _of_masks(evidence: Tensor) -> dict[str, Tensor]:
    """Metrics that only masks (B,C,H,W) have."""
    empty = sparsity(evidence)
    return {"size": 1 - empty, "sparsity": empty, "connectedness": connectedness(evidence)}
