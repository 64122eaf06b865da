"""Make a small text-to-SQL set in BIRD's layout, for machines without BIRD's databases.

    python -m scripts.make_sqlite_database --to datasets/sqlite_small

Three databases (a library, a shop, a tram network) with dev.json, dev_tables.json and dev_databases/. Rows, questions and
gold queries are the same on every machine. Questions are made from patterns, so they are easier and more alike than
BIRD's: accuracies on the two sets cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from aragog_env.specs.load import ROOT
from scripts.small_databases import Database, Table, library, shop, tram

SEED: Final = 20251120


def databases() -> tuple[Database, ...]:
    """Return the three databases; the same on every call."""
    return tuple(make(random.Random(f"{SEED}:{make.__name__}")) for make in (library, shop, tram))


def write(folder: Path) -> int:
    """Write the set into `folder`, replacing what is there; return the number of questions."""
    made = databases()
    questions: list[dict[str, Any]] = []
    for database in made:
        file = folder / "dev_databases" / database.name / f"{database.name}.sqlite"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        connection = sqlite3.connect(file)
        try:
            for table in database.tables:
                connection.execute(_create(table))
                marks = ", ".join("?" * len(table.columns))
                connection.executemany(f'INSERT INTO "{table.name}" VALUES ({marks})', table.rows)
            connection.commit()
        finally:
            connection.close()
        for question in database.questions:
            questions.append(
                {
                    "question_id": len(questions),
                    "db_id": database.name,
                    "question": question.text,
                    "evidence": question.evidence,
                    "SQL": question.sql,
                    "difficulty": question.difficulty,
                }
            )
    (folder / "dev.json").write_text(json.dumps(questions, indent=1) + "\n", encoding="utf-8")
    schemas = json.dumps([_schema(database) for database in made], indent=1)
    (folder / "dev_tables.json").write_text(schemas + "\n", encoding="utf-8")
    return len(questions)


def _create(table: Table) -> str:
    lines = []
    for k, column in enumerate(table.columns):
        line = f'"{column.name}" {column.type}' + (" PRIMARY KEY" if k == 0 else "")
        if column.references:
            other, _, key = column.references.partition(".")
            line += f' REFERENCES "{other}" ("{key}")'
        lines.append(line)
    return f'CREATE TABLE "{table.name}" ({", ".join(lines)})'


def _schema(database: Database) -> dict[str, Any]:
    """Return an entry of dev_tables.json, laid out as Spider and BIRD do: column 0 is '*'."""
    columns = [(t, column) for t, table in enumerate(database.tables) for column in table.columns]
    index = {f"{database.tables[t].name}.{column.name}": k for k, (t, column) in enumerate(columns, start=1)}
    names = [table.name for table in database.tables]
    return {
        "db_id": database.name,
        "table_names_original": names,
        "table_names": names,
        "column_names_original": [[-1, "*"], *([t, column.name] for t, column in columns)],
        "column_names": [[-1, "*"], *([t, column.description] for t, column in columns)],
        "column_types": ["text", *(column.type for _, column in columns)],
        "primary_keys": [index[f"{table.name}.{table.columns[0].name}"] for table in database.tables],
        "foreign_keys": [
            [k, index[column.references]] for k, (_, column) in enumerate(columns, start=1) if column.references
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Make a small text-to-SQL set in BIRD's layout.")
    parser.add_argument("--to", type=Path, default=ROOT / "datasets" / "sqlite_small", help="folder")
    folder: Path = parser.parse_args(arguments).to
    print(f"{write(folder)} questions over {len(databases())} databases in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
