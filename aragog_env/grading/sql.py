"""Text-to-SQL for real: run a query on SQLite for a model to look at, and grade one as BIRD does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..datasets.record import Record
from ..errors import SpecError
from .answers import extract_sql
from .grade import Grade
from .sandbox import Limits, Verdict, run_isolated
from .tools import ToolCall, ToolResult

TIME_S: Final = 30.0
"""BIRD's own evaluation stops a query after 30 s (its `meta_time_out`)."""
MEMORY_BYTES: Final = 2 << 30
GRADED_ROWS: Final = 500_000
SHOWN_ROWS: Final = 20
SHOWN_CHARACTERS: Final = 2048
"""About 512 tokens, what `tool_output` of the workflow allows."""


@dataclass(frozen=True)
class QueryResult:
    """Rows of a query, or why there are none."""

    verdict: Verdict
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    """The first rows; blobs and long texts are shortened."""
    more: bool = False
    """Whether there are more rows than these."""

    @property
    def ok(self) -> bool:
        """Whether the query ran."""
        return self.verdict.status == "passed"

    def text(self) -> str:
        """Return the result as a model gets to see it: a table, or an error message."""
        if not self.ok:
            return f"Error: {self.verdict.detail}"
        lines = [" | ".join(self.columns), *(" | ".join(map(_cell, row)) for row in self.rows)]
        if self.more:
            lines.append("... (more rows)")
        elif not self.rows:
            lines.append("(no rows)")
        text = "\n".join(lines)
        return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "\n... (cut)"


def _cell(value: object) -> str:
    return "NULL" if value is None else str(value)


def run_query(database: str | Path, sql: str, *, time_s: float = TIME_S, rows: int = SHOWN_ROWS) -> QueryResult:
    """Run one query read-only in a process of its own and return its first rows.

    Raises:
        SpecError: there is no such database, or it has changes in a write-ahead log beside it.
    """
    payload = {"database": str(_checked(database)), "sql": sql, "time_s": time_s, "shown_rows": rows}
    verdict = run_isolated("sql", payload, _limits(time_s))
    if verdict.status != "passed":
        return QueryResult(verdict)
    value = verdict.value
    return QueryResult(verdict, tuple(value["columns"]), tuple(map(tuple, value["rows"])), value["more"])


def compare_queries(database: str | Path, sql: str, gold: str, *, time_s: float = TIME_S) -> Verdict:
    """Return ``passed`` when both queries give the same set of rows, as in BIRD's execution accuracy.

    Raises:
        SpecError: there is no such database, or the gold query fails on it.
    """
    payload = {"database": str(_checked(database)), "sql": sql, "gold": gold, "time_s": time_s, "rows": GRADED_ROWS}
    verdict = run_isolated("sql", payload, _limits(2 * time_s))
    if verdict.value and verdict.value.get("gold_failed"):
        raise SpecError(f"the gold query fails ({verdict.detail}): {gold}", where=str(database))
    return verdict


def _limits(time_s: float) -> Limits:
    return Limits(wall_s=time_s + 5, cpu_s=int(time_s) + 5, memory_bytes=MEMORY_BYTES)


def _checked(database: str | Path) -> Path:
    path = Path(database).resolve()
    if not path.is_file():
        raise SpecError("there is no such database", where=str(path))
    log = path.with_name(path.name + "-wal")
    if log.is_file() and log.stat().st_size:
        message = (
            "the database has changes in a write-ahead log; close or check-point it first, it is read as immutable"
        )
        raise SpecError(message, where=str(log))
    return path


def execute_sql(call: ToolCall) -> ToolResult:
    """Tool stage: run the SQL in the output of the stage before it. An error message is a result too.

    The time limit is the stage's ``tool_s.maximum_s``.
    """
    [output] = call.inputs.values()
    sql = extract_sql(output[-1])
    if sql is None:
        return ToolResult("Error: the answer holds no SQL query", ok=False, wall_s=0.0)
    result = run_query(call.record.extras["database"], sql, time_s=call.limit_s)
    return ToolResult(result.text(), ok=result.ok, wall_s=result.verdict.wall_s)


def grade_bird(record: Record, output: str) -> Grade:
    """Grade the SQL in `output` against ``record.gold`` on ``record.extras['database']``."""
    sql = extract_sql(output)
    if sql is None:
        return Grade(False, 0.0, "error", "", "no SQL query found in the output")
    verdict = compare_queries(record.extras["database"], sql, record.gold)
    right = verdict.status == "passed"
    return Grade(right, float(right), verdict.status, sql, verdict.detail, verdict.wall_s)
