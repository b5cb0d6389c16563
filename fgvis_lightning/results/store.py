"""Explanations in memory and on disk.

One explanation is one ``.safetensors`` file: the tensor ``mask``, with ``ranking`` beside it where there is one, or
``map`` for another method; and string metadata, a checksum of all of it among them. It is written under a temporary
name and moved into place, so it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fgvis_lightning.defense.coverage import Coverage
from fgvis_lightning.errors import InputError
from fgvis_lightning.method.games import GAMES, Game
from fgvis_lightning.method.storage import STORAGE

_WORDS = {"true": True, "false": False}
_ROWS: dict[str, Callable[[str], float]] = {
    "feasible": _WORDS.__getitem__,
    "iterations": int,
    "reached": int,
    "agreement": float,
}
"""What an explanation may know of each of its items, and how it is read from the file's metadata."""

SUFFIX = ".safetensors"
EXPLANATIONS = "explanations"  # the folder of these files in a results folder
CHECKSUM = "checksum"
UNREADABLE = (SafetensorError, KeyError, ValueError, TypeError, OSError)
"""What reading a damaged or foreign file raises."""


def rounded(mask: Tensor, game: Game) -> Tensor:
    """A mask as a file holds it: with its evidence rounded to float16.

    Float16 has many numbers next to 0 and none between 0.9995 and 1. So where evidence is 1 - mask, the mask itself
    would lose all that is faint. One minus a number in float16 is one in float32, exactly, and back.

    Args:
        mask: of any shape, in [0,1].
        game: whose mask it is.

    Returns:
        A mask of the same type; what is rounded once does not change any more.
    """
    evidence = game.evidence(mask.to(torch.promote_types(mask.dtype, torch.float32)))
    return game.evidence(evidence.to(STORAGE).to(evidence.dtype)).to(mask.dtype)


@dataclass(frozen=True)
class Explanation:
    """Masks of B items with the scores that they reach.

    Attributes:
        mask: (B,3,H,W) in [0,1].
        targets: target classes (B,).
        score_image: CNN_c(x) (B,), softmax probability of the target class on the image.
        score_explanation: CNN_c(e) (B,), on ``e = r + m (x - r)``.
        game: which game made the masks.
        feasible: for ``lam: auto``, whether the level was reached (B,); None otherwise.
        ids: item ids, B of them; empty for images in memory.
        metadata: what the file says beside the mask; empty for images in memory.
        coverage: which nonlinearities were gated, and the share of closed gates (B,L) at the masks.
        iterations: how many each item had (B,).
        ranking: when the solver gave each pixel up (B,H,W) ≥ 0, high = matters most; None where it does not tell.
        agreement: mean correlation between the masks of each two of the runs (B,) in [-1,1]; None for a single run.
        seeds: how many runs with seeds of their own the masks are the mean of; None where that is not known.
        reached: after which iteration the level was first reached (B,), 0 at the start and -1 never; None without one.
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

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def evidence(self) -> Tensor:
        """(B,3,H,W) in [0,1], high = evidence: the mask where the class stays, 1 - mask where it goes."""
        return self.game.evidence(self.mask)

    @property
    def sparsity(self) -> Tensor:
        """Share of the image that is not evidence (B,), 1 - mean of `evidence`: 0 for all of it, 1 for none."""
        return 1 - self.game.size(self.mask)

    @classmethod
    def concatenate(cls, parts: Sequence[Explanation]) -> Explanation:
        """The items of several explanations of one game, without metadata."""
        coverage, closed = parts[0].coverage, [c.closed for p in parts if (c := p.coverage) and c.closed is not None]
        known: dict[str, Any] = {}
        for name in (*_ROWS, "ranking"):
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
            seeds=parts[0].seeds,
            **known,
        )

    def select(self, order: Tensor) -> Explanation:
        """Some of the items, in the order of their indices (N,)."""

        def rows(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[order]

        known: dict[str, Any] = {name: rows(getattr(self, name)) for name in (*_ROWS, "ranking")}
        return replace(
            self,
            mask=self.mask[order],
            targets=self.targets[order],
            score_image=self.score_image[order],
            score_explanation=self.score_explanation[order],
            coverage=self.coverage and replace(self.coverage, closed=rows(self.coverage.closed)),
            ids=tuple(self.ids[index] for index in order.tolist()) if self.ids else (),
            **known,
        )

    def saliency(self) -> Tensor:
        """The map that metrics rank pixels by (B,H,W) ≥ 0, high = evidence.

        It is the `ranking` where there is one: a mask tells what is enough, and a ranking in which order it matters.
        Else it is the mean of the `evidence` over the channels.
        """
        return self.evidence.float().mean(1) if self.ranking is None else self.ranking

    def save(self, path: Path, index: int, metadata: Mapping[str, str], owner: str | None = None) -> None:
        """Write one of the items as a file, see `save_tensors`."""
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
        for name in _ROWS:
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
        map: (B,H,W), high = evidence; signs and scale are the method's.
        targets: target classes (B,).
        score_image: softmax probability of the target class on the image (B,).
        method: its name.
        ids: item ids, B of them; empty for images in memory.
        metadata: what the file says beside the map; empty for images in memory.
    """

    map: Tensor
    targets: Tensor
    score_image: Tensor
    method: str
    ids: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.map)

    def saliency(self) -> Tensor:
        """The map that metrics rank pixels by (B,H,W), high = evidence."""
        return self.map

    def save(self, path: Path, index: int, metadata: Mapping[str, str], owner: str | None = None) -> None:
        """Write one of the items as a file, see `save_tensors`."""
        own = {
            "target": str(int(self.targets[index])),
            "score_image": repr(float(self.score_image[index])),
            "method": self.method,
        }
        save_tensors(path, {"map": self.map[index].float()}, own | dict(metadata), owner)


