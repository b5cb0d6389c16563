"""The error for user mistakes; the command line prints its message without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

GO_ON = "Finished items are kept. Run the same command again to continue."  # last message of an interrupted command


class InputError(ValueError):
    """Invalid user input; the message states the expected input, the actual input, and a remedy."""


def one_of(known: Iterable[str], **options: str) -> None:
    """Raise `InputError` unless each option, given by its name, is one of the known words."""
    for name, given in options.items():
        if given not in known:
            raise InputError(
                f"Expected {name} to be one of {', '.join(known)}, but got {given!r}.{nearest(str(given), known)}"
            )


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a sentence that lists the known words nearest to ``word``, or an empty string."""
    by_lower = {name.lower(): name for name in known}
    names = [by_lower[match] for match in get_close_matches(word.lower(), by_lower, cutoff=0.5)]
    return f" Nearest: {', '.join(names)}." if names else ""
