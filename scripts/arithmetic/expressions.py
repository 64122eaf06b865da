"""Nested integer expressions with their worked steps: the questions of the arithmetic workflow.

A query is two or three parts that are added or subtracted; a part is one of a few shapes of one to four operations over
numbers of one or two digits. Whether a part is for training or for testing is decided by a hash of its text, so no test
query shares a part with any training example, however both are drawn.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

LEVELS: Final = 5
TEST_SHARE: Final = 8
"""One part in so many is only for testing."""
MAX_VALUE: Final = 999
"""Bound of the absolute value of a part."""

# a, b: one or two digits; c, d: one digit from 2. "~" is plus or minus.
SHAPES: Final[dict[int, tuple[str, ...]]] = {
    1: ("a~b",),
    2: ("a*c", "a~b~e"),
    3: ("(a~b)*c", "a*c~b"),
    4: ("(a~b)*c~e", "a~(b~e)*c", "a*c~b*d"),
    5: ("(a~b)*c~e*d", "((a~b)*c~e)*d", "(a~b)*c~(e~f)*d"),
}
_PARTS: Final[dict[int, tuple[int, ...]]] = {1: (2,), 2: (2, 3), 3: (2, 3), 4: (2, 3), 5: (3,)}
"""How many parts a query of each level may have."""


@dataclass(frozen=True)
class Step:
    """One operation: ``left op right = result``."""

    left: int
    op: str
    right: int
    result: int


@dataclass(frozen=True)
class Part:
    """An expression that one solver works out."""

    text: str
    steps: tuple[Step, ...]
    level: int

    @property
    def value(self) -> int:
        """Its value."""
        return self.steps[-1].result

    @property
    def is_sum(self) -> bool:
        """Whether it needs brackets inside a larger sum."""
        depth = 0
        for char in self.text:
            depth += (char == "(") - (char == ")")
            if depth == 0 and char in "+-":
                return True
        return False


@dataclass(frozen=True)
class Query:
    """Parts with signs; the first sign is plus."""

    parts: tuple[Part, ...]
    signs: tuple[int, ...]
    level: int

    @property
    def text(self) -> str:
        """The expression as people write it."""
        text = ""
        for part, sign in zip(self.parts, self.signs, strict=True):
            text += ("-" if sign < 0 else "+") if text else ""
            text += f"({part.text})" if part.is_sum else part.text
        return text

    @property
    def value(self) -> int:
        """The right answer."""
        return sum(sign * part.value for part, sign in zip(self.parts, self.signs, strict=True))


def work_out(text: str) -> tuple[Step, ...] | None:
    """Return the steps that evaluate an expression, innermost and leftmost first, products before sums.

    None when an intermediate result (not the last) is negative, or a product has no factor of one digit: the models are
    not asked for those.

    Raises:
        ValueError: this is no expression.
    """
    steps: list[Step] = []
    value, rest = _sum(text, steps)
    if rest:
        raise ValueError(f"'{text}' is no expression: '{rest}' is left over")
    legal = all(s.result >= 0 for s in steps[:-1]) and all(min(s.left, s.right) <= 9 for s in steps if s.op == "*")
    return tuple(steps) if legal and steps and steps[-1].result == value else None


def _sum(text: str, steps: list[Step]) -> tuple[int, str]:
    # Products are worked out where they stand, before the sums around them.
    value, rest = _product(text, steps)
    terms: list[tuple[str, int]] = []
    while rest[:1] in ("+", "-"):
        op = rest[0]
        term, rest = _product(rest[1:], steps)
        terms.append((op, term))
    for op, term in terms:
        result = value + term if op == "+" else value - term
        steps.append(Step(value, op, term, result))
        value = result
    return value, rest


def _product(text: str, steps: list[Step]) -> tuple[int, str]:
    value, rest = _atom(text, steps)
    while rest[:1] == "*":
        factor, rest = _atom(rest[1:], steps)
        steps.append(Step(value, "*", factor, value * factor))
        value *= factor
    return value, rest


def _atom(text: str, steps: list[Step]) -> tuple[int, str]:
    if text[:1] == "(":
        value, rest = _sum(text[1:], steps)
        if rest[:1] != ")":
            raise ValueError(f"a bracket is not closed before '{rest}'")
        return value, rest[1:]
    digits = len(text) - len(text.lstrip("0123456789"))
    if not digits:
        raise ValueError(f"a number is missing before '{text}'")
    return int(text[:digits]), text[digits:]


def is_test(part: str) -> bool:
    """Return whether a part may only occur in tests."""
    return zlib.crc32(part.encode()) % TEST_SHARE == 0


def draw_part(rng: random.Random, level: int, *, test: bool | None) -> Part:
    """Return a random part of a level; `test` says of which side of the split, None: of either."""
    while True:
        text = "".join(_symbol(rng, char) for char in rng.choice(SHAPES[level]))
        if test is not None and is_test(text) != test:
            continue
        steps = work_out(text)
        if steps is not None and abs(steps[-1].result) <= MAX_VALUE:
            return Part(text, steps, level)


def _symbol(rng: random.Random, char: str) -> str:
    if char in "abef":
        return str(rng.randint(1, 9) if rng.random() < 0.2 else rng.randint(10, 99))
    if char in "cd":
        return str(rng.randint(2, 9))
    return rng.choice("+-") if char == "~" else char


def draw_query(rng: random.Random, level: int, *, test: bool) -> Query:
    """Return a random query: one part of the level, the others of that level or below."""
    count = rng.choice(_PARTS[level])
    levels = [level] + [rng.randint(max(1, level - 2), level) for _ in range(count - 1)]
    rng.shuffle(levels)
    parts = tuple(draw_part(rng, part, test=test) for part in levels)
    return Query(parts, (1, *(rng.choice((1, -1)) for _ in parts[1:])), level)


def test_queries(count: int, seed: int = 0) -> Iterator[Query]:
    """Yield different test queries, levels in turn."""
    rng = random.Random(f"arithmetic test {seed}")
    seen: set[str] = set()
    while len(seen) < count:
        query = draw_query(rng, len(seen) % LEVELS + 1, test=True)
        if query.text not in seen:
            seen.add(query.text)
            yield query


def write_queries(path: Path, count: int, seed: int = 0) -> None:
    """Write test queries as JSON lines in the format `jsonl` of `aragog_env.datasets`."""
    rows: list[dict[str, Any]] = [
        {
            "id": f"test-{k:04d}",
            "query": query.text,
            "gold": query.value,
            "level": query.level,
            "parts": len(query.parts),
        }
        for k, query in enumerate(test_queries(count, seed))
    ]
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows), encoding="utf-8")
