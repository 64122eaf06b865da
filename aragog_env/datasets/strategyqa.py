"""StrategyQA (Geva et al. 2021, arXiv 2101.02235, MIT): yes-or-no questions that take several facts.

Published formats: strategyqa_train.json (a list with qid, question, answer: true or false, and more), and rows with the
same keys in JSON lines or parquet.
"""

from __future__ import annotations

from pathlib import Path

from .files import read_entries
from .record import Record

FILES = ("strategyqa_train.json", "strategyqa.jsonl", "strategyqa.jsonl.gz", "strategyqa_test.json")


def load(path: Path) -> list[Record]:
    """Return the questions of a file; `gold` is "yes" or "no"."""
    return [
        Record(
            id=entry.get("qid", str) if "qid" in entry.data else f"strategyqa/{i}",
            query=entry.get("question", str).strip(),
            gold="yes" if entry.get("answer", bool) else "no",
        )
        for i, entry in enumerate(read_entries(path))
    ]
