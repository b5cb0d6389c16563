"""Draws the architecture from the imports of the package: ``python docs/architecture.py`` writes docs/architecture.svg.

Modules are put into groups by hand; arrows are what the code says. One that follows from others is left out.
"""

from __future__ import annotations

import ast
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
NAME = "fgvis_lightning"

# Title → column, columns that it takes, row, what it is for, and its modules and packages.
GROUPS: dict[str, tuple[int, int, int, str, tuple[str, ...]]] = {
    "network": (
        0,
        4,
        0,
        "a frozen classifier, its preprocessing and classes",
        ("errors", "names", "shipped", "network"),
    ),
    "defense": (
        0,
        2,
        2,
        "gates behind the network's nonlinearities",
        ("nonlinearities", "audit", "interception", "gates", "coverage", "folding", "defense"),
    ),
    "method": (2, 1, 1, "the method, plain torch", ("method",)),
    "files": (0, 2, 3, "explanations and results folders", ("store", "tables", "cost", "folder")),
    "data": (0, 2, 4, "files → items → places of a batch", ("images", "items", "data")),
    "explainer": (
        0,
        2,
        5,
        "the mask and its iterations",
        ("quiet", "answers", "batch_size", "strategy", "module", "explainer", "memory"),
    ),
    "output": (0, 1, 6, "what leaves a sweep", ("figures", "callbacks", "tensorboard", "progress", "run")),
    "baselines": (1, 1, 6, "methods beside FGVis", ("baselines",)),
    "metrics": (2, 1, 6, "what maps are worth", ("metrics",)),
    "bias": (3, 1, 6, "does it go by color?", ("bias",)),
    "experiments": (0, 4, 7, "the commands beside fit", ("building", "parsing", "experiments", "report")),
    "cli": (0, 4, 8, "the command line", ("signals", "completion", "cli")),
}

Edge = tuple[str, str]


def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    paths = sorted(path for path in (ROOT / NAME).rglob("*.py") if path.stem != "__main__")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports() -> dict[str, set[str]]:
    """Module → modules of the package that it imports, wherever in its code."""
    known = modules()
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == NAME:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found[module] |= {name if name in known else node.module for name in names}
            elif isinstance(node, ast.Import):
                found[module] |= {alias.name for alias in node.names if alias.name.split(".")[0] == NAME}
    return found


def top(module: str) -> str:
    """A module's own name, or its package's: ``baselines`` for ``fgvis_lightning.baselines.lime``."""
    return module.split(".")[1] if "." in module else ""


def edges() -> set[Edge]:
    """Which group is imported by which."""
    group = {name: title for title, (*_, names) in GROUPS.items() for name in names}
    pairs = {
        (group[top(used)], group[top(module)])
        for module, others in imports().items()
        for used in others
        if top(module) and top(used)
    }
    return {(one, other) for one, other in pairs if one != other}


def reduced(pairs: set[Edge]) -> list[Edge]:
    """Without the arrows that follow from others."""

    def leads(start: str, end: str) -> bool:
        return any(other == end or leads(other, end) for one, other in pairs if one == start)

    return sorted(
        (one, other)
        for one, other in pairs
        if not any(middle != other and leads(middle, other) for start, middle in pairs if start == one)
    )


WIDE, HIGH, GAP, STEP, EDGE = 250, 112, 30, 40, 12
PASS = 60
"""Space at the right of `games`, which arrows from above pass."""


def box(title: str) -> tuple[float, float, float, float]:
    """Left, top, width and height of a group."""
    column, span, row, *_ = GROUPS[title]
    wide = span * WIDE + (span - 1) * GAP - (PASS if title == "games" else 0)
    return EDGE + column * (WIDE + GAP), EDGE + row * (HIGH + STEP), wide, HIGH


def arrow(one: str, other: str) -> str:
    """From the lower edge of a group straight down to another, or around the corner into its side."""
    (x, y, wide, high), (left, top, width, _) = box(one), box(other)
    start, end = max(x, left), min(x + wide, left + width)
    if start >= end:
        line = f"M{x + 40:g} {y + high:g} V{top + high / 2:g} H{left + width + 8:g}"
    else:
        beside = one == "network" and other == "metrics"  # past games
        across = left + width - PASS / 2 if beside else (start + end) / 2
        line = f"M{across:g} {y + high:g} V{top - 8:g}"
    return f'<path d="{line}" data-from="{one}" data-to="{other}"/>'


def draw() -> str:
    """The picture, as SVG."""
    parts = []
    for title, (_, span, _, about, names) in GROUPS.items():
        x, y, wide, high = box(title)
        lines = wrap(" · ".join(names), 25 * span + 4 * (span - 1))
        parts += [
            f'<g id="{title}"><rect class="group" x="{x}" y="{y}" width="{wide}" height="{high}" rx="8"/>',
            f'<text class="title" x="{x + 14}" y="{y + 28}">{title}</text>',
            f'<text class="about" x="{x + 14}" y="{y + 51}">{about}</text>',
            *(f'<text class="names" x="{x + 14}" y="{y + 76 + 22 * n}">{line}</text>' for n, line in enumerate(lines)),
            "</g>",
        ]
    wide, high = 2 * EDGE + 4 * WIDE + 3 * GAP, 2 * EDGE + 8 * HIGH + 7 * STEP
    style = (
        ".back{fill:#fff}.group{fill:#eef6f5;stroke:#00796b;stroke-width:1.5}"
        "text{font-family:system-ui,sans-serif;fill:#222}.title{font-size:20px;font-weight:700}"
        ".about{font-size:16px;fill:#555}.names{font-size:15px;font-family:ui-monospace,monospace}"
        "path{stroke:#555;stroke-width:2;fill:none;marker-end:url(#head)}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" role="img">',
            "<title>Groups of modules, and arrows from what is imported to what imports it</title>",
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
