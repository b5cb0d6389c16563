"""Draw the package's architecture from its imports: ``python docs/architecture.py`` writes docs/architecture.svg.

Folders are placed by hand; arrows come from the code. Arrows implied by others are omitted.
"""

from __future__ import annotations

import ast
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
NAME = "fgvis_lightning"

# Folder or module → column, number of columns, row, and purpose. All may import `SHARED`.
GROUPS: dict[str, tuple[int, int, int, str]] = {
    "method": (0, 4, 0, "the paper's method, in plain torch"),
    "networks": (0, 4, 1, "classifiers, frozen"),
    "defense": (0, 2, 2, "gates behind the network's nonlinearities"),
    "metrics": (2, 1, 2, "quality of maps"),
    "results": (0, 2, 3, "explanations and results folders"),
    "data": (0, 2, 4, "image files → items → batches"),
    "engine": (0, 2, 5, "running a sweep"),
    "explainer": (0, 2, 6, "FGVis, a LightningModule whose only parameter is the mask"),
    "callbacks": (0, 1, 8, "outputs of a sweep"),
    "api": (1, 1, 7, "explain()"),
    "baselines": (1, 1, 8, "other methods"),
    "bias": (3, 1, 8, "tests for bias"),
    "experiments": (0, 4, 9, "all commands except fit, report and benchmark"),
    "report": (0, 2, 10, "the commands report and benchmark: results as a page"),
    "cli": (2, 2, 10, "the command line"),
}
SHARED = ("errors", "names", "texts")

Edge = tuple[str, str]


def modules() -> dict[str, Path]:
    """All modules of the package, by dotted name."""
    paths = sorted(path for path in (ROOT / NAME).rglob("*.py") if path.stem != "__main__")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports() -> dict[str, set[str]]:
    """Module → modules of the package that it imports anywhere in its code."""
    known = modules()
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        found[module] = set()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for block in ast.walk(tree):  # ignore imports that only types need
            if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
                block.body = []
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == NAME:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found[module] |= {name if name in known else node.module for name in names}
            elif isinstance(node, ast.Import):
                found[module] |= {alias.name for alias in node.names if alias.name.split(".")[0] == NAME}
    return found


def top(module: str) -> str:
    """Top-level folder or module: ``baselines`` for ``fgvis_lightning.baselines.lime``."""
    return module.split(".")[1] if "." in module else ""


def edges() -> set[Edge]:
    """Pairs (imported group, importing group)."""
    pairs = {(top(used), top(module)) for module, others in imports().items() for used in others}
    return {(one, other) for one, other in pairs if one in GROUPS and other in GROUPS and one != other}


def members(group: str) -> list[str]:
    """The modules of a folder; empty for a module."""
    return [module.split(".")[2] for module in modules() if top(module) == group and module.count(".") == 2]


def reduced(pairs: set[Edge]) -> list[Edge]:
    """Arrows that are not implied by others."""

    def leads(start: str, end: str) -> bool:
        return any(other == end or leads(other, end) for one, other in pairs if one == start)

    return sorted(
        (one, other)
        for one, other in pairs
        if not any(middle != other and leads(middle, other) for start, middle in pairs if start == one)
    )


WIDE, GAP, STEP, EDGE, LINE = 250, 30, 40, 12, 22


def lines(group: str) -> list[str]:
    """The names of a folder's modules, wrapped to the width of its box."""
    return wrap(", ".join(members(group)), (GROUPS[group][1] * (WIDE + GAP) - GAP) // 9)


def tops() -> list[int]:
    """Upper edge of each row, and the lower edge of the last one."""
    found = [EDGE]
    for row in range(1 + max(group[2] for group in GROUPS.values())):
        most = max(len(lines(name)) for name, group in GROUPS.items() if group[2] == row)
        found.append(found[-1] + 66 + LINE * most + STEP)
    return found


def box(title: str) -> tuple[float, float, float, float]:
    """Left, top, width and height of a group."""
    column, span, row, *_ = GROUPS[title]
    top, below = tops()[row : row + 2]
    return EDGE + column * (WIDE + GAP), top, span * (WIDE + GAP) - GAP, below - STEP - top


def arrow(one: str, other: str) -> str:
    """Arrow from the lower edge of a group straight down to another group, or around a corner into its side."""
    (x, y, wide, high), (left, top, width, _) = box(one), box(other)
    start, end = max(x, left), min(x + wide, left + width)
    if start >= end:
        line = f"M{x + 40:g} {y + high:g} V{top + 40:g} H{left + width + 8:g}"
    else:
        line = f"M{(start + end) / 2:g} {y + high:g} V{top - 8:g}"
    return f'<path d="{line}" data-from="{one}" data-to="{other}"/>'


def draw() -> str:
    """The picture, as SVG."""
    parts = []
    for title, (*_, about) in GROUPS.items():
        x, y, wide, high = box(title)
        parts += [
            f'<g id="{title}"><rect class="group" x="{x}" y="{y}" width="{wide}" height="{high}" rx="8"/>',
            f'<text class="title" x="{x + 14}" y="{y + 28}">{title}</text>',
            f'<text class="about" x="{x + 14}" y="{y + 51}">{about}</text>',
            *(
                f'<text class="names" x="{x + 14}" y="{y + 76 + LINE * n}">{line}</text>'
                for n, line in enumerate(lines(title))
            ),
            "</g>",
        ]
    wide, high = 2 * EDGE + 4 * WIDE + 3 * GAP, tops()[-1] - STEP + EDGE
    style = (
        ".back{fill:#fff}.group{fill:#eef6f5;stroke:#00796b;stroke-width:1.5}"
        "text{font-family:system-ui,sans-serif;fill:#222}.title{font-size:20px;font-weight:700}"
        ".about{font-size:16px;fill:#555}.names{font-size:15px;font-family:ui-monospace,monospace}"
        "path{stroke:#555;stroke-width:2;fill:none;marker-end:url(#head)}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" role="img">',
            "<title>Groups of modules, with arrows from imported to importing groups</title>",
            f"<style>{style}</style>",
            '<defs><marker id="head" viewBox="0 0 10 10" refX="5" refY="5" markerWidth="6" markerHeight="6"'
            ' orient="auto">'
            '<polygon points="0,0 10,5 0,10" fill="#555"/></marker></defs>',
            f'<rect class="back" width="{wide}" height="{high}" rx="8"/>',
            *(arrow(*edge) for edge in reduced(edges())),
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
