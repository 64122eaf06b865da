"""One question of a data set, as workflows, graders and routers see it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """A question with its right answer."""

    id: str
    """Unique in its data set."""
    query: str
    """What stands for ``{query}`` in a prompt; all of the question, nothing of the answer."""
    gold: Any
    """The right answer, as the data set's grader wants it. Never part of a prompt."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """What tools and graders need besides: tests, a database's path, the number of options."""

    @property
    def tokens(self) -> int:
        """Estimated length of the query."""
        return estimate_tokens(self.query)


def estimate_tokens(text: str) -> int:
    """Return characters / 4, rounded up: within about 20 % for English and code, no tokenizer needed."""
    return math.ceil(len(text) / 4)


def sample(records: Sequence[Record], count: int, seed: int = 0) -> tuple[Record, ...]:
    """Return `count` records in their own order, always the same ones; all of them when there are no more.

    Each record's place in the draw is a hash of seed and id, so records that are added or removed elsewhere change
    little.
    """
    if count >= len(records):
        return tuple(records)
    drawn = sorted(records, key=lambda record: hashlib.sha256(f"{seed}:{record.id}".encode()).digest())[:count]
    kept = {record.id for record in drawn}
    return tuple(record for record in records if record.id in kept)
