"""Attributions: maps of other methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from fgvis_lightning.defense.coverage import same_fields
from fgvis_lightning.method.storage import STORAGE
from fgvis_lightning.results.tensor_files import save_tensors


@dataclass(frozen=True, eq=False)
class Attribution:
    """Maps of another method for B items.

    Attributes:
        map: maps (B,H,W), high = evidence; sign and scale depend on the method.
        targets: target classes (B,).
        score_image: probability of the target class on the image (B,).
        method: name of the method.
        ids: ids of the B items; empty for images in memory.
        metadata: further entries of the file; empty for images in memory.
        explanation: images (B,C,H,W) that the method leaves, before normalization: black is 0 and white is 1; None for
            methods that leave no image.
        hides: what replaces the rest in these images, see `fgvis_lightning.baselines.base.MaskMethod`.

    ``==`` compares all fields except `ids` and `metadata`.
    """

    map: Tensor
    targets: Tensor
    score_image: Tensor
    method: str
    ids: tuple[str, ...] = field(default=(), compare=False)
    metadata: Mapping[str, str] = field(default_factory=dict, compare=False)
    explanation: Tensor | None = None
    hides: str = ""

    def __eq__(self, other: object) -> bool:
        return same_fields(self, other) if isinstance(other, Attribution) else NotImplemented

    def __len__(self) -> int:
        return len(self.map)

    def saliency(self) -> Tensor:
        """The map (B,H,W) by which metrics rank pixels, high = evidence."""
        return self.map

    def save(self, path: Path, index: int, metadata: Mapping[str, str], owner: str | None = None) -> None:
        """Write one item to a file, see `save_tensors`."""
        own = {
            "target": str(int(self.targets[index])),
            "score_image": repr(float(self.score_image[index])),
            "method": self.method,
        }
        if self.hides:
            own["hides"] = self.hides
        tensors = {"map": self.map[index].float()}
        if self.explanation is not None:
            # Half the size of float32, with steps of at most 1/8 of a step in an 8-bit image.
            tensors["explanation"] = self.explanation[index].to(STORAGE)
        save_tensors(path, tensors, own | dict(metadata), owner)
