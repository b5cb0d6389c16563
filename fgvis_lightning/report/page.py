"""Results → HTML: one file, or a folder if the file would be too large.

A page works from a ``file:`` address, without a server. The data of an item's view is text within the page, or a
separate script in the same folder, and is only read when the item is opened. A policy in the page's head keeps it from
loading anything else, and from running any foreign script.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fgvis_lightning.errors import InputError
from fgvis_lightning.names import printable
from fgvis_lightning.report.gather import Entry, Results
from fgvis_lightning.report.overview import look_over
from fgvis_lightning.report.pictures import LARGE, THUMBNAIL, figure_url, make_pictures, url
from fgvis_lightning.results.numbers import USUAL, score_after
from fgvis_lightning.results.tensor_files import write_whole

SCRIPTS = ("stage.js", "curves.js", "detail.js", "list.js")
ITEMS, THUMBNAILS = "items", "thumbnails"  # folders next to the page, if it is not a single file
FEW = 24  # number of items up to which thumbnails are larger
UNDEFINED = "undefined"  # agreement of runs of which one has a constant mask, as in detail.js
GENERATOR = '<meta name="generator" content="fgvis_lightning report">'


@dataclass
class _Files:
    """Pictures, kept in memory until they are too large for one file, then written into a folder."""

    folder: Path
    limit: float  # maximum bytes of one file
    apart: bool = False  # whether the pictures are in the folder
    kept: dict[int, tuple[str, bytes]] = field(default_factory=dict)  # number of an entry → JSON of its view, thumbnail
    size: int = 0  # bytes of all pictures

    def add(self, number: int, view: str, thumbnail: bytes) -> None:
        self.kept[number] = view, thumbnail
        self.size += len(view) + (len(thumbnail) if self.apart else 4 * len(thumbnail) // 3)
        if self.size > self.limit and not self.apart:
            self.apart = True
            for name in (ITEMS, THUMBNAILS):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        if self.apart:
            for place, (text, picture) in self.kept.items():
                write_whole(self.folder / ITEMS / f"{place}.js", f"received({place}, {text});\n".encode())
                write_whole(self.folder / THUMBNAILS / f"{place}.jpg", picture)
            self.kept.clear()


def write_page(results: Results, output: Path, limit: float) -> tuple[Path, int, dict[str, str]]:
    """Write the page of a results folder, and print a line for each hundred entries.

    Args:
        results: of `fgvis_lightning.report.gather.gather`.
        output: the file; if it would be too large, a folder with that name, without suffix, and with ``index.html``.
        limit: maximum bytes of pictures for a single file.

    Returns:
        The page; bytes of all files together; and the path of each image that is not shown → the reason.
    """
    folder = output.with_suffix("")
    output.parent.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    files, rows = _Files(folder, limit), []
    unseen: dict[str, str] = {}
    total = len(results.entries)
    side = LARGE if total <= FEW else THUMBNAIL
    for number, entry in enumerate(results.entries):
        if number and number % 100 == 0:
            print(f"{number:,} of {total:,} items drawn", flush=True)
        rows.append(_row(entry))
        if not entry.missing:
            thumbnail, pictures = make_pictures(entry, side)
            files.add(number, _json(_view(entry, pictures)), thumbnail)
            rows[-1]["thumbnail"] = f"{THUMBNAILS}/{number}.jpg"
            if pictures["image"] is None:
                unseen[entry.image] = pictures["problem"]
    for number, (_, thumbnail) in files.kept.items():
        rows[number]["thumbnail"] = url(thumbnail)
    page = render(results, rows, files).encode()
    path = folder / "index.html" if files.apart else output
    if files.apart and _is_ours(output):
        output.unlink()
    write_whole(path, page)
    return path, len(page) + (files.size if files.apart else 0), unseen


def render(results: Results, rows: list[dict[str, Any]], files: _Files) -> str:
    """The page as text, with a row for each entry, for the page's scripts, and the views that are kept in memory."""
    style, script = template("style.css"), Markup("\n").join(map(template, SCRIPTS))
    near = " 'self' file:" if files.apart else ""
    policy = (
        f"default-src 'none'; img-src data:{near}; style-src '{_hash(style)}'; script-src '{_hash(script)}'{near}; "
        f"base-uri 'none'; form-action 'none'"
    )
    return fill(
        "page.html.j2",
        results=results,
        overview=look_over(results),
        generator=Markup(GENERATOR),
        policy=policy,
        style=style,
        script=script,
        rows=Markup(_json(rows)),
        views={number: Markup(text) for number, (text, _) in files.kept.items()},
        gates=any(section.anchor.startswith("gates") for section in results.sections),
        figure=figure_url,
        usual=USUAL,
    )


def template(name: str) -> Markup:
    """The text of a file beside the pages' templates, which is not escaped."""
    return Markup((resources("fgvis_lightning.report") / "templates" / name).read_text(encoding="utf-8"))


def fill(name: str, **values: object) -> str:
    """Fill a page's template with values and the version: everything is escaped, and an unknown name is an error."""
    loader = PackageLoader("fgvis_lightning.report")
    jinja = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return jinja.get_template(name).render(version=version("fgvis-lightning"), **values)


def _row(entry: Entry) -> dict[str, Any]:
    """Data of an entry in the list."""
    return {
        **{name: getattr(entry, name) for name in ("method", "id", "state", "name", "image", "reason")},
        **{name: _rounded(getattr(entry, name)) for name in ("score_image", "score_explanation", "evidence")},
        "agreement": UNDEFINED if entry.agreement != entry.agreement else _rounded(entry.agreement),  # NaN
        **{name: _rounded(entry.values.get(name)) for name in ("deletion", "insertion")},
    }


def _view(entry: Entry, pictures: Mapping[str, Any]) -> dict[str, Any]:
    """Data of an entry's view, in addition to its row."""
    hidden = ("settings", "coverage", "sparsity")  # the page has its opposite, mean evidence
    return {
        "after": score_after(entry.metadata.get("game")),
        **pictures,
        "means": {name: _rounded(mean) for name, mean in pictures["means"].items()},
        "values": {name: _rounded(value) for name, value in entry.values.items() if name not in hidden},
        "curves": entry.curves and [[_rounded(value) for value in curve] for curve in entry.curves],
        "metadata": {name: text for name, text in sorted(entry.metadata.items()) if name not in hidden},
        "settings": {printable(str(name)): printable(str(value)) for name, value in entry.settings.items()},
    }


def _rounded(value: float | None) -> float | None:
    """Rounded to six digits, more than the page shows; JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _json(value: object) -> str:
    """JSON that can neither end its HTML element nor begin another."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    """Hash of a script or style for the page's content security policy."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _is_ours(path: Path) -> bool:
    """Whether an earlier run wrote this page."""
    try:
        with path.open(encoding="utf-8") as file:
            return GENERATOR in file.read(4000)
    except (OSError, UnicodeDecodeError):
        return False


def _clear(folder: Path) -> None:
    """Remove the files of an earlier run from this folder; raises `InputError` if something else has its name."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"Expected {folder} to be a folder or unused, but it is a file. Choose another --output.")
    for path in (folder, folder / ITEMS, folder / THUMBNAILS):  # their files are removed below, wherever a link leads
        if path.is_symlink():
            raise InputError(f"Expected {path} to be a folder or unused, but it is a link. Remove it.")
    if _is_ours(folder / "index.html"):
        for name, suffix in ((ITEMS, ".js"), (THUMBNAILS, ".jpg")):
            for path in (folder / name).glob(f"[0-9]*{suffix}"):
                path.unlink()
        (folder / "index.html").unlink()
