"""Results of `fgvis_lightning.experiments.judging` in a file, so that no item is judged twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fgvis_lightning.results.tensor_files import write_whole


@dataclass(frozen=True)
class Judgement:
    """Metrics and curves of one item by one method."""

    id: str  # of the item
    image: str  # path of the image
    target: int  # index of the class
    method: str  # name of the method
    values: dict[str, float]  # by metric; metrics of masks are missing for a map without a mask
    deletion: list[float]  # the curve, S scores
    insertion: list[float]  # the curve, S scores


class Judgements:
    """Judgements in a file, one per line, as JSON.

    A line is reused as long as the map's file, the item's file and everything in ``depends`` are unchanged.

    Args:
        path: the file; it need not exist.
        depends: the values that all judgements depend on: network, profile, metrics.
        items: item id → the file that names its image and its class.
    """

    def __init__(self, path: Path, depends: Mapping[str, Any], items: Mapping[str, Path]) -> None:
        self.path = path
        self.items = items
        self.key = sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()
        self._known: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    self._known[entry["of"]] = entry
                except (ValueError, KeyError, TypeError):  # the end of a run that was killed
                    continue

    def get(self, method: str, id: str, map: Path) -> Judgement | None:
        """The judgement of an item by a method, if it is known."""
        found = self._known.get(self._of(method, id, map))
        return None if found is None else Judgement(**{name: found[name] for name in found if name != "of"})

    def add(self, one: Judgement, map: Path) -> None:
        """Keep a judgement, and append it to the file."""
        of = self._of(one.method, one.id, map)
        self._known[of] = {"of": of, **asdict(one)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._known[of]) + "\n")

    def keep(self, used: Iterable[tuple[str, str, Path]]) -> None:
        """Keep only these judgements, given by method, item and map, in the file."""
        kept = [self._known[of] for one in used if (of := self._of(*one)) in self._known]
        write_whole(self.path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())

    def _of(self, method: str, id: str, map: Path) -> str:
        of: list[Any] = [self.key, method, id]
        for path in (map, self.items[id]):
            state = path.stat()
            of += [str(path.absolute()), state.st_size, state.st_mtime_ns]
        return sha256(json.dumps(of).encode()).hexdigest()
