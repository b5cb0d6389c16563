"""Deletion and insertion curves and the other metrics of stored maps, item by item."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgvis_lightning.data.explained import check_same_input, explained_image
from fgvis_lightning.experiments.arguments import chosen_device
from fgvis_lightning.experiments.judgements import Judgement, Judgements
from fgvis_lightning.experiments.measured import FLOOR, METRICS
from fgvis_lightning.experiments.own_maps import fitting_map, read, saliency_of, stored
from fgvis_lightning.method.games import blurred
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
from fgvis_lightning.networks.classifier import Classifier, channels_last
from fgvis_lightning.networks.folding import faster
from fgvis_lightning.networks.logits import checked
from fgvis_lightning.results.attribution import Attribution
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.load import load_item

ROWS = 8  # items whose images are in memory at once


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
    network = channels_last(faster(classifier).to(device))
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
        for id, item in zip(chosen, known, strict=True):
            check_same_input(item.metadata, id, classifier.preprocessing)
        images = [explained_image(item.metadata, classifier.preprocessing) for item in known]
        x = classifier.preprocessing.normalize(torch.stack(images)).to(device)
        x = x.contiguous(memory_format=torch.channels_last)
        targets = torch.cat([item.targets for item in known]).to(device)
        with torch.no_grad():
            clean = checked(network(x), x, classifier).float()
        for name, paths in todo.items():
            items = [read(paths[id]) for id in chosen]
            maps = [fitting_map(item, x.shape[-2:], id, name) for item, id in zip(items, chosen, strict=True)]
            saliency = torch.cat(maps).to(device)
            given = network, x, saliency, targets
            deletion, insertion = curves(*given, profile, config.batch_size)
            values = {"deletion": auc(deletion, profile), "insertion": auc(insertion, profile)}
            values["insertion from gray"] = values["insertion"]  # for profiles that insert into gray
            values |= _of_maps(given, profile, metrics, config.batch_size)
            if "average drop" in needed:
                values |= _confidence(*given, clean)
            if not (name.endswith(FLOOR) and isinstance(items[0], Attribution)):  # its picture shows another photo
                values |= of_pictures(network, x, items, images, targets, clean, classifier, "p(e)" in needed)
            masks = [item.evidence for item in items if isinstance(item, Explanation)]
            if len(masks) == len(items):
                evidence = torch.cat(masks).to(device)
                empty = sparsity(evidence)
                values |= {"size": 1 - empty, "sparsity": empty, "connectedness": connectedness(evidence)}
            for row, (id, item) in enumerate(zip(chosen, known, strict=True)):
                numbers = {metric: float(values[metric][row]) for metric in metrics if metric in values}
                curves_of = deletion[row].tolist(), insertion[row].tolist()
                one = Judgement(id, item.metadata["image"], int(item.targets), name, numbers, *curves_of)
                known_already.add(one, paths[id])
                yield one
        print(f"{min(start + ROWS, len(ids)):,} of {len(ids):,} items judged", flush=True)


def _of_maps(
    given: tuple[Any, Tensor, Tensor, Tensor], profile: Profile, metrics: Sequence[str], batch_size: int
) -> dict[str, Tensor]:
    """Metrics with many passes, besides the profile's curves, of a network, images, maps and targets."""
    found = {}
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
    """The image that an item leaves (C,H,W), before normalization; None for a map without one.

    The classifier's mean color replaces everything that is not evidence, unless the item's own settings have the
    blurred image as the reference; with other references, there is no image.
    """
    if isinstance(item, Explanation):
        background = classifier.preprocessing.background().to(image).expand_as(image)
        reference = json.loads(item.metadata.get("settings", "{}")).get("reference", "zero")
        if reference == "blurred":
            background = blurred(image[None], background, torch.Generator())[0]
        known = reference in ("zero", "blurred")
        return torch.lerp(background, image, item.evidence[0].to(image)) if known else None
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
def of_pictures(
    network: Any,
    x: Tensor,
    items: Sequence[Tensor | Explanation | Attribution],
    images: Sequence[Tensor],
    targets: Tensor,
    clean: Tensor,
    classifier: Classifier,
    passes: bool,
) -> dict[str, Tensor]:
    """Metrics of the images that one method's items leave; none if one leaves none.

    The items' images are given before normalization, (C,H,W) in [0,1], and after it, ``x`` (B,C,H,W), with their
    logits ``clean`` (B,K). Metrics with a network pass are measured if ``passes``.
    """
    pictures = [explained(item, image, classifier) for item, image in zip(items, images, strict=True)]
    if any(picture is None for picture in pictures):
        return {}
    shown, whole = (torch.stack([one for one in some if one is not None]) for some in (pictures, images))
    found = {"hallucination": new_edges(whole, shown.clamp(0, 1))}
    if passes:
        e, task = classifier.preprocessing.normalize(shown).to(x), task_of(network)
        logits = network(e).float()
        after, before = task.probability(logits, targets), task.probability(clean, targets)
        found["p(e)"], found["score kept"] = after, score_preserved(after, before)
        found["average drop as is"] = average_drop(after, before)
        found["class kept"] = task.same_decision(logits, clean, targets).float()
        # The information of a part must not include what replaces the rest. Without a mask, the map stands for it.
        masks = [item.evidence if isinstance(item, Explanation) else saliency_of(item)[:, None] for item in items]
        hides = {item.hides for item in items if isinstance(item, Attribution)}
        part, of = (shown, whole) if hides == {"black"} else (torch.cat(masks).to(x) * x, x)
        if hides <= {"black"} or hides <= {"blurred"}:
            found["CP entropy"] = conciseness_preciseness(after, before, part, of)
            found["CP l1"] = conciseness_preciseness(after, before, part, of, "l1")
    return found
