"""SQuAD v2.0 (Rajpurkar et al. 2018, arXiv 1806.03822, CC-BY-SA-4.0): questions on passages, some without an answer.

Published formats: the official dev-v2.0.json (articles of paragraphs of questions), and flat rows as on the hub (id,
context, question, answers: {text: [...]}) in JSON lines or parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import SpecError
from .files import Entry, read_entries, read_json
from .record import Record

FILES = ("dev-v2.0.json", "squad_v2.jsonl", "squad_v2.jsonl.gz", "squad_v2.parquet")


def load(path: Path) -> list[Record]:
    """Return the questions of a file; `gold` is the list of right answers, empty where there is none."""
    if not path.name.removesuffix(".gz").endswith(".json"):
        return [_flat(entry) for entry in read_entries(path)]
    data = read_json(path)
    if not isinstance(data, dict) or "data" not in data:
        raise SpecError("expected SQuAD's own format, an object with the key 'data'", where=str(path))
    return list(_nested(data, str(path)))


def _flat(entry: Entry) -> Record:
    answers = Entry(entry.get("answers", dict), f"{entry.where}, answers")
    return _record(entry.get("id", str), entry.get("context", str), entry.get("question", str), answers.texts("text"))


def _nested(data: dict[str, Any], where: str) -> Iterator[Record]:
    for article in _entries(Entry(data, where), "data"):
        for paragraph in _entries(article, "paragraphs"):
            context = paragraph.get("context", str)
            for question in _entries(paragraph, "qas"):
                gold = [answer.get("text", str) for answer in _entries(question, "answers")]
                if question.data.get("is_impossible") and gold:
                    raise SpecError("a question without an answer ('is_impossible') has answers", where=question.where)
                yield _record(question.get("id", str), context, question.get("question", str), gold)


def _entries(parent: Entry, key: str) -> Iterator[Entry]:
    for i, item in enumerate(parent.get(key, list)):
        where = f"{parent.where}, {key}[{i}]"
        if not isinstance(item, dict):
            raise SpecError("expected an object in braces", where=where)
        yield Entry(item, where)


def _record(identifier: str, context: str, question: str, gold: list[str]) -> Record:
    return Record(identifier, f"Passage: {context.strip()}\n\nQuestion: {question.strip()}", gold)
