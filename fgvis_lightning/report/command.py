"""``python train.py report FOLDER``: a results folder as a page.

Takes the results folder of any command and writes one page that needs no server and no network::

    <folder>/report.html          or, if a single file would be too large,
    <folder>/report/index.html    with pictures in the same folder
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote

from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.names import printable, program
from fgvis_lightning.report.gather import gather
from fgvis_lightning.report.page import write_page

MEGABYTE = 1e6


def make_parser() -> Parser:
    """The options of ``report``."""
    description = (__doc__ or "").partition("\n\n")[2].partition("::")[0]
    parser = Parser(prog="fgvis report", description=description)
    parser.add_argument("folder", type=str, help="Results folder of any command.")
    parser.add_argument("--output", type=str | None, help="The page, FILE.html. By default, <folder>/report.html.")
    parser.add_argument("--title", type=str | None, help="Title of the page. By default, the folder's name.")
    parser.add_argument("--images", type=str | None, help="Location of images that have moved: a folder, glob or CSV.")
    parser.add_argument(
        "--limit", type=float, default=50.0, help="Maximum megabytes of a single file; larger reports become a folder."
    )
    return parser


def main(args: Sequence[str]) -> None:
    """Parse the command line, read the folder, and write the page.

    Raises:
        InputError: a user's mistake, or a folder without results.
    """
    config = make_parser().parse_args(list(args))
    output = Path(config.output) if config.output else Path(config.folder) / "report.html"
    if output.suffix != ".html":
        raise InputError(f"Expected a file FILE.html as --output, but got {output}.")
    if config.limit < 0:
        raise InputError(f"Expected --limit of at least 0 megabytes, but got {config.limit}.")
    results = gather(Path(config.folder), config.images)
    if config.title:
        results = replace(results, title=printable(config.title))
    page, size, unseen = write_page(results, output, config.limit * MEGABYTE)
    missing = [entry for entry in results.entries if entry.missing]
    items = len({entry.id for entry in results.entries if not entry.missing})
    left_out = f", {len(missing):,} failed or damaged" if missing else ""
    print(f"{items:,} item{'' if items == 1 else 's'}{left_out}; {size / MEGABYTE:.1f} MB")
    _tell_unseen(unseen, len({entry.image for entry in results.entries if not entry.missing}))
    if results.left_out:
        named = ", ".join(printable(str(path)) for path in results.left_out)
        print(f"Not on this page, since {printable(str(results.folder))} has results of its own: {named}")
    if items and not any(entry.values for entry in results.entries):
        print("To add deletion and insertion curves, run this with the run's network options, then `report` again:")
        judged, here = quote(str(results.folder)), quote(str(results.folder / "evaluation"))
        print(printable(f"  {program()} evaluate --results {judged} --output {here}"))
    print(f"Look at {page}")


def _tell_unseen(unseen: Mapping[str, str], images: int) -> None:
    """Print how many of the images are not shown, and what helps."""
    there = {image: os.path.exists(image) for image in unseen}  # noqa: PTH110 - a stranger's path may be too long

    def some(found: bool) -> str:
        count = list(there.values()).count(found)
        return f"{count:,} of {images:,} images {'was' if count == 1 else 'were'} not"

    if gone := [image for image in unseen if not there[image]]:
        print(
            f"{some(False)} found, e.g. {gone[0]}; run the command from the folder in which the run was started, or "
            f"pass --images FOLDER",
            file=sys.stderr,
        )
    if others := [problem for image, problem in unseen.items() if there[image]]:
        print(f"{some(True)} shown, e.g.: {others[0]}", file=sys.stderr)
