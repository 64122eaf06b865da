"""HumanEval (Chen et al. 2021, arXiv 2107.03374; openai/human-eval, MIT): Python functions to complete.

Published format: JSON lines with task_id, prompt, entry_point, canonical_solution and test.
"""

from __future__ import annotations

from pathlib import Path

from .files import read_entries
from .record import Record

FILES = ("HumanEval.jsonl.gz", "HumanEval.jsonl", "humaneval.jsonl.gz", "humaneval.jsonl")


def load(path: Path) -> list[Record]:
    """Return the problems of a file; `gold` is the canonical solution (a completion of the prompt)."""
    return [
        Record(
            id=entry.get("task_id", str),
            query=entry.get("prompt", str),
            gold=entry.get("canonical_solution", str),
            extras={"entry_point": entry.get("entry_point", str), "test": entry.get("test", str)},
        )
        for entry in read_entries(path)
    ]
