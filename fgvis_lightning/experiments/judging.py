"""Deletion and insertion curves and the other metrics of stored maps, item by item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.arguments import chosen_device
from fgvis_lightning.experiments.own_maps import read
from fgvis_lightning.method.games import blend
from fgvis_lightning.method.tasks import task_of
from fgvis_lightning.metrics import (
    Profile,
    auc,
    average_drop,
    average_increase,
    connectedness,
    curves,
    highlight,
    score_preserved,
    sparsity,
)
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.logits import checked
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.folder import IMAGE
from fgvis_lightning.results.load import load_item
from fgvis_lightning.results.tensor_files import SUFFIX

ROWS = 8
"""Items whose images are in memory at once."""


@dataclass(frozen=True)
class Judgement:
    """Metrics and curves of one item by one method.

    Attributes:
        id: of the item.
        image: path of the image.
        target: index of the class.
        method: its name.
        values: by metric; those that a map without a mask does not have are missing.
        deletion: the curve (S,).
        insertion: the curve (S,).
    """

    id: str
    image: str
    target: int
    method: str
    values: dict[str, float]
    deletion: Tensor
    insertion: Tensor


def judge(
    methods: dict[str, dict[str, Path]], ids: Sequence[str], classifier: Classifier, config: Any, profile: Profile
) -> Iterator[Judgement]:
    """Measure every item by every method, a few images at a time.

    Raises:
        InputError: an image or a map cannot be read, or a map has another size than the network's input.
    """
    device = chosen_device(config.device)
    network = classifier.network.to(device).to(memory_format=torch.channels_last)
    first = next(iter(name for name in methods if any(path.suffix == SUFFIX for path in methods[name].values())))
    for start in range(0, len(ids), ROWS):
        chosen = ids[start : start + ROWS]
        known = [load_item(methods[first][id]) for id in chosen]
        images = [explained_image(item.metadata, classifier) for item in known]
        x = classifier.preprocessing.normalize(torch.stack(images)).to(device)
        x = x.contiguous(memory_format=torch.channels_last)
        targets = torch.cat([item.targets for item in known]).to(device)
        with torch.no_grad():
            clean = checked(network(x), x, classifier).float()
        for name, paths in methods.items():
            items = [read(paths[id]) for id in chosen]
            saliency = torch.cat([item if isinstance(item, Tensor) else item.saliency() for item in items]).to(device)
            if saliency.shape != x[:, 0].shape:
                raise InputError(
                    f"Expected maps of {tuple(x.shape[-2:])}, the network's input, but those of {name} have "
                    f"{tuple(saliency.shape[-2:])}. Give the network and the size that made them, with "
                    f"--model.classifier.size."
                )
            deletion, insertion = curves(network, x, saliency, targets, profile, config.batch_size)
            values = {"deletion": auc(deletion, profile), "insertion": auc(insertion, profile)}
            values |= _confidence(network, x, saliency, targets, clean)
            if all(isinstance(item, Explanation) for item in items):
                values |= _of_masks(network, x, items, targets, clean)
            for row, (id, item) in enumerate(zip(chosen, known, strict=True)):
                numbers = {metric: float(value[row]) for metric, value in values.items()}
                yield Judgement(
                    id,
                    item.metadata["image"],
                    int(item.targets),
                    name,
                    numbers,
                    deletion[row].cpu(),
                    insertion[row].cpu(),
                )
        print(f"{min(start + ROWS, len(ids)):,} of {len(ids):,} items judged", flush=True)


def explained_image(metadata: Mapping[str, str], classifier: Classifier) -> Tensor:
    """The image (3,H,W) in [0,1] that a file with these metadata explains.

    Raises:
        InputError: if it cannot be read, or is another one now.
    """
    path, sha256 = metadata["image"], metadata.get(IMAGE)
    return as_float(load_image(path, classifier.preprocessing, upscale=True, sha256=sha256))


@torch.no_grad()
def _confidence(network: Any, x: Tensor, saliency: Tensor, targets: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Average drop and increase: what the map multiplied on the image does to the score."""
    score = task_of(network).probability
    after, before = score(network(highlight(x, saliency)).float(), targets), score(clean, targets)
    return {"average drop": average_drop(after, before), "increase": average_increase(after, before)}


@torch.no_grad()
def _of_masks(network: Any, x: Tensor, items: Sequence[Any], targets: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Metrics that only masks have, whose evidence is an image by itself."""
    evidence = torch.cat([item.evidence for item in items]).to(x)
    logits, task = network(blend(x, evidence, None)).float(), task_of(network)
    return {
        "score kept": score_preserved(task.probability(logits, targets), task.probability(clean, targets)),
        "class kept": task.same_decision(logits, clean, targets).float(),
        "sparsity": sparsity(evidence),
        "connectedness": connectedness(evidence),
    }
