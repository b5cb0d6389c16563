"""Explanations: masks with their scores; and maps of other methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from fgvis_lightning.defense.coverage import Coverage
from fgvis_lightning.method.games import Game
from fgvis_lightning.method.storage import STORAGE
from fgvis_lightning.results.notebook import evidence_picture, html, overlay_picture, png
from fgvis_lightning.results.tensor_files import save_tensors

LINES = 20
"""Maximum number of items that an explanation prints."""

_WORDS = {"true": True, "false": False}
ROWS: dict[str, Callable[[str], float]] = {
    "feasible": _WORDS.__getitem__,
    "iterations": int,
    "reached": int,
    "agreement": float,
    "highest": float,
    "topped": _WORDS.__getitem__,
}
"""Optional fields with one value for each item, and their conversions from a file's metadata."""


def rounded(mask: Tensor, game: Game) -> Tensor:
    """A mask as it is stored in a file: with its evidence rounded to float16.

    Float16 has many numbers near 0, but none between 0.9995 and 1. If evidence is 1 - mask, rounding the mask itself
    would therefore lose faint evidence. One minus a float16 number is exact in float32, and so is the way back.

    Args:
        mask: mask of any shape, in [0,1].
        game: the game of the mask.

    Returns:
        A mask of the same data type; rounding it again does not change it.
    """
    evidence = game.evidence(mask.to(torch.promote_types(mask.dtype, torch.float32)))
    return game.evidence(evidence.to(STORAGE).to(evidence.dtype)).to(mask.dtype)


