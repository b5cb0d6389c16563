"""Overview of all items in numbers and plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date
from statistics import median
from typing import Any

from fgvis_lightning.report.gather import MISSED, REACHED, Entry, Results
from fgvis_lightning.report.sections import Rows
from fgvis_lightning.results.numbers import USUAL, percent, score_after

EVIDENCE = "mean evidence"
BINS = 20
SEVERAL = 2  # minimum number of items for an overview
ENOUGH = 5  # minimum number of items for medians; fewer are described by their lowest and highest value
MANY = 10  # minimum number of items for plots
MOST_POINTS = 3000  # maximum number of points in a plot, evenly spread over the items


def look_over(results: Results) -> dict[str, Any]:
    """Summarize all items, for the page.

    Returns:
        ``made``, numbers of photos and items, and the date of the newest explanation, empty without items; ``enough``,
        whether there are enough items for an overview; ``facts``, name and number in a few words; ``setup``, name and
        setting of the items; ``after``, name of the second score, which depends on the game, empty for maps;
        ``histograms`` of scores, mean evidence and AUC; ``points``, mean evidence, second score, the number of the
        entry, and whether its level was missed; ``methods``, a row for each method, if there are several; ``classes``,
        the most frequent ones; ``failures``, missing items, with reasons; ``judged``, whether some items have deletion
        and insertion AUC; ``agree``, whether some items have several runs.
    """
    done = [entry for entry in results.entries if not entry.missing]
    missing = [entry for entry in results.entries if entry.missing]
    methods = list(dict.fromkeys(entry.method for entry in results.entries))
    failures = [(entry.method, entry.id, entry.state, entry.reason) for entry in missing]
    afters = _afters(done)
    return {
        "made": _made(done),
        "enough": len({entry.id for entry in done}) >= SEVERAL,
        "facts": _facts(done, missing, methods),
        "setup": _setup(done),
        "after": "second score" if len(afters) > 1 else "".join(afters),
        "histograms": _histograms(done) if len(done) >= MANY else [],
        "points": _points(results.entries),
        "methods": _methods(done, methods) if len(methods) > 1 else None,
        "classes": _classes(done),
        "failures": missing and Rows("Missing items, with reasons", ("of", "name", "what", "reason"), failures),
        "judged": any(entry.values for entry in done),
        "agree": any(entry.agreement is not None for entry in done),
    }


def _made(done: Sequence[Entry]) -> str:
    """How many photos and items there are, and when the newest was explained, by the time of its file."""
    if not done:
        return ""
    counts = {"photo": len({entry.image for entry in done} - {""}), "item": len({entry.id for entry in done})}
    words = [f"{count:,} {name}{'' if count == 1 else 's'}" for name, count in counts.items() if count]
    newest = date.fromtimestamp(max(entry.path.stat().st_mtime for entry in done))
    return f"{', '.join(words)}; newest explanation of {newest.day} {newest:%B %Y}"


def _facts(done: Sequence[Entry], missing: Sequence[Entry], methods: Sequence[str]) -> list[tuple[str, str]]:
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
    for name, own in values.items():
        if len(own) >= ENOUGH:
            facts.append((f"median {name}", _shown(name, median(own))))
        elif own:
            low, high = _shown(name, min(own)), _shown(name, max(own))
            facts.append((name, low if low == high else f"{low.removesuffix(' %')} to {high}"))
    return facts


def _setup(done: Iterable[Entry]) -> list[tuple[str, str]]:
    """The most important settings, with the values of all items."""
    settings = list({entry.metadata.get("settings", ""): entry.settings for entry in done}.values())
    found = []
    for name in ("network", "game", "lam", "level", "iterations", "seeds", "noise", "defended"):
        words = list(dict.fromkeys(_word(value) for one in settings if (value := one.get(name)) is not None))
        if words:
            shown = ", ".join(words[:4]) + (", …" if len(words) > 4 else "")
            found.append(({"lam": "λ", "seeds": "runs merged (seeds)"}.get(name, name), shown))
    return found


def _word(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _numbers(done: Sequence[Entry]) -> dict[str, list[float]]:
    """The values that items have, by name."""
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


def _shown(name: str, value: float) -> str:
    return percent(value) if name == EVIDENCE else f"{value:.3f}"


def _histograms(done: Sequence[Entry]) -> list[dict[str, Any]]:
    """For each value between 0 and 1: its name, counts in `BINS` equal intervals, and median over the items."""
    found = []
    for title, values in _numbers(done).items():
        if len(values) > 1:
            bins = Counter(min(BINS - 1, max(0, int(BINS * value))) for value in values)
            counts = [bins[place] for place in range(BINS)]
            found.append({"title": title, "counts": counts, "median": median(values)})
    return found


def _points(entries: Sequence[Entry]) -> list[tuple[float, float, int, bool]]:
    points = [
        (entry.evidence, entry.score_explanation, number, entry.state == MISSED)
        for number, entry in enumerate(entries)
        if entry.evidence is not None and entry.score_explanation is not None
    ]
    return points[:: -(-len(points) // MOST_POINTS) or 1]


def _methods(done: Sequence[Entry], methods: Sequence[str]) -> Rows:
    shown, rows = _medians(done, [(method, [entry for entry in done if entry.method == method]) for method in methods])
    return Rows("Methods", ("method", "items", *(f"median {name}" for name in shown)), rows)


def _classes(done: Sequence[Entry]) -> Rows | None:
    """The ten most frequent classes."""
    count = Counter(entry.name for entry in done)
    if len(done) < ENOUGH or len(count) < 2 or max(count.values()) == 1:  # the list already shows it
        return None
    names = sorted(count, key=lambda name: (-count[name], name))[:10]
    shown, rows = _medians(done, [(name, [entry for entry in done if entry.name == name]) for name in names])
    caption = "Most frequent classes, medians" if len(count) > 10 else "Classes, medians"
    return Rows(caption, ("class", "items", *shown), rows)


def _medians(
    done: Sequence[Entry], groups: Sequence[tuple[str, Sequence[Entry]]]
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Names of the values that at least one item has; and for each group its name, number of items, and medians."""
    shown = [name for name, values in _numbers(done).items() if values]
    rows = []
    for group, own in groups:
        numbers = _numbers(own)
        medians = (_shown(name, median(values)) if (values := numbers.get(name)) else "" for name in shown)
        rows.append((group, f"{len(own):,}", *medians))
    return shown, rows
