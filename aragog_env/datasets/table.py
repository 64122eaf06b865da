"""The plain format for data sets of your own: one object a line with id, query, gold; other keys become extras."""

from __future__ import annotations

from pathlib import Path

from ..errors import SpecError
from .files import read_entries
from .record import Record

FILES: tuple[str, ...] = ()
"""No usual name: a workflow or the user names the file."""


def load(path: Path) -> list[Record]:
    """Return the records of a file; `gold` may be any JSON value that its grader understands.

    Raises:
        SpecError: a line lacks one of the three keys.
    """
    records = []
    for entry in read_entries(path):
        if "gold" not in entry.data:
            raise SpecError("the field 'gold' is missing", where=entry.where)
        extras = {key: value for key, value in entry.data.items() if key not in ("id", "query", "gold")}
        identifier = str(entry.get("id", str, int))
        records.append(Record(identifier, entry.get("query", str), entry.data["gold"], extras))
    return records
