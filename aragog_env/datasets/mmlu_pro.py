"""MMLU-Pro (Wang et al. 2024, arXiv 2406.01574, MIT), and the original MMLU: multiple choice.

Published formats: rows with question_id, question, options (a list, up to ten; "N/A" fills gaps), answer (a letter) in JSON
lines, JSON or parquet; and MMLU's CSV with the header subject, question, A, B, C, D, answer.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import SpecError
from .files import Entry, read_entries
from .record import Record

FILES = ("mmlu_pro.jsonl", "mmlu_pro.jsonl.gz", "test-00000-of-00001.parquet", "mmlu_test.csv", "mmlu_test.csv.gz")
LETTERS = "ABCDEFGHIJ"


def load(path: Path) -> list[Record]:
    """Return the questions of a file; `gold` is the letter."""
    return [_record(entry, i) for i, entry in enumerate(read_entries(path))]


def _record(entry: Entry, row: int) -> Record:
    if "options" in entry.data:
        options = [option for option in entry.texts("options") if option != "N/A"]
        identifier = str(entry.get("question_id", int, str))
        subject = entry.data.get("category", "")
    else:
        options = [entry.get(letter, str) for letter in "ABCD"]
        identifier, subject = f"mmlu/{row}", entry.data.get("subject", "")
    gold = entry.get("answer", str).strip()
    if not 2 <= len(options) <= len(LETTERS):
        raise SpecError(f"expected 2 to {len(LETTERS)} options, got {len(options)}", where=entry.where)
    if len(gold) != 1 or gold not in LETTERS[: len(options)]:
        wanted = f"a letter from A to {LETTERS[len(options) - 1]}"
        raise SpecError(
            f"the answer '{gold}' must be {wanted}, since there are {len(options)} options", where=entry.where
        )
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    query = f"Question: {entry.get('question', str).strip()}\nOptions:\n" + "\n".join(lines)
    return Record(identifier, query, gold, {"options": len(options), "subject": subject})