def write_whole(path: Path, data: bytes, owner: str | None = None) -> None:
    """Write a file that is there whole or not at all, also after a power failure.

    Args:
        path: the file; its folder exists.
        data: its content.
        owner: a part of the temporary name that no other process shares; unless given, this one's id.
    """
    # Two threads may be about to write one file, the failure of an image that two items share.
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.{owner or f'pid{os.getpid()}'}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            # Else a file system may put the new name on disk before the data. Should the name be lost instead, the
            # file is missing as if it had not been written, so its folder need not be synchronized.
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], owner: str | None = None
) -> None:
    """Write tensors with their metadata and a checksum of all of it, whole or not at all.

    Args:
        path: the file; its folder exists.
        tensors: by name, each in float16 or float32.
        metadata: strings to keep beside them.
        owner: see `write_whole`.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    entries: dict[str, Any] = {}
    data = b""
    # The wider types first, so that each tensor begins at a multiple of its numbers' size, as it must to be read.
    for name, tensor in sorted(tensors.items(), key=lambda pair: (-pair[1].element_size(), pair[0])):
        kind = {torch.float16: "F16", torch.float32: "F32"}[tensor.dtype]
        start, data = len(data), data + tensor.numpy().tobytes()
        entries[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, len(data)]}
    # Laid out by us: safetensors' own function shuffles the metadata, and equal explanations are to be equal files.
    header = json.dumps({"__metadata__": {**metadata, CHECKSUM: _checksum(tensors, metadata)}, **entries}).encode()
    header += b" " * (-len(header) % 8)
    write_whole(path, struct.pack("<Q", len(header)) + header + data, owner)


def load_item(path: str | Path) -> Explanation | Attribution:
    """Read the file of one item (B = 1), an explanation or another method's map, and verify its checksum.

    Raises:
        InputError: not there, damaged, or neither.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in ("mask", "ranking", "map") if name in set(file.keys())}
        if not tensors.keys() & {"mask", "map"}:
            raise ValueError("it has neither a mask nor a map")
        checksum = metadata.pop(CHECKSUM)
        if checksum != _checksum(tensors, metadata):
            raise ValueError("its checksum is another")
        own: dict[str, Any] = {
            "targets": torch.tensor([int(metadata["target"])]),
            "score_image": torch.tensor([float(metadata["score_image"])]),
            "ids": (path.name.removesuffix(SUFFIX),),
            "metadata": metadata,
        }
        if "map" in tensors:
            return Attribution(map=tensors["map"][None], method=metadata["method"], **own)
        own |= {name: torch.tensor([read(metadata[name])]) for name, read in _ROWS.items() if name in metadata}
        return Explanation(
            mask=tensors["mask"][None].float(),
            score_explanation=torch.tensor([float(metadata["score_explanation"])]),
            game=GAMES[metadata["game"]],
            coverage=Coverage.from_json(metadata["coverage"]) if "coverage" in metadata else None,
            ranking=tensors["ranking"][None] if "ranking" in tensors else None,
            seeds=int(metadata["seeds"]) if "seeds" in metadata else None,
            **own,
        )
    except FileNotFoundError as error:
        raise InputError(f"Expected an explanation file, but there is none at {path}.") from error
    except UNREADABLE as error:
        raise _damaged(path, error) from error


def load_explanation(path: str | Path) -> Explanation:
    """Read one explanation file (B = 1) and verify its checksum.

    Raises:
        InputError: not there, damaged, or not an explanation.
    """
    item = load_item(path)
    if not isinstance(item, Explanation):
        raise InputError(
            f"Expected an explanation by FGVis, but {path} is a map of {item.method}. "
            f"Read it with fgvis_lightning.results.store.load_item."
        )
    return item


def load_metadata(path: Path) -> dict[str, str]:
    """The strings of an explanation file, without its tensor.

    Raises:
        InputError: not there, or damaged so that not even these can be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except UNREADABLE as error:
        raise _damaged(path, error) from error


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over the bytes of the tensors, in the order of their names, and the metadata, as hexadecimal digits."""
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    digest.update(json.dumps(dict(metadata), sort_keys=True).encode())
    return digest.hexdigest()


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"Expected an explanation file, but {path} is damaged or of another kind ({error}). "
        f"Run the same command again to compute it anew."
    )


class Explanations(Sequence[Explanation]):
    """All explanations in a results folder, in the order of their ids; each file is read when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    @overload
    def __getitem__(self, index: int) -> Explanation: ...
    @overload
    def __getitem__(self, index: slice) -> Explanations: ...
    def __getitem__(self, index: int | slice) -> Explanation | Explanations:
        if isinstance(index, slice):
            return Explanations(self.paths[index])
        return load_explanation(self.paths[index])

    def __len__(self) -> int:
        return len(self.paths)


def load_explanations(folder: str | Path) -> Explanations:
    """The explanations in a results folder or in its ``explanations`` folder.

    Raises:
        InputError: there are none.
    """
    folders = Path(folder) / EXPLANATIONS, Path(folder)
    paths = next((found for found in (sorted(f.glob(f"[!.]*{SUFFIX}")) for f in folders) if found), None)
    if not paths:
        raise InputError(f"Expected a results folder with explanations, but there are none in {folder}.")
    return Explanations(paths)
