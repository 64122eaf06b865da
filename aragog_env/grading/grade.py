"""A grade: how right an answer is, and why."""

from __future__ import annotations

from dataclasses import dataclass

from .sandbox import Status


@dataclass(frozen=True)
class Grade:
    """What a grader says of one answer."""

    correct: bool
    """Right or wrong, as the benchmark counts it."""
    score: float
    """Between 0 and 1; equal to `correct` unless the benchmark has partial credit (F1 of SQuAD)."""
    status: Status
    """``failed``: wrong; ``error``: no answer could be read, or it crashed; ``refused``: not graded at all."""
    answer: str
    """The answer as it was read from the output."""
    detail: str = ""
    """One line for people."""
    wall_s: float = 0.0

    @property
    def graded(self) -> bool:
        """Whether this says anything about the answer; False where programs cannot be run safely."""
        return self.status != "refused"


def right_or_wrong(found: str | None, gold: str) -> Grade:
    """Return the grade of an answer that must equal `gold`; None means that no answer could be read."""
    if found is None:
        return Grade(False, 0.0, "error", "", "no answer found in the output")
    same = found == gold
    return Grade(same, float(same), "passed" if same else "failed", found, "" if same else f"'{gold}' is right")
