"""Errors whose text is written for the person who has to fix the input."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AragogError(Exception):
    """Anything this package refuses to do; the command line prints the message and exits with `exit_code`."""

    exit_code = 1


class SpecError(AragogError):
    """Bad input: one sentence that says what is wrong, where, and what would be right.

    Args:
        message: the sentence, without a location.
        where: the location as a person would look for it, e.g. ``my.yaml:12, key 'replicas[0].tp'``.
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str | None = None) -> None:
        self.message = message
        self.where = where
        super().__init__(f"{where}: {message}" if where else message)


class PolicyError(AragogError):
    """A policy raised or answered with something that is no decision; carries the policy's name."""

    def __init__(self, policy: str, message: str) -> None:
        self.policy = policy
        self._reason = message
        super().__init__(f"policy '{policy}': {message}")

    def __reduce__(self) -> tuple[type[PolicyError], tuple[str, str]]:
        """Make it again from what it was made of: worker processes hand it to their parent."""
        return type(self), (self.policy, self._reason)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for a near miss, else the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(names)}." if names else ""
