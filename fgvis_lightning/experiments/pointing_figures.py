"""Maps with the outlines of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import torch
import torch.nn.functional as F
from torch import Tensor

from fgvis_lightning.data.explained import explained_image
from fgvis_lightning.experiments.output import save_figure
from fgvis_lightning.experiments.own_maps import read, saliency_of
from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.results.figures import as_rgb, grid, heat
from fgvis_lightning.results.tables import Table

COLOR = (0.0, 1.0, 0.85)
"""Color of the outline: unlike skin, grass and wood in photos, and unlike the colors of maps."""


@dataclass(frozen=True)
class Target:
    """The object at which an item's maps should point.

    Attributes:
        id: of the item.
        metadata: of its file.
        target: index of the class.
        mask: of the object or objects, booleans (H,W) of the input's size.
        objects: number of objects.
    """

    id: str
    metadata: Mapping[str, str]
    target: int
    mask: Tensor
    objects: int


def outlined(picture: Tensor, mask: Tensor) -> Tensor:
    """A picture (3,H,W) with a line around the mask (H,W), about 1/100 of the picture wide."""
    wide = max(1, round(min(mask.shape) / 200))
    marked = F.pad(mask[None, None].float(), [wide] * 4)  # an object cut by the crop has an edge there
    inner = 1 - F.max_pool2d(1 - marked, 2 * wide + 1, 1, wide)[0, 0, wide:-wide, wide:-wide]
    outer = F.max_pool2d(marked, 2 * wide + 1, 1, wide)[0, 0, wide:-wide, wide:-wide]
    return torch.where(outer > inner, torch.tensor(COLOR)[:, None, None], picture)


def draw_sheet(
    path: Path,
    targets: Sequence[Target],
    methods: Mapping[str, Mapping[str, Path]],
    items: Table,
    classifier: Classifier,
) -> None:
    """A row for each item: the photo and each method's map, with the outlined object and the measurements.

    Args:
        path: of the figure, without a suffix.
        targets: the items.
        methods: name → item id → its file.
        items: table with id, method, hit and energy.
        classifier: of the network.
    """
    measured = {(row["id"], row["method"]): row for row in items.named()}
    rows = []
    for target in targets:
        photo = as_rgb(explained_image(target.metadata, classifier.preprocessing), classifier.preprocessing.bands)
        row = [(outlined(photo, target.mask), fill(classifier.class_name(target.target), 20))]
        for name, paths in methods.items():
            saliency = saliency_of(read(paths[target.id]))[0]
            found = measured[target.id, name]
            text = f"{'hit' if found['hit'] else 'miss'}, {100 * found['energy inside']:.0f} % inside"
            row.append((outlined(heat(saliency), target.mask), text))
        rows.append(row)
    heads = ["object", *(fill(name, 16) for name in methods)]
    save_figure(path, grid(rows, heads, [str(number + 1) for number in range(len(rows))], 1.5))
