"""A quick check whether files have changed since they were last read completely.

Reading a million photos and explanations takes an hour. Therefore, names, sizes and times of checked files are noted in
the results folder; if they are the same later, the files are not read again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from fgvis_lightning.results.tensor_files import write_whole

CHECKED = ".checked"
SETTLED = 60  # seconds that files must have been unchanged before they were read, since clocks of file servers differ


class QuickCheck:
    """A note of names, sizes and times of files.

    Args:
        output: the results folder.
        name: name of the note, e.g. ``rank0of1``.
        what: anything else that must be the same, e.g. a configuration's fingerprint.
        owner: see `fgvis_lightning.results.tensor_files.write_whole`.

    Attributes:
        text: text stored in the note, available after `same` was true.
    """

    def __init__(self, output: Path, name: str, what: str, owner: str | None = None) -> None:
        self.path = output / CHECKED / name
        self.what = what
        self.owner = owner
        self.text = ""
        self._begun = time.time()

    def same(self, files: Iterable[str]) -> bool:
        """Whether these files are unchanged since they were noted."""
        try:
            known, _, self.text = self.path.read_text(encoding="utf-8").partition("\n")
        except (OSError, ValueError):
            return False
        return known == self._state(files)[0]

    def note(self, read: Iterable[str], written: Iterable[str], text: str = "") -> None:
        """Note files, unless a file was changed after it was read, or just before.

        Args:
            read: paths of files that were read since this object was created.
            written: paths of further files, which this run may have written.
            text: text to store in the note.
        """
        read = list(read)
        if self._state(read)[1] > self._begun - SETTLED:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(exist_ok=True)
        state = self._state([*read, *written])[0]
        write_whole(self.path, f"{state}\n{text}".encode(), self.owner)

    def _state(self, files: Iterable[str]) -> tuple[str, float]:
        """SHA-256 of all values, and the time of the latest change in seconds; now, if a file is missing."""
        digest, latest = hashlib.sha256(self.what.encode()), 0
        for path in files:  # may be a million, each in two microseconds
            try:
                at = os.stat(path)  # noqa: PTH116
            except OSError:
                return "missing", time.time()
            changed, replaced = at.st_mtime_ns, at.st_ctime_ns
            latest = max(latest, changed, replaced)
            digest.update(f"\n{path}\0{at.st_size} {changed} {replaced}".encode(errors="surrogatepass"))
        return digest.hexdigest(), latest / 1e9
