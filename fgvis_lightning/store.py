"""Explanations in memory and on disk.

One explanation is one ``.safetensors`` file: the tensor ``mask`` and string metadata. It is written
under a temporary name and moved into place, so it is there whole or not at all.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fgvis_lightning.coverage import Coverage
from fgvis_lightning.errors import InputError
from fgvis_lightning.games import GAMES, Game

STORAGE = torch.float16
"""Type of stored masks. A score computed from it differs by less than 0.001 from that of the mask in float32."""

SUFFIX = ".safetensors"


def rounded(mask: Tensor) -> Tensor:
    """A mask as a file holds it, in its own type."""
    return mask.to(STORAGE).to(mask.dtype)


@dataclass(frozen=True)
class Explanation:
    """Masks of B items with the scores that they reach.

    Attributes:
        mask: (B,3,H,W) in [0,1].
        targets: target classes (B,).
        score_image: CNN_c(x) (B,), softmax probability of the target class on the image.
        score_explanation: CNN_c(e) (B,), on ``e = r + m (x - r)``.
        game: which game made the masks.
        coverage: which nonlinearities were gated, and the share of closed gates (B,L) at the masks.
        feasible: for ``lam: auto``, whether the level was reached (B,); None otherwise.
        ids: item ids, B of them; empty for images in memory.
        metadata: what the file says beside the mask; empty for images in memory.
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
        feasible = [part.feasible for part in parts if part.feasible is not None]
        coverage, closed = parts[0].coverage, [c.closed for p in parts if (c := p.coverage) and c.closed is not None]
        return cls(
            mask=torch.cat([part.mask for part in parts]),
            targets=torch.cat([part.targets for part in parts]),
            score_image=torch.cat([part.score_image for part in parts]),
            score_explanation=torch.cat([part.score_explanation for part in parts]),
            game=parts[0].game,
            feasible=torch.cat(feasible) if feasible else None,
            coverage=replace(coverage, closed=torch.cat(closed)) if coverage and closed else coverage,
            ids=tuple(id for part in parts for id in part.ids),
        )

    def saliency(self) -> Tensor:
        """The map that metrics rank pixels by (B,H,W) ≥ 0, high = evidence: mean of `evidence` over the channels."""
        return self.evidence.float().mean(1)


def slug(text: str) -> str:
    """``text`` as a part of a file name: letters, digits, ``.`` and ``_``."""
    return re.sub(r"[^\w.]+", "_", text).strip("_.")[:80] or "_"


def save_explanation(path: Path, mask: Tensor, metadata: Mapping[str, str]) -> None:
    """Write one explanation, whole or not at all.

    Args:
        path: the file; its folder exists.
        mask: (3,H,W) in [0,1], stored as `STORAGE`.
        metadata: strings to keep beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Written by us and not by safetensors, whose files nobody but their owner may read.
        temporary.write_bytes(save({"mask": mask.to("cpu", STORAGE).contiguous()}, dict(metadata)))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_explanation(path: str | Path) -> Explanation:
    """Read one explanation file (B = 1).

    Raises:
        InputError: not there, damaged, or not an explanation.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            mask = file.get_tensor("mask")[None].float()
        return Explanation(
            mask=mask,
            targets=torch.tensor([int(metadata["target"])]),
            score_image=torch.tensor([float(metadata["score_image"])]),
            score_explanation=torch.tensor([float(metadata["score_explanation"])]),
            game=GAMES[metadata["game"]],
            ids=(path.name.removesuffix(SUFFIX),),
            metadata=metadata,
            coverage=Coverage.from_json(metadata["coverage"]) if "coverage" in metadata else None,
        )
    except FileNotFoundError as error:
        raise InputError(f"Expected an explanation file, but there is none at {path}.") from error
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(
            f"Expected an explanation file, but {path} is damaged or of another kind ({error}). "
            f"Delete it and run the same command again to compute it anew."
        ) from error


def load_metadata(path: Path) -> dict[str, str]:
    """The strings of an explanation file, without its tensor."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"Expected an explanation file, but {path} is damaged or of another kind ({error}). "
            f"Delete it and run the same command again to compute it anew."
        ) from error


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
    paths = list(files(Path(folder))) or sorted(Path(folder).glob(f"[!.]*{SUFFIX}"))
    if not paths:
        raise InputError(f"Expected a results folder with explanations, but there are none in {folder}.")
    return Explanations(paths)


def files(output: Path) -> Iterator[Path]:
    """The explanation files of a results folder, sorted."""
    yield from sorted((output / "explanations").glob(f"[!.]*{SUFFIX}"))


def finished(output: Path) -> set[str]:
    """The ids of the items that have a file, found without opening any."""
    return {path.name.removesuffix(SUFFIX) for path in files(output)}


COLUMNS = ("id", "image", "target", "name", "game", "score_image", "score_explanation", "sparsity", "feasible")


def write_summary(output: Path) -> None:
    """Rebuild two tables from the explanation files.

    ``summary.csv`` has one row for each item, ``coverage.csv`` one for each gated layer, with the share of its gates
    that are closed at the explanations, as a mean over the items.
    """
    closed: dict[tuple[int, str, str], list[float]] = {}
    with _table(output / "summary.csv", COLUMNS) as write:
        for path in files(output):
            row = {**load_metadata(path), "id": path.name.removesuffix(SUFFIX)}
            write([row.get(column, "") for column in COLUMNS])
            coverage = Coverage.from_json(row["coverage"]) if "coverage" in row else Coverage()
            if coverage.closed is not None:
                for number, (layer, share) in enumerate(zip(coverage.layers, coverage.closed[0].tolist(), strict=True)):
                    closed.setdefault((number, layer.module, layer.name), []).append(share)
    with _table(output / "coverage.csv", ("layer", "module", "nonlinearity", "closed", "items")) as write:
        for key, shares in sorted(closed.items()):
            write([*key, f"{sum(shares) / len(shares):.6f}", len(shares)])


@contextmanager
def _table(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Sequence[object]], object]]:
    """Writes rows of a CSV file, which is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(columns)
            yield table.writerow
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def prepare_folder(output: Path) -> None:
    """Make a results folder.

    Raises:
        InputError: it cannot be written to.
    """
    probe = output / "explanations" / f".{os.getpid()}.writable"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"Expected a folder that can be written to, but {output}: {error.strerror}. Choose another --output."
        ) from error


def check_configuration(output: Path, settings: Mapping[str, object], fingerprint: str) -> None:
    """Refuse to mix explanations of two configurations in one folder.

    Raises:
        InputError: the folder holds explanations of another configuration; the message says what differs.
    """
    first = next(files(output), None)
    if first is None:
        return
    metadata = load_metadata(first)
    if metadata.get("fingerprint") == fingerprint:
        return
    theirs = json.loads(metadata.get("settings", "{}"))
    differences = [
        f"{name} {theirs.get(name)} there and {settings.get(name)} now"
        for name in sorted({*theirs, *settings})
        if theirs.get(name) != settings.get(name)
    ]
    raise InputError(
        f"Expected {output} to be empty or to hold explanations of this configuration, but it holds those of another "
        f"({'; '.join(differences) or 'other weights'}). Choose another --output, or delete that folder."
    )
