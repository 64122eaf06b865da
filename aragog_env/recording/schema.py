"""What is in a recording: tables and columns, and the version that stands for their meaning. See docs/recordings.md.

All times are seconds since the episode began, on one clock; when a run is resumed the clock goes on where it stood.
"""

from __future__ import annotations

import re
import sqlite3
from typing import Final

from ..errors import SpecError

SCHEMA: Final = 1
"""A change of meaning raises it; new columns at the end of a table do not."""
APPLICATION_ID: Final = 0x41524147
"""`ARAG`: what `PRAGMA application_id` of a recording says, and `file` shows."""

TABLES: Final[dict[str, str]] = {
    "run": """
        schema INTEGER NOT NULL, created TEXT NOT NULL, scenario TEXT NOT NULL, scenario_hash TEXT NOT NULL,
        scenario_yaml TEXT NOT NULL, policy TEXT NOT NULL, seed INTEGER NOT NULL, requests INTEGER NOT NULL,
        workflows TEXT NOT NULL, nodes TEXT NOT NULL, models TEXT NOT NULL, routes TEXT NOT NULL,
        view_call TEXT NOT NULL, view_route TEXT NOT NULL, options TEXT NOT NULL""",
    "sessions": """
        session INTEGER PRIMARY KEY, started TEXT NOT NULL, offset_s REAL NOT NULL, ended_s REAL, ending TEXT,
        host TEXT NOT NULL, pid INTEGER NOT NULL, versions TEXT NOT NULL, machine TEXT NOT NULL,
        isolation TEXT NOT NULL, servers TEXT NOT NULL, cpu_stolen REAL""",
    "requests": """
        request INTEGER PRIMARY KEY, tape INTEGER NOT NULL, session INTEGER NOT NULL, workflow TEXT NOT NULL,
        query INTEGER NOT NULL, query_id TEXT NOT NULL, arrival_s REAL NOT NULL, finish_s REAL,
        status TEXT NOT NULL DEFAULT 'in flight', reason TEXT, configuration INTEGER, answer TEXT, correct INTEGER,
        score REAL, grade TEXT, grade_answer TEXT, grade_detail TEXT, grade_s REAL""",
    "decisions": """
        decision INTEGER PRIMARY KEY, session INTEGER NOT NULL, time_s REAL NOT NULL, wall_s REAL NOT NULL,
        action TEXT NOT NULL, request INTEGER, node INTEGER, route INTEGER, priority INTEGER, until_s REAL,
        in_flight INTEGER NOT NULL, ready INTEGER NOT NULL, calls BLOB NOT NULL, routes BLOB NOT NULL,
        allowed BLOB NOT NULL, served_by BLOB NOT NULL""",
    "calls": """
        call INTEGER PRIMARY KEY, session INTEGER NOT NULL, decision INTEGER, request INTEGER NOT NULL,
        node INTEGER NOT NULL, stage TEXT NOT NULL, attempt INTEGER NOT NULL, route INTEGER NOT NULL,
        server TEXT NOT NULL, model TEXT NOT NULL, priority INTEGER NOT NULL, ready_s REAL NOT NULL,
        dispatch_s REAL NOT NULL, first_token_s REAL, finish_s REAL, status TEXT NOT NULL DEFAULT 'in flight',
        error TEXT, max_tokens INTEGER NOT NULL, prompt TEXT NOT NULL, prompt_tokens INTEGER, cached_tokens INTEGER,
        output TEXT, output_tokens INTEGER, finish_reason TEXT, token_s BLOB, token_count BLOB""",
    "tools": """
        request INTEGER NOT NULL, node INTEGER NOT NULL, session INTEGER NOT NULL, stage TEXT NOT NULL,
        start_s REAL NOT NULL, finish_s REAL NOT NULL, ok INTEGER NOT NULL, output TEXT NOT NULL,
        PRIMARY KEY (request, node)""",
    "server_metrics": """
        session INTEGER NOT NULL, time_s REAL NOT NULL, route INTEGER NOT NULL, running INTEGER, waiting INTEGER,
        kv_usage REAL, kv_blocks INTEGER, prefix_queries INTEGER, prefix_hits INTEGER, preemptions INTEGER,
        prompt_tokens INTEGER, generation_tokens INTEGER""",
    "events": """
        session INTEGER NOT NULL, time_s REAL NOT NULL, kind TEXT NOT NULL, route INTEGER, request INTEGER, text TEXT""",
}
"""Columns of each table, as SQL."""

ARRAYS: Final[dict[str, str]] = {"token_s": "<f8", "token_count": "<i4", "allowed": "|u1", "served_by": "<i4"}
"""Element type of the BLOB columns that are plain arrays; `calls` and `routes` of a decision have the types that
`run.view_call` and `run.view_route` say. Arrays of a decision are packed with zlib."""
JSON_COLUMNS: Final = frozenset(
    "workflows nodes models routes view_call view_route options versions machine isolation servers".split()
)
"""Columns of `run` and `sessions` that hold JSON."""


def add_new_columns(connection: sqlite3.Connection) -> None:
    """Give a file of an earlier version the columns that were added at the ends of its tables."""
    for table, columns in TABLES.items():
        there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        for name, kind in re.findall(r"(\w+) (INTEGER|REAL|TEXT|BLOB)", columns):
            if name not in there:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")


def create(connection: sqlite3.Connection) -> None:
    """Make the tables of an empty file."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA}")
    for name, columns in TABLES.items():
        connection.execute(f"CREATE TABLE {name} ({' '.join(columns.split())}) STRICT")
    connection.execute("CREATE INDEX calls_by_request ON calls (request, node)")


def is_blank(connection: sqlite3.Connection) -> bool:
    """Return whether nothing was ever put into this file."""
    try:
        (count,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return int(count) == 0
    except sqlite3.DatabaseError:
        return False


def check(connection: sqlite3.Connection, where: str) -> None:
    """Refuse a file that is no recording of this schema.

    Raises:
        SpecError: another kind of file, or another version.
    """
    try:
        (kind,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise SpecError(f"this is not a recording ({error})", where=where) from error
    if kind != APPLICATION_ID:
        raise SpecError("this is not a recording of aragog", where=where)
    if version != SCHEMA:
        raise SpecError(f"this recording has schema {version}; this version of aragog reads {SCHEMA}", where=where)
