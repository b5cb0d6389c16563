"""Overview of all items in numbers and plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from statistics import median

from fgvis_lightning.report.gather import MISSED, REACHED, Entry, Results
from fgvis_lightning.report.sections import Rows
from fgvis_lightning.results.numbers import USUAL, percent, score_after

EVIDENCE = "mean evidence"
BINS = 20
SEVERAL = 2
"""Minimum number of items for an overview."""

ENOUGH = 5
"""Minimum number of items for medians; fewer are described by their lowest and highest value."""

MANY = 10
"""Minimum number of items for plots."""

MOST_POINTS = 3000
"""Maximum number of points in a plot, evenly spread over the items."""


@dataclass(frozen=True)
class Histogram:
    """Histogram of a value between 0 and 1 over the items.

    Attributes:
        title: name of the value.
        counts: in `BINS` equal intervals.
        median: of the values.
    """

    title: str
    counts: tuple[int, ...]
    median: float


@dataclass(frozen=True)
class Overview:
    """Summary of all items.

    Attributes:
        made: numbers of photos and items, and the date of the newest explanation; empty without items.
        enough: whether there are enough items for an overview.
        facts: name → number, in a few words.
        setup: name → setting of the items.
        after: name of the second score, which depends on the game; empty for maps.
        histograms: of scores, mean evidence and AUC.
        points: mean evidence, second score, the number of the entry, and whether its level was missed.
        methods: a row for each method, if there are several.
        classes: the most frequent ones.
        failures: missing items, with reasons.
        judged: whether some items have deletion and insertion AUC.
        agree: whether some items have several runs.
    """

    made: str
    enough: bool
    facts: tuple[tuple[str, str], ...]
    setup: tuple[tuple[str, str], ...]
    after: str
    histograms: tuple[Histogram, ...]
    points: tuple[tuple[float, float, int, bool], ...]
    methods: Rows | None
    classes: Rows | None
    failures: Rows | None
    judged: bool
    agree: bool


def look_over(results: Results) -> Overview:
    """Summarize the results."""
    done = [entry for entry in results.entries if not entry.missing]
    missing = [entry for entry in results.entries if entry.missing]
    methods = list(dict.fromkeys(entry.method for entry in results.entries))
    failures = tuple((entry.method, entry.id, entry.state, entry.reason) for entry in missing)
    afters = _afters(done)
    return Overview(
        made=_made(done),
        enough=len({entry.id for entry in done}) >= SEVERAL,
        facts=_facts(done, missing, methods),
        setup=_setup(done),
        after="second score" if len(afters) > 1 else "".join(afters),
        histograms=_histograms(done) if len(done) >= MANY else (),
        points=_points(results.entries),
        methods=_methods(done, methods) if len(methods) > 1 else None,
        classes=_classes(done),
        failures=Rows("Missing items, with reasons", ("of", "name", "what", "reason"), failures) if missing else None,
        judged=any(entry.values for entry in done),
        agree=any(entry.agreement is not None for entry in done),
    )


def _made(done: Sequence[Entry]) -> str:
    """How many photos and items there are, and when the newest was explained, by the time of its file."""
    if not done:
        return ""
    counts = {"photo": len({entry.image for entry in done} - {""}), "item": len({entry.id for entry in done})}
    words = [f"{count:,} {name}{'' if count == 1 else 's'}" for name, count in counts.items() if count]
    newest = date.fromtimestamp(max(entry.path.stat().st_mtime for entry in done))
    return f"{', '.join(words)}; newest explanation of {newest.day} {newest:%B %Y}"


def _facts(done: Sequence[Entry], missing: Sequence[Entry], methods: Sequence[str]) -> tuple[tuple[str, str], ...]:
    facts = [("items", f"{len({entry.id for entry in done}):,}")]
    if len(methods) > 1:
        facts.append(("methods", str(len(methods))))
    if (classes := len({entry.name for entry in done})) > 1:
        facts.append(("classes", f"{classes:,}"))
    if missing:
        facts.append(("missing", f"{len(missing):,}"))
    missed = [entry.state for entry in done].count(MISSED)
    if known := missed + [entry.state for entry in done].count(REACHED):
        facts.append(("level reached", f"{known - missed:,} of {known:,}"))
    if missed:
        facts.append(("level missed", f"{missed:,}"))
    values = _numbers(done) | {f"agreement of the runs ({USUAL})": _known(entry.agreement for entry in done)}
    facts += [_middle(name, own) for name, own in values.items() if own]
    return tuple(facts)


def _middle(name: str, values: Sequence[float]) -> tuple[str, str]:
    """Name and number of the middle of a value, or its range if there are few items."""
    if len(values) >= ENOUGH:
        return f"median {name}", _median(name, values)
    low, high = (_shown(name, value) for value in (min(values), max(values)))
    return name, low if low == high else f"{low.removesuffix(' %')} to {high}"


def _setup(done: Iterable[Entry]) -> tuple[tuple[str, str], ...]:
    """The most important settings, with the values of all items."""
    settings = list({entry.metadata.get("settings", ""): entry.settings for entry in done}.values())
    found = []
    for name in ("network", "game", "lam", "level", "iterations", "seeds", "noise", "defended"):
        words = list(dict.fromkeys(_word(value) for one in settings if (value := one.get(name)) is not None))
        if words:
            shown = ", ".join(words[:4]) + (", …" if len(words) > 4 else "")
            found.append(({"lam": "λ", "seeds": "runs merged (seeds)"}.get(name, name), shown))
    return tuple(found)


def _word(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _numbers(done: Iterable[Entry]) -> dict[str, list[float]]:
    """The values that items have, by name."""
    done = list(done)

    images = {entry.id: entry.score_image for entry in done}  # the same for every method
    return {
        "score on the image": _known(images.values()),
        **_afters(done),
        EVIDENCE: _known(entry.evidence for entry in done),
        "deletion AUC": _known(entry.values.get("deletion") for entry in done),
        "insertion AUC": _known(entry.values.get("insertion") for entry in done),
    }


def _afters(done: Iterable[Entry]) -> dict[str, list[float]]:
    """The second scores, by their names, which depend on the game."""
    found: dict[str, list[float]] = {}
    for entry in done:
        if score := _known([entry.score_explanation]):
            found.setdefault(score_after(entry.metadata.get("game")), []).extend(score)
    return found


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and value == value]


def _median(name: str, values: Sequence[float]) -> str:
    return _shown(name, median(values)) if values else ""


def _shown(name: str, value: float) -> str:
    return percent(value) if name == EVIDENCE else f"{value:.3f}"


def _histograms(done: Sequence[Entry]) -> tuple[Histogram, ...]:
    found = []
    for title, values in _numbers(done).items():
        if len(values) > 1:
            bins = Counter(min(BINS - 1, max(0, int(BINS * value))) for value in values)
            found.append(Histogram(title, tuple(bins[place] for place in range(BINS)), median(values)))
    return tuple(found)


def _points(entries: Sequence[Entry]) -> tuple[tuple[float, float, int, bool], ...]:
    points = [
        (entry.evidence, entry.score_explanation, number, entry.state == MISSED)
        for number, entry in enumerate(entries)
        if entry.evidence is not None and entry.score_explanation is not None
    ]
    return tuple(points[:: -(-len(points) // MOST_POINTS) or 1])


def _methods(done: Sequence[Entry], methods: Sequence[str]) -> Rows:
    """Medians of each method's items, for values that at least one method has."""
    shown = [name for name, values in _numbers(done).items() if values]
    rows = []
    for method in methods:
        own = [entry for entry in done if entry.method == method]
        numbers = _numbers(own)
        medians = (_median(name, numbers.get(name, ())) for name in shown)
        rows.append((method, f"{len(own):,}", *medians))
    return Rows("Methods", ("method", "items", *(f"median {name}" for name in shown)), tuple(rows))


def _classes(done: Sequence[Entry]) -> Rows | None:
    """The ten most frequent classes, with the medians of their items."""
    count = Counter(entry.name for entry in done)
    if len(done) < ENOUGH or len(count) < 2 or max(count.values()) == 1:  # the list already shows it
        return None
    rows, shown = [], [name for name, values in _numbers(done).items() if values]
    for name, _ in sorted(count.items(), key=lambda pair: (-pair[1], pair[0]))[:10]:
        own = _numbers(entry for entry in done if entry.name == name)
        rows.append((name, f"{count[name]:,}", *(_median(value, own.get(value, ())) for value in shown)))
    return Rows(
        f"{'Most frequent classes' if len(count) > 10 else 'Classes'}, medians", ("class", "items", *shown), tuple(rows)
    )
