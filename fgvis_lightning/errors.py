"""The error for mistakes in what a user gave; the command line prints its message without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

GO_ON = "What is finished is kept: the same command goes on from there."
"""What a command says in the end that was interrupted."""


class InputError(ValueError):
    """A user's input that cannot be used; the message says what was expected, what came, and what to do."""


def nearest(word: str, known: Iterable[str], n: int = 3) -> str:
    """Return a clause with the known words nearest to ``word``, or an empty string."""
    by_lower = {name.lower(): name for name in known}
    names = [by_lower[match] for match in get_close_matches(word.lower(), by_lower, n=n, cutoff=0.5)]
    return f" Nearest: {', '.join(names)}." if names else ""
