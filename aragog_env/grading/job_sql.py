"""Job of the sandbox: read one SQLite database. Runs in the worker, on the standard library alone.

The database is opened before the door is shut (root may own the right to read it only until then), read-only and
immutable; an authorizer lets nothing but reads through, a progress handler keeps the time, and the sandbox around it keeps
memory and whatever SQLite itself might get wrong.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any, Final
from urllib.parse import quote

_ALLOWED: Final = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
_FORBIDDEN_FUNCTIONS: Final = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"}
_STEPS: Final = 5000
"""Virtual machine steps between looks at the clock."""
_LONGEST_BYTES: Final = 50_000_000
"""Longest text or blob a query may make: one call of a function is not interrupted."""


def prepare(payload: dict[str, Any]) -> tuple[sqlite3.Connection, dict[str, Any]]:
    """Open the database and read its schema."""
    uri = f"file:{quote(payload['database'])}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    for pragma in ("query_only = ON", "temp_store = MEMORY", "trusted_schema = OFF", "cell_size_check = ON"):
        connection.execute(f"PRAGMA {pragma}")
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_BYTES),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    ):
        connection.setlimit(limit, value)
    for function in ("json_each", "json_tree"):  # the authorizer would not let their tables be set up later
        try:
            connection.execute(f"SELECT 1 FROM {function}('[]')").fetchall()
        except sqlite3.Error:
            pass  # an SQLite built without JSON
    connection.set_authorizer(_authorize)
    return connection, payload


def _authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    if action not in _ALLOWED:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def run(state: tuple[sqlite3.Connection, dict[str, Any]]) -> dict[str, Any]:
    """Run one query for its rows, or two to compare their rows."""
    connection, payload = state
    if "gold" in payload:
        return _compare(connection, payload)
    answer = _query(connection, payload["sql"], payload["time_s"], payload["shown_rows"])
    if answer["status"] == "passed":
        answer["value"]["rows"] = [[_plain(cell) for cell in row] for row in answer["value"]["rows"]]
    return answer


def _compare(connection: sqlite3.Connection, payload: dict[str, Any]) -> dict[str, Any]:
    """Compare as BIRD's evaluation does: the rows as sets of tuples, whatever their order and number."""
    gold = _query(connection, payload["gold"], payload["time_s"], payload["rows"], strict=True)
    if gold["status"] != "passed":
        return {"status": "error", "detail": gold["detail"], "value": {"gold_failed": True}}
    answer = _query(connection, payload["sql"], payload["time_s"], payload["rows"], strict=True)
    if answer["status"] != "passed":
        return answer
    found, wanted = set(answer["value"]["rows"]), set(gold["value"]["rows"])
    if found == wanted:
        return {"status": "passed", "detail": "", "value": None}
    detail = f"{len(found)} distinct rows where {len(wanted)} are right, {len(found & wanted)} in common"
    return {"status": "failed", "detail": detail, "value": None}


def _query(
    connection: sqlite3.Connection, sql: str, time_s: float, rows: int, *, strict: bool = False
) -> dict[str, Any]:
    """Return up to `rows` rows; with `strict`, more than that is an error."""
    started = time.monotonic()
    connection.set_progress_handler(lambda: int(time.monotonic() - started > time_s), _STEPS)
    try:
        cursor = connection.execute(sql)
        if cursor.description is None:
            return {"status": "error", "detail": "this is no query: it returns no rows", "value": None}
        found = cursor.fetchmany(rows + 1)
        columns = [column[0] for column in cursor.description]
        cursor.close()
    except MemoryError:
        return {"status": "error", "detail": "the query needs too much memory", "value": None}
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        if time.monotonic() - started > time_s:
            return {"status": "timeout", "detail": f"the query was stopped after {time_s:g} s", "value": None}
        return {"status": "error", "detail": str(error)[:300], "value": None}
    if strict and len(found) > rows:
        return {"status": "error", "detail": f"the query returns more than {rows} rows", "value": None}
    value = {"columns": columns, "rows": found[:rows], "more": len(found) > rows}
    return {"status": "passed", "detail": "", "value": value}


def _plain(cell: object) -> object:
    """Return a cell as JSON can hold it, long ones cut: the rows are for a model to look at."""
    if isinstance(cell, bytes):
        return f"<{len(cell)} bytes>"
    return cell[:200] if isinstance(cell, str) else cell
