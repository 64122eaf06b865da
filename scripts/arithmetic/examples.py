"""Training examples of the four stages, in the notation of the workflow.

Combiner and verifier are also shown what weaker stages would hand them: values with a wrong digit, a lost carry, a wrong
sign, or none at all. The combiner has to add what it is given; the verifier has to write what would have been right, which
is how it learns to repair.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from workflows.arithmetic.stages import mirrored, write_sum

from .expressions import LEVELS, Part, Query, draw_part, draw_query

STAGES: Final = ("plan", "solve", "combine", "verify")
WRONG_VALUE: Final = 0.35
"""Share of the verifier's examples with a wrong value of a part."""
WRONG_SUM: Final = 0.3
"""Share of the verifier's examples whose addition is wrong."""
NO_VALUE: Final = 0.02
"""Share of values that could not be read."""


@dataclass(frozen=True)
class Example:
    """A prompt and the output that is right."""

    stage: str
    prompt: str
    output: str


def plan_example(query: Query) -> Example:
    """Return the query split into its parts."""
    return Example("plan", f"P{mirrored(query.text)}\n", mirrored(plan_text(query)))


def plan_text(query: Query) -> str:
    """Return the parts of a query with their signs, in common notation."""
    rest = [
        f";{'-' if sign < 0 else '+'}{part.text}" for part, sign in zip(query.parts[1:], query.signs[1:], strict=True)
    ]
    return query.parts[0].text + "".join(rest)


def solve_example(part: Part) -> Example:
    """Return a part worked out."""
    steps = ";".join(f"{s.left}{s.op}{s.right}={s.result}" for s in part.steps)
    return Example("solve", f"S{mirrored(part.text)}\n", mirrored(steps))


def combine_example(terms: list[tuple[int, int | None]]) -> Example:
    """Return a sum of signed values worked out."""
    return Example("combine", f"C{write_sum(terms)}\n", add_up(terms))


def add_up(terms: list[tuple[int, int | None]], slips: tuple[int, ...] = ()) -> str:
    """Return the working of a sum, from the left; `slips` are added to its results, in order."""
    total = _signed(terms[0])
    steps = []
    for k, term in enumerate(terms[1:]):
        value = _signed(term)
        result = None if total is None or value is None else total + value + (slips[k] if k < len(slips) else 0)
        steps.append(f"{write_sum([(1, total), term])}={write_sum([(1, result)])}")
        total = result
    return ";".join(steps)


def _signed(term: tuple[int, int | None]) -> int | None:
    return None if term[1] is None else term[0] * term[1]


def verify_example(query: Query, rng: random.Random) -> Example:
    """Return a working to be checked, with realistic mistakes in many of them."""
    right: list[tuple[int, int | None]] = [(s, part.value) for part, s in zip(query.parts, query.signs, strict=True)]
    shown = list(right)
    slips: tuple[int, ...] = ()
    if rng.random() < WRONG_VALUE:
        k = rng.randrange(len(shown))
        shown[k] = (shown[k][0], _mistaken(query.parts[k].value, rng))
    if rng.random() < WRONG_SUM:
        slips = tuple(_slip(rng) for _ in shown[1:])
    working = add_up(shown, slips)
    if rng.random() < NO_VALUE:
        working = working[: rng.randrange(len(working))]
    return Example("verify", f"V{mirrored(query.text)}|{working}\n", add_up(right))


def _slip(rng: random.Random) -> int:
    """Return an error of an addition: mostly one place off by one (a lost carry)."""
    return rng.choice((1, -1)) * rng.choice((1, 10, 10, 100, 100, 2, 20))


def _mistaken(value: int, rng: random.Random) -> int | None:
    """Return a wrong value as weak solvers produce them."""
    kind = rng.random()
    if kind < NO_VALUE:
        return None
    if kind < 0.5:
        return value + _slip(rng)
    if kind < 0.6 and value:
        return -value
    digits = list(str(abs(value)))
    if kind < 0.9:
        digits[rng.randrange(len(digits))] = str(rng.randrange(10))
    elif kind < 0.95 and len(digits) > 1:
        del digits[rng.randrange(len(digits))]
    else:
        digits.insert(rng.randrange(len(digits) + 1), str(rng.randrange(10)))
    return int("".join(digits)) * (-1 if value < 0 else 1)


def draw_level(rng: random.Random, progress: float) -> int:
    """Return a level: a curriculum that opens one level after the other in the first third of training."""
    highest = min(LEVELS, 1 + int(progress * 3 * LEVELS))
    return rng.randint(1, highest)


def draw_example(rng: random.Random, stage: str, progress: float, *, test: bool | None = False) -> Example:
    """Return a random example of a stage.

    Args:
        rng: source of randomness.
        stage: one of `STAGES`.
        progress: share of training that is done, for the curriculum; 1 draws from everything.
        test: side of the split between training and testing parts.

    Raises:
        ValueError: unknown stage.
    """
    level = draw_level(rng, progress)
    if stage == "solve":
        return solve_example(draw_part(rng, level, test=test))
    if stage == "combine":
        return combine_example(_draw_terms(rng))
    query = draw_query(rng, level, test=bool(test))
    if stage == "plan":
        return plan_example(query)
    if stage == "verify":
        return verify_example(query, rng)
    raise ValueError(f"unknown stage '{stage}'")


def _draw_terms(rng: random.Random) -> list[tuple[int, int | None]]:
    """Return signed values of every length alike: drawn from parts, nearly all would have three digits."""
    terms: list[tuple[int, int | None]] = []
    for k in range(rng.choice((2, 2, 3))):
        value = rng.randint(0, rng.choice((9, 99, 99, 999, 999, 999)))
        value = -value if rng.random() < 0.3 else value
        terms.append((rng.choice((1, -1)) if k else 1, None if rng.random() < NO_VALUE else value))
    return terms
