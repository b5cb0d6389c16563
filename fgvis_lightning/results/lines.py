"""Results as a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap

from fgvis_lightning.errors import InputError
from fgvis_lightning.results.numbers import level_of, percent, probability, score_after
from fgvis_lightning.results.tensor_files import item_file, load_metadata

MOST = 20  # maximum number of items to list or print
WORDS = {"true": True, "false": False}  # boolean entries of a file's metadata


def item_lines(output: Path, ids: Sequence[str]) -> list[str]:
    """One line for each item: class, both scores, mean evidence, and whether the level was reached.

    Items with unreadable files are skipped.

    Returns:
        Lines of aligned columns under two lines of headings; empty for more than `MOST` items.
    """
    if not 0 < len(ids) <= MOST:
        return []
    rows, after = [], ""
    for id in ids:
        try:
            item = load_metadata(item_file(output, id))
            *scores, sparsity = (float(item[name]) for name in ("score_image", "score_explanation", "sparsity"))
        except (InputError, KeyError, ValueError):
            continue
        after = score_after(item.get("game"))
        name = item.get("name", f"class {item.get('target', '?')}")
        name = "".join(letter if letter.isprintable() else "?" for letter in name)
        size, level = percent(1 - sparsity), level_of(WORDS.get(item.get("feasible", "")), sparsity)
        rows.append((id, name, *map(probability, scores), size, level))
    if not rows:
        return []
    names = ("item", "class", "score on the image", after, "evidence", "level")
    rows = [*zip(*(["", *wrap(name, 13)][-2:] for name in names), strict=True), *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = (True, True, False, False, False, True)
    lines = []
    for row in rows:
        cells = zip(row, widths, left, strict=True)
        lines.append("  ".join(text.ljust(w) if at_left else text.rjust(w) for text, w, at_left in cells).rstrip())
    return lines


def few_lines(count: int, line: Callable[[int], str]) -> str:
    """The lines of the first of ``count`` items, by their places, and the number of further ones."""
    lines = [line(place) for place in range(min(count, MOST))]
    return "\n".join([*lines, f"… and {count - MOST:,} more"] if count > MOST else lines)
