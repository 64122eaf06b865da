"""SQL is run and compared, and cannot write, run for ever, or reach other files."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pytest

from aragog_env.datasets import Record, load_dataset
from aragog_env.errors import SpecError
from aragog_env.grading import seccomp, sql
from aragog_env.grading.tools import ToolCall
from scripts.make_sqlite_database import databases, main, write

pytestmark = pytest.mark.skipif(not seccomp.supported(), reason="programs are run on Linux on x86-64 or arm64 only")
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("small")
    write(made)
    return made


@pytest.fixture(scope="module")
def records(folder: Path) -> tuple[Record, ...]:
    return load_dataset("bird", folder)


@pytest.fixture
def library(records: tuple[Record, ...]) -> Path:
    return Path(records[0].extras["database"])


def test_the_small_set_is_the_same_every_time(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--to", str(tmp_path)]) == 0
    assert "67 questions over 3 databases" in capsys.readouterr().out
    for name in ("dev.json", "dev_tables.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert databases() == databases()


def test_gold_queries_of_the_small_set_make_sense(records: tuple[Record, ...]) -> None:
    assert len(records) >= 60 and len({r.extras["db_id"] for r in records}) == 3
    assert len({r.query for r in records}) == len(records)
    for record in records:
        connection = sqlite3.connect(f"file:{record.extras['database']}?mode=ro", uri=True)
        rows = connection.execute(record.gold).fetchall()
        connection.close()
        assert rows and rows[0][0] is not None, record.gold
        assert len(set(rows)) == len(rows), "the same row twice: sets of rows would hide a missing DISTINCT"
        assert record.gold not in record.query


def test_gold_is_right_and_others_are_wrong(records: tuple[Record, ...]) -> None:
    for record in records[::13]:
        assert sql.grade_bird(record, f"```sql\n{record.gold};\n```").correct
    record = records[0]
    wrong = sql.grade_bird(record, "```sql\nSELECT COUNT(*) FROM books\n```")
    assert wrong.status == "failed" and not wrong.correct and wrong.score == 0.0
    broken = sql.grade_bird(record, "```sql\nSELECT missing FROM books\n```")
    assert broken.status == "error" and "no such column" in broken.detail
    assert sql.grade_bird(record, "I cannot do that.").status == "error"


def test_rows_are_compared_as_sets(library: Path) -> None:
    def compare(one: str, other: str) -> str:
        return sql.compare_queries(library, one, other).status

    assert compare("SELECT genre FROM books", "SELECT DISTINCT genre FROM books ORDER BY 1 DESC") == "passed"
    assert compare("SELECT 1", "SELECT 1.0") == "passed"
    assert compare("SELECT 1, 2", "SELECT 2, 1") == "failed"
    assert compare("SELECT '1'", "SELECT 1") == "failed"
    assert compare("SELECT NULL", "SELECT NULL") == "passed"


def test_a_gold_query_that_fails_is_an_error_of_the_data_set(library: Path) -> None:
    with pytest.raises(SpecError, match="the gold query fails"):
        sql.compare_queries(library, "SELECT 1", "SELECT missing FROM books")


WRITES = (
    "INSERT INTO books VALUES (99, 'x', 1, 'x', 1, 1)",
    "UPDATE books SET pages = 0",
    "DELETE FROM books",
    "DROP TABLE books",
    "CREATE TABLE evil (x)",
    "CREATE TEMP TABLE evil (x)",
    "CREATE VIEW evil AS SELECT 1",
    "ALTER TABLE books ADD COLUMN evil",
    "WITH x AS (SELECT 1) DELETE FROM books RETURNING *",
    "ATTACH DATABASE '{folder}/evil.db' AS evil",
    "VACUUM INTO '{folder}/evil.db'",
    "PRAGMA query_only = OFF",
    "PRAGMA journal_mode = WAL",
    "PRAGMA writable_schema = ON",
    "SELECT load_extension('evil')",
    "SELECT writefile('{folder}/evil', 'x')",
    "SELECT readfile('/etc/passwd')",
    "BEGIN IMMEDIATE",
    "REINDEX books",
    "SELECT 1; DELETE FROM books",
)


@pytest.mark.parametrize("query", WRITES)
def test_sql_cannot_write(query: str, library: Path) -> None:
    before = hashlib.sha256(library.read_bytes()).digest()
    files = sorted(path.name for path in library.parent.iterdir())
    result = sql.run_query(library, query.format(folder=library.parent))
    assert not result.ok and result.verdict.status == "error" and result.text().startswith("Error: ")
    assert hashlib.sha256(library.read_bytes()).digest() == before
    assert sorted(path.name for path in library.parent.iterdir()) == files


@pytest.mark.parametrize(
    "query",
    [
        ENDLESS,
        "SELECT COUNT(*) FROM loans a, loans b, loans c, loans d, loans e",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT randomblob(9999) AS y FROM c ORDER BY y",
    ],
)
def test_long_queries_are_stopped(query: str, library: Path) -> None:
    result = sql.run_query(library, query, time_s=0.5)
    assert result.verdict.status in ("timeout", "error") and result.verdict.wall_s < 6
    assert "stopped after 0.5 s" in result.text() or "memory" in result.text()


def test_huge_values_are_refused(library: Path) -> None:
    assert "too big" in sql.run_query(library, "SELECT length(randomblob(2000000000))").text()
    shown = sql.run_query(library, "SELECT zeroblob(1000), replace(hex(zeroblob(5000)), '0', 'xy')").text()
    assert "<1000 bytes>" in shown and len(shown) < 300


def test_results_are_shown_to_models(library: Path) -> None:
    text = sql.run_query(library, "SELECT title, pages FROM books ORDER BY book_id").text()
    lines = text.splitlines()
    assert lines[0] == "title | pages" and len(lines) == sql.SHOWN_ROWS + 2 and lines[-1] == "... (more rows)"
    assert sql.run_query(library, "SELECT 1 AS x WHERE 0").text() == "x\n(no rows)"
    assert sql.run_query(library, "SELECT NULL AS x, 1.5 AS y").text() == "x | y\nNULL | 1.5"
    wide = ", ".join(f"'{'w' * 150}' AS c{k}" for k in range(40))
    assert len(sql.run_query(library, f"SELECT {wide}").text()) < sql.SHOWN_CHARACTERS + 20
    assert sql.run_query(library, "SELECT value FROM json_each('[7]')").text() == "value\n7"


def test_the_tool_stage(library: Path) -> None:
    record = Record("0", "...", "", {"database": str(library)})

    def execute(output: str, limit_s: float = 30.0) -> str:
        return sql.execute_sql(ToolCall(record, "execute_sql", {"generate_sql": (output,)}, limit_s)).text

    assert execute("1. Count.\n```sql\nSELECT COUNT(*) FROM authors\n```") == "COUNT(*)\n24"
    assert "no such table" in execute("```sql\nSELECT * FROM missing\n```")
    assert "no SQL query" in execute("I give up.")
    assert "stopped after 0.3 s" in execute(f"```sql\n{ENDLESS}\n```", limit_s=0.3)


def test_databases_that_cannot_be_read_as_they_are(tmp_path: Path, library: Path) -> None:
    with pytest.raises(SpecError, match="no such database"):
        sql.run_query(tmp_path / "nothing.sqlite", "SELECT 1")
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(library.read_bytes())
    (tmp_path / "copy.sqlite-wal").write_bytes(b"changes")
    with pytest.raises(SpecError, match="write-ahead log"):
        sql.run_query(copy, "SELECT 1")
    text = tmp_path / "text.sqlite"
    text.write_text("this is no database, but it is long enough to look like one" * 20)
    assert "not a database" in sql.run_query(text, "SELECT 1").text()
    odd = tmp_path / "a b?c%20d#e.sqlite"
    odd.write_bytes(library.read_bytes())
    assert sql.run_query(odd, "SELECT COUNT(*) FROM books").ok
