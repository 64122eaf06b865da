"""SQuAD v2.0 for real: exact match and F1 with the official normalisation.

Source: the official evaluation script of SQuAD 2.0 (Rajpurkar, Jia and Liang 2018, arXiv 1806.03822): lower case,
punctuation and articles removed, white space joined; the best over all gold answers; for a question without an answer,
both are 1 when nothing is answered and 0 otherwise.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Final

from ..datasets.record import Record
from .answers import extract_span
from .grade import Grade

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return `text` in lower case without punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: Sequence[str]) -> bool:
    """Return whether an answer equals a gold answer after normalisation; no gold answers: whether it is empty."""
    return normalize(answer) in {normalize(text) for text in _golds(gold)}


def f1(answer: str, gold: Sequence[str]) -> float:
    """Return the best F1 over words between an answer and the gold answers."""
    return max(_f1(normalize(answer).split(), normalize(text).split()) for text in _golds(gold))


def _golds(gold: Sequence[str]) -> list[str]:
    """Gold answers that are nothing but articles and punctuation do not count, as in the script."""
    return [text for text in gold if normalize(text)] or [""]


def _f1(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    common = sum((Counter(answer) & Counter(gold)).values())
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def grade(record: Record, output: str) -> Grade:
    """Grade an answer: `score` is F1, `correct` is exact match; ``record.gold`` lists the answers, empty for none."""
    span = extract_span(output)
    if span is None:
        return Grade(False, 0.0, "error", "", "no line 'Answer: ...' in the output")
    right, score = exact_match(span, record.gold), f1(span, record.gold)
    wanted = " / ".join(dict.fromkeys(record.gold)) or "unanswerable"
    return Grade(right, score, "passed" if right else "failed", span, "" if right else f"'{wanted}' is right")
