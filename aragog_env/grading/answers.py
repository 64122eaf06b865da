"""Reading answers out of what models write: code, SQL, letters, yes or no, spans, lists, "nothing to add".

Every reader takes the whole output and returns None when there is nothing to read. All take the last statement of an
answer, since models reason first and correct themselves.
"""

from __future__ import annotations

import ast
import re
from typing import Final

_THOUGHT: Final = re.compile(r"<think>.*?(</think>|\Z)|\A.*?</think>", re.DOTALL)
_FENCE: Final = re.compile(
    r"^[ \t]*(```+|~~~+)[ \t]*([\w+#.-]*)[^\n`]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
_SQL_START: Final = re.compile(r"^[ \t]*(?:SELECT|WITH)\b", re.IGNORECASE | re.MULTILINE)
_SQL_INLINE: Final = re.compile(r"`(?:sql)?[ \t]*((?:SELECT|WITH)\b[^`\n]+)`", re.IGNORECASE)
# Between "answer is" and the letter: markup and a few words; nothing that can be read in two ways, so never slow.
_LETTER_STATED: Final = re.compile(
    r"(?i:answer\s+is|answer:)(?:[\s*_:$({\\]|(?i:\b(?:the|option|choice|letter|boxed|text|mathrm|probably|likely|most)\b))*"
    r"([A-J])\b(?!\s+(?:think|believe|am|would|will|cannot)\b)"
)
_LETTER_ALONE: Final = re.compile(r"(?<![\w'])\(?([A-J])\)?(?![\w'])")
_YES_NO_STATED: Final = re.compile(
    r"\banswer\s*(?:is|:)\W*(?:definitely |probably |likely |simply )?(yes|no|true|false)\b", re.IGNORECASE
)
_YES_NO: Final = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_ANSWER_LINE: Final = re.compile(
    r"^[ \t>*_#-]*(?:final\s+)?answer[*_]*[ \t]*:[*_]*[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE
)
_NUMBERED: Final = re.compile(r"^[ \t]*[*_]{0,2}\d{1,2}[.):][*_]{0,2}[ \t]+(\S.*)$", re.MULTILINE)
_BULLETED: Final = re.compile(r"^[ \t]*[-*\u2022][ \t]+(\S.*)$", re.MULTILINE)
_UNANSWERABLE: Final = {"unanswerable", "no answer", "not answerable", "cannot be answered"}
_MARKUP: Final = " \t*_#`>.!\"'()[]"


def without_thoughts(text: str) -> str:
    """Return an output without what a reasoning model wrote between ``<think>`` and ``</think>``."""
    return _THOUGHT.sub("", text)


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Return the fenced blocks as (language in lower case, content); one that was cut off counts to the end."""
    return [(m.group(2).lower(), m.group(3)) for m in _FENCE.finditer(text)]


def extract_python(text: str, entry_point: str) -> str | None:
    """Return the code of an answer: the last block that defines `entry_point`, else the last Python block, else the text.

    Blocks without a language count; text without any block counts only when it is Python itself.
    """
    text = without_thoughts(text)
    blocks = [content for language, content in code_blocks(text) if language in ("", "python", "py", "python3")]
    defining = [
        content
        for content in blocks
        if re.search(rf"\b(?:def\s+{re.escape(entry_point)}\b|{re.escape(entry_point)}\s*=)", content)
    ]
    if defining or blocks:
        return (defining or blocks)[-1]
    if code_blocks(text) or not text.strip():
        return None
    return text if _is_python(text) or _is_python(f"def f():\n{text}") else None


def _is_python(text: str) -> bool:
    try:
        return bool(ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def extract_sql(text: str) -> str | None:
    """Return the query of an answer: the last block marked sql, else the last unmarked one, else from SELECT or WITH on."""
    text = without_thoughts(text)
    blocks = code_blocks(text)
    for languages in (("sql", "sqlite", "sqlite3"), ("",)):
        found = [content.strip() for language, content in blocks if language in languages and content.strip()]
        if found:
            return found[-1].rstrip("; \n\t") or None
    inline = _SQL_INLINE.findall(text)
    start = None if blocks else _SQL_START.search(text)
    if inline:
        return str(inline[-1]).strip().rstrip("; ")
    if start is None:
        return None
    query = re.split(r";|\n\s*\n", text[start.start() :].strip(), maxsplit=1)[0]
    return query.strip() or None


def extract_letter(text: str, options: int = 10) -> str | None:
    """Return the option (A to J) that an answer chooses: the last "answer is (X)", else the last letter that stands alone.

    MMLU-Pro's own script takes the first "answer is"; the last one is what the model ends on. Where nothing can be read it
    guesses at random; here that is no answer. "I" and "A" as words are read only in parentheses or where nothing else is.
    """
    text = without_thoughts(text)
    allowed = {chr(ord("A") + k) for k in range(min(options, 10))}
    stated = [m.group(1) for m in _LETTER_STATED.finditer(text) if m.group(1) in allowed]
    if stated:
        return stated[-1]
    alone = [m for m in _LETTER_ALONE.finditer(text) if m.group(1) in allowed]
    sure: list[str] = [m.group(1) for m in alone if m.group(1) not in "AI" or m.group(0) != m.group(1)]
    if sure:
        return sure[-1]
    return text.strip(_MARKUP) if text.strip(_MARKUP) in allowed else None


def extract_yes_no(text: str) -> str | None:
    """Return "yes" or "no": the last "the answer is ...", else a yes or no that opens or closes the text."""
    text = without_thoughts(text).strip()
    stated: list[str] = _YES_NO_STATED.findall(text)
    if stated:
        last = stated[-1].lower()
        return {"true": "yes", "false": "no"}.get(last, last)
    lines = [line.strip(_MARKUP) for line in text.splitlines() if line.strip(_MARKUP)]
    for line in (lines[-1:] + lines[:1]) if lines else ():
        first = re.match(r"\W*(yes|no)\b", line, re.IGNORECASE)
        if first:
            return first.group(1).lower()
    words = {word.lower() for word in _YES_NO.findall(text)}
    return words.pop() if len(words) == 1 and len(text) < 80 else None


def extract_span(text: str) -> str | None:
    """Return what follows the last "Answer:", or the whole text when it is one line; "" means: cannot be answered."""
    text = without_thoughts(text).strip()
    found = list(_ANSWER_LINE.finditer(text))
    if found:
        # "Answer:" alone on its line is followed by the answer on the next.
        same_line = found[-1].group(1)
        below = text[found[-1].end() :].strip().partition("\n")[0]
        span = same_line if same_line.strip(_MARKUP) else below
        if not span:
            return None
    elif text and "\n" not in text:
        span = text
    else:
        return None
    span = span.strip().strip("*_`\"' ").strip()
    return "" if span.lower().rstrip(".") in _UNANSWERABLE else span


def extract_items(text: str) -> list[str]:
    """Return the items of a numbered or bulleted list; without a list, the lines that are not empty."""
    text = without_thoughts(text)
    items = _NUMBERED.findall(text) or _BULLETED.findall(text) or text.splitlines()
    return [item.strip() for item in items if item.strip()]


def count_items(text: str) -> int:
    """Return how many items a list has, for the number of copies of a fan-out stage."""
    return len(extract_items(text))


def finds_nothing(text: str) -> bool:
    """Return whether a critique says NO ISSUES: as its first or its last line, or as all of it.

    A line that says more than that ("no issues with the imports, but ...") does not count.
    """
    lines = [line.strip(_MARKUP).lower() for line in without_thoughts(text).splitlines() if line.strip(_MARKUP)]
    return bool(lines) and any(line in ("no issues", "no issues found") for line in (lines[0], lines[-1]))
