"""The notation of the arithmetic workflow: what each stage is asked, and how its answer is read.

Digits of every number are written least significant first in prompts and outputs ("(47+8)*6" becomes "(74+8)*6"), because
a small model can then write a sum digit by digit, carries included (Lee et al. 2023, arXiv 2307.03381). A prompt is one
letter for the stage, the problem, and a line break. For the query (47+8)*6-(38-50):

    stage    prompt                            output
    plan     P(74+8)*6-(83-05)                 (74+8)*6;-83-05           parts and their signs
    solve    S(74+8)*6                         74+8=55;55*6=033          worked steps; the last result is the value
    combine  C033+21                           033+21=243                signed values, added from the left
    verify   V(74+8)*6-(83-05)|033+21=243      033+21=243                the working again, corrected where it is wrong

What cannot be read is a "?", which a later stage may still replace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from aragog_env.datasets import Record
from aragog_env.grading.grade import Grade, right_or_wrong
from aragog_env.grading.prompts import PromptContext

ALPHABET: Final = "0123456789+-*()=;|?PSCV\n"
"""Every character of a prompt or output; each is one token."""
MAX_PARTS: Final = 3
UNKNOWN: Final = "?"
_MAX_PART: Final = 24
_MAX_WORKING: Final = 48
_DIGITS: Final = re.compile(r"\d+")
_NUMBER: Final = re.compile(r"-?\d{1,6}")
_ODD: Final = re.compile(r"[^0-9+\-*()=;?]")


def mirrored(text: str) -> str:
    """Return a text with the digits of every number in reverse order; twice gives the text back."""
    return _DIGITS.sub(lambda match: match[0][::-1], text)


def plan_fields(fields: Mapping[str, str], context: PromptContext) -> dict[str, str]:
    """Return the query in the notation of the models."""
    return {"query": mirrored(context.record.query)}


def solve_fields(fields: Mapping[str, str], context: PromptContext) -> dict[str, str]:
    """Return the part that this copy solves."""
    parts = read_plan(context.outputs["plan"][0])
    return {"part": parts[context.copy - 1][1] if context.copy <= len(parts) else UNKNOWN}


def combine_fields(fields: Mapping[str, str], context: PromptContext) -> dict[str, str]:
    """Return the sum of the solvers' values, with the signs of the plan."""
    signs = [sign for sign, _ in read_plan(context.outputs["plan"][0])]
    values = [read_value(text) for text in context.outputs["solve"]]
    return {"sum": write_sum(list(zip(signs, values, strict=False)))}


def verify_fields(fields: Mapping[str, str], context: PromptContext) -> dict[str, str]:
    """Return the query and the combiner's working."""
    return {"query": mirrored(context.record.query), "working": _plain(context.outputs["combine"][0], _MAX_WORKING)}


def count_parts(plan: str) -> int:
    """Return how many solvers a plan needs."""
    return max(1, len(read_plan(plan)))


def read_plan(plan: str) -> list[tuple[int, str]]:
    """Return the parts of a plan as (sign, text), at most three; an empty part is "?"."""
    parts = []
    for k, text in enumerate(_plain(plan, MAX_PARTS * (_MAX_PART + 2)).split(";")[:MAX_PARTS]):
        sign = -1 if k and text.startswith("-") else 1
        body = text[1:] if k and text[:1] in ("+", "-") else text
        parts.append((sign, body[:_MAX_PART] or UNKNOWN))
    return parts


def read_value(working: str) -> int | None:
    """Return the last result of a working; None when it ends in none."""
    last = working.strip().rpartition("=")[2]
    return int(mirrored(last)) if _NUMBER.fullmatch(last) else None


def write_sum(terms: list[tuple[int, int | None]]) -> str:
    """Return signed values as one sum: [(1, 330), (-1, -12)] becomes "033+21"; None becomes "?"."""
    text = ""
    for sign, value in terms:
        negative = (sign if value is None else sign * value) < 0
        plus = "+" if text else ""
        text += ("-" if negative else plus) + (UNKNOWN if value is None else str(abs(value))[::-1])
    return text or UNKNOWN


def _plain(text: str, limit: int) -> str:
    """Return what of a text the next prompt may hold: models write anything, prompts must stay short and in the alphabet."""
    return _ODD.sub("", text)[:limit]


def grade(record: Record, answer: str) -> Grade:
    """Return whether the last result of the verifier's working is the value of the query."""
    value = read_value(answer)
    return right_or_wrong(None if value is None else str(value), str(record.gold))