@dataclass(frozen=True)
class Explanation:
    """Masks of B items with their scores.

    Attributes:
        mask: masks (B,3,H,W) in [0,1].
        targets: target classes (B,).
        score_image: CNN_c(x) (B,), softmax probability of the target class on the image.
        score_explanation: CNN_c(e) (B,), the same on ``e = r + m (x - r)``.
        game: the game of the masks.
        feasible: for ``lam: auto``, whether the level was reached (B,); None otherwise.
        ids: ids of the B items; empty for images in memory.
        metadata: further entries of the file; empty for images in memory.
        coverage: the gated nonlinearities, and the share of closed gates (B,L) at the masks.
        iterations: number of iterations of each item (B,).
        ranking: importance of each pixel (B,H,W) ≥ 0 according to the solver, high = matters most; None if unknown.
        agreement: mean pairwise correlation of the runs' masks (B,) in [-1,1]; None for a single run.
        seeds: number of runs with different seeds that were averaged; None if unknown.
        reached: iteration in which the level was first reached (B,), 0 at the start and -1 for never; None without a
            level.
        highest: for an attack, the highest score of the target class on the way (B,); None otherwise.
        topped: for an attack, whether the network predicted the target class on the way (B,); None otherwise.
        names: names of the B target classes; empty if unknown.
        images: the explained images (B,C,H,W) in [0,1], before normalization; None if they are not in memory.
        background: color (C,1,1) in [0,1] of removed parts in pictures; None if images is None.
        bands: channels shown as red, green and blue in pictures, from 1; None for the first, middle and last.

    An explanation prints one line for each item, ``espresso 0.951 → 0.953, 17.6 %, reached``: class, both scores, mean
    of the evidence, and whether the level was reached. A notebook displays the panels of the first items. Indexing and
    slicing select items.
    """

    mask: Tensor
    targets: Tensor
    score_image: Tensor
    score_explanation: Tensor
    game: Game
    feasible: Tensor | None = None
    ids: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    coverage: Coverage | None = None
    iterations: Tensor | None = None
    ranking: Tensor | None = None
    agreement: Tensor | None = None
    seeds: int | None = None
    reached: Tensor | None = None
    highest: Tensor | None = None
    topped: Tensor | None = None
    names: tuple[str, ...] = ()
    images: Tensor | None = None
    background: Tensor | None = None
    bands: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, index: int | slice) -> Explanation:
        places = torch.arange(len(self))[index]
        return self.select(places.reshape(-1))

    def __iter__(self) -> Iterator[Explanation]:
        return (self[place] for place in range(len(self)))

    def __repr__(self) -> str:
        lines = [self._line(place) for place in range(min(len(self), LINES))]
        return "\n".join([*lines, f"… and {len(self) - LINES:,} more"] if len(self) > LINES else lines)

    def name(self, index: int) -> str:
        """Name of an item's class, or ``class <index>`` if it has none."""
        return self.names[index] if self.names else f"class {int(self.targets[index])}"

    def _line(self, place: int) -> str:
        before, after = float(self.score_image[place]), float(self.score_explanation[place])
        level = "" if self.feasible is None else ", reached" if self.feasible[place] else ", level missed"
        return f"{self.name(place)} {before:.3f} → {after:.3f}, {100 * (1 - float(self.sparsity[place])):.1f} %{level}"

    def _repr_png_(self) -> bytes | None:
        return png(self)

    def _repr_html_(self) -> str:
        return html(repr(self), self._repr_png_())

    def _repr_mimebundle_(self, **_: object) -> dict[str, str | bytes]:
        """Everything that a notebook asks for, from one drawing."""
        picture = self._repr_png_()
        return {"text/html": html(repr(self), picture)} | ({} if picture is None else {"image/png": picture})

    def to_pil(self, index: int = 0) -> Image:
        """One item's evidence on a plain background, see `fgvis_lightning.results.notebook.evidence_picture`."""
        return evidence_picture(self, index)

    def overlay(self, index: int = 0) -> Image:
        """One item's evidence on its dimmed image, see `fgvis_lightning.results.notebook.overlay_picture`."""
        return overlay_picture(self, index)

    @property
    def evidence(self) -> Tensor:
        """Evidence (B,3,H,W) in [0,1]: the mask in games that keep the class, 1 - mask in games that lose it."""
        return self.game.evidence(self.mask)

    @property
    def sparsity(self) -> Tensor:
        """Share of the image that is not evidence (B,), 1 - mean of `evidence`: 0 for the whole image, 1 for none."""
        return 1 - self.game.size(self.mask)

    @classmethod
    def concatenate(cls, parts: Sequence[Explanation]) -> Explanation:
        """Join the items of several explanations of the same game, without metadata."""
        coverage, closed = parts[0].coverage, [c.closed for p in parts if (c := p.coverage) and c.closed is not None]
        known: dict[str, Any] = {}
        for name in (*ROWS, "ranking"):
            found = [rows for part in parts if (rows := getattr(part, name)) is not None]
            known[name] = torch.cat(found) if found else None
        return cls(
            mask=torch.cat([part.mask for part in parts]),
            targets=torch.cat([part.targets for part in parts]),
            score_image=torch.cat([part.score_image for part in parts]),
            score_explanation=torch.cat([part.score_explanation for part in parts]),
            game=parts[0].game,
            coverage=replace(coverage, closed=torch.cat(closed)) if coverage and closed else coverage,
            ids=tuple(id for part in parts for id in part.ids),
            names=tuple(name for part in parts for name in part.names),
            seeds=parts[0].seeds,
            bands=parts[0].bands,
            **known,
        )

    def select(self, order: Tensor) -> Explanation:
        """Select items by their indices (N,), in this order."""

        def rows(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[order]

        known: dict[str, Any] = {name: rows(getattr(self, name)) for name in (*ROWS, "ranking")}
        return replace(
            self,
            mask=self.mask[order],
            targets=self.targets[order],
            score_image=self.score_image[order],
            score_explanation=self.score_explanation[order],
            coverage=self.coverage and replace(self.coverage, closed=rows(self.coverage.closed)),
            ids=tuple(self.ids[index] for index in order.tolist()) if self.ids else (),
            names=tuple(self.names[index] for index in order.tolist()) if self.names else (),
            images=rows(self.images),
            **known,
        )

    def saliency(self) -> Tensor:
        """The map (B,H,W) ≥ 0 by which metrics rank pixels, high = evidence.

        If there is a `ranking`, it is the ranking, since a mask only tells which pixels are enough, not their order of
        importance. Otherwise, it is the mean of the `evidence` over the channels.
        """
        return self.evidence.float().mean(1) if self.ranking is None else self.ranking

    def save(self, path: Path, index: int, metadata: Mapping[str, str], owner: str | None = None) -> None:
        """Write one item to a file, see `save_tensors`."""
        own = {
            "target": str(int(self.targets[index])),
            "score_image": repr(float(self.score_image[index])),
            "score_explanation": repr(float(self.score_explanation[index])),
            "sparsity": repr(float(self.sparsity[index])),
            "game": self.game.name,
        }
        if self.coverage is not None:
            own["coverage"] = self.coverage.to_json(index)
        if self.seeds is not None:
            own["seeds"] = str(self.seeds)
        if self.bands is not None:
            own["bands"] = " ".join(map(str, self.bands))
        for name in ROWS:
            rows = getattr(self, name)
            if rows is not None:
                own[name] = str(rows[index].item()).lower()
        mask = rounded(self.mask[index].float(), self.game)
        tensors = {"mask": mask.to(STORAGE) if self.game.keeps else mask}
        if self.ranking is not None:
            tensors["ranking"] = self.ranking[index].float()
        save_tensors(path, tensors, own | dict(metadata), owner)


@dataclass(frozen=True)
class Attribution:
    """Maps of another method for B items.

    Attributes:
        map: maps (B,H,W), high = evidence; sign and scale depend on the method.
        targets: target classes (B,).
        score_image: softmax probability of the target class on the image (B,).
        method: name of the method.
        ids: ids of the B items; empty for images in memory.
        metadata: further entries of the file; empty for images in memory.
        explanation: images (B,C,H,W) that the method leaves as sufficient for the class, before normalization: black is
            0 and white is 1; None for methods that make no such claim.
    """

    map: Tensor
    targets: Tensor
    score_image: Tensor
    method: str
    ids: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    explanation: Tensor | None = None

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
        tensors = {"map": self.map[index].float()}
        if self.explanation is not None:
            # Half the size of float32, with steps of at most 1/8 of a step in an 8-bit image.
            tensors["explanation"] = self.explanation[index].to(STORAGE)
        save_tensors(path, tensors, own | dict(metadata), owner)
