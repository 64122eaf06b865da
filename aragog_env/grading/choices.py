"""Graders for questions with few answers: MMLU-Pro's letters, StrategyQA's yes and no."""

from __future__ import annotations

from ..datasets.record import Record
from .answers import extract_letter, extract_yes_no
from .grade import Grade, right_or_wrong


def grade_letter(record: Record, output: str) -> Grade:
    """Grade a multiple-choice answer; ``record.gold`` is the letter, ``record.extras['options']`` how many there are."""
    return right_or_wrong(extract_letter(output, record.extras.get("options", 10)), record.gold)


def grade_yes_no(record: Record, output: str) -> Grade:
    """Grade a yes-or-no answer; ``record.gold`` is "yes" or "no"."""
    return right_or_wrong(extract_yes_no(output), record.gold)
