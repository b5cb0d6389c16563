"""Explanations: masks with their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from fgvis_lightning.defense.coverage import Coverage, joined, same_fields
from fgvis_lightning.errors import InputError
from fgvis_lightning.method.games import Game
from fgvis_lightning.method.storage import STORAGE, rounded
from fgvis_lightning.results.layout import PICTURES, as_file
from fgvis_lightning.results.lines import WORDS, few_lines
from fgvis_lightning.results.notebook import evidence_picture, figure_of, html, overlay_picture, png
from fgvis_lightning.results.numbers import level_of, percent, probability
from fgvis_lightning.results.tensor_files import SUFFIX, save_tensors, write_whole

ALWAYS = ("mask", "targets", "score_image", "score_explanation")  # fields with one row for each item

ROWS: dict[str, Callable[[str], float]] = {
    "feasible": WORDS.__getitem__,
    "iterations": int,
    "reached": int,
    "agreement": float,
    "highest": float,
    "topped": WORDS.__getitem__,
}
"""Optional fields with one value for each item, and their conversions from a file's metadata."""

TYPED = {"target", "score_image", "score_explanation", "sparsity", "game", "coverage", "seeds", "bands", "name", *ROWS}
"""Entries of a file's metadata that are fields or properties of an explanation."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Masks of B items with their scores.

    Attributes:
        mask: masks (B,3,H,W) in [0,1].
        targets: target classes (B,).
        score_image: CNN_c(x) (B,), probability of the target class on the image.
        score_explanation: CNN_c(e) (B,), the same on ``e = r + m (x - r)``.
        game: the game of the masks.
        feasible: for ``lam: auto``, whether the level was reached (B,); None otherwise.
        ids: ids of the B items; empty for images in memory.
        metadata: entries of the file that are not among these fields, e.g. the path of the image; empty for images in
            memory.
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
        reread: adds the images to an explanation from a file when a picture needs them, as `with_image` does; None for
            images in memory.

    An explanation prints one line for each item, ``moped 0.537 → 0.548, 1.0 %, reached``: class, both scores, mean
    of the evidence, and whether the level was reached. A notebook displays the panels of the first items. Indexing and
    slicing select items.

    ``==`` compares the results: all fields except `ids`, `metadata`, `images`, `background` and `reread`, which tell
    where they are from. So an explanation equals the one that is loaded from its file. Like a list, it has no hash.
    """

    mask: Tensor
    targets: Tensor
    score_image: Tensor
    score_explanation: Tensor
    game: Game
    feasible: Tensor | None = None
    ids: tuple[str, ...] = field(default=(), compare=False)
    metadata: Mapping[str, str] = field(default_factory=dict, compare=False)
    coverage: Coverage | None = None
    iterations: Tensor | None = None
    ranking: Tensor | None = None
    agreement: Tensor | None = None
    seeds: int | None = None
    reached: Tensor | None = None
    highest: Tensor | None = None
    topped: Tensor | None = None
    names: tuple[str, ...] = ()
    images: Tensor | None = field(default=None, compare=False)
    background: Tensor | None = field(default=None, compare=False)
    bands: tuple[int, ...] | None = None
    reread: Callable[[Explanation], Explanation] | None = field(default=None, compare=False)

    def __eq__(self, other: object) -> bool:
        return same_fields(self, other) if isinstance(other, Explanation) else NotImplemented

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, index: int | slice) -> Explanation:
        return self.select(torch.from_numpy(np.atleast_1d(np.arange(len(self))[index]).copy()))

    def __iter__(self) -> Iterator[Explanation]:
        return (self[place] for place in range(len(self)))

    def __repr__(self) -> str:
        return few_lines(len(self), self._line)

    def name(self, index: int) -> str:
        """Name of an item's class, or ``class <index>`` if it has none."""
        return self.names[index] if self.names else f"class {int(self.targets[index])}"

    def _line(self, place: int) -> str:
        before, after = probability(self.score_image[place]), probability(self.score_explanation[place])
        sparsity = float(self.sparsity[place])
        level = level_of(None if self.feasible is None else bool(self.feasible[place]), sparsity)
        level = {"": "", "missed": ", level missed"}.get(level, f", {level}")
        return f"{self.name(place)} {before} → {after}, {percent(1 - sparsity)}{level}"

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
        """One item's brightened evidence on its dimmed image; `fgvis_lightning.draw` is larger and has captions."""
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
        """Join the items of several explanations, with what all of them know, without metadata.

        Raises:
            InputError: if they differ in their game or in the size of their masks, or if there are none.
        """
        if len(kinds := {(part.game.name, *part.mask.shape[1:]) for part in parts}) != 1:
            raise InputError(f"Expected explanations of one game and size, but got {sorted(kinds) or 'none'}.")
        known: dict[str, Any] = {}
        for name in (*ALWAYS, *ROWS, "ranking", "images"):
            found = [rows for part in parts if (rows := getattr(part, name)) is not None]
            known[name] = torch.cat(found) if len(found) == len(parts) else None
        for name in ("ids", "names"):
            texts = tuple(text for part in parts for text in getattr(part, name))
            known[name] = texts if len(texts) == sum(map(len, parts)) else ()
        color = parts[0].background
        alike = color is not None and all(p.background is not None and torch.equal(p.background, color) for p in parts)
        return cls(
            game=parts[0].game,
            coverage=joined([part.coverage for part in parts]),
            background=color if alike and known["images"] is not None else None,
            seeds=parts[0].seeds if len({part.seeds for part in parts}) == 1 else None,
            bands=parts[0].bands if len({part.bands for part in parts}) == 1 else None,
            **known,
        )

    def select(self, order: Tensor) -> Explanation:
        """Select items by their indices (N,), in this order."""

        def rows(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[order]

        known: dict[str, Any] = {name: rows(getattr(self, name)) for name in (*ALWAYS, *ROWS, "ranking", "images")}
        for name in ("ids", "names"):
            texts = getattr(self, name)
            known[name] = tuple(texts[index] for index in order.tolist()) if texts else ()
        closed = self.coverage and replace(self.coverage, closed=rows(self.coverage.closed))
        return replace(self, coverage=closed, **known)

    def saliency(self) -> Tensor:
        """The map (B,H,W) ≥ 0 by which metrics rank pixels, high = evidence.

        If there is a `ranking`, it is the ranking, since a mask only tells which pixels are enough, not their order of
        importance. Otherwise, it is the mean of the `evidence` over the channels.
        """
        return self.evidence.float().mean(1) if self.ranking is None else self.ranking

    def save(
        self, path: str | Path, index: int = 0, metadata: Mapping[str, str] | None = None, owner: str | None = None
    ) -> None:
        """Write one item to a file, without its image; `load_explanation` reads it. Or write its panel.

        Args:
            path: ``<name>.safetensors``; or ``.pdf``, ``.svg`` or ``.png`` for the panel. It is replaced if it exists.
            index: index of the item.
            metadata: strings to store with the item; default: the explanation's own.
            owner: see `fgvis_lightning.results.tensor_files.write_whole`.

        Raises:
            InputError: if the folder does not exist, if the suffix is another, or, for a panel, if there is no image.
        """
        if not (path := Path(path)).parent.is_dir():
            raise InputError(f"Expected a folder for {path.name}, but {path.parent} is not one. Make it first.")
        if (kind := path.suffix[1:].lower()) in PICTURES:
            write_whole(path, as_file(figure_of(self, index), kind), owner)
            return
        if path.suffix != SUFFIX:
            raise InputError(f"Expected a file name with {SUFFIX}, .{', .'.join(PICTURES)}, but got {path.name}.")
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
            if (rows := getattr(self, name)) is not None:
                own[name] = str(rows[index].item()).lower()
        mask = rounded(self.mask[index].float(), self.game)
        tensors = {"mask": mask.to(STORAGE) if self.game.keeps else mask}
        if self.ranking is not None:
            tensors["ranking"] = self.ranking[index].float()
        own |= self.metadata if metadata is None else metadata
        if self.names:
            own.setdefault("name", self.names[index])
        save_tensors(path, tensors, own, owner)
