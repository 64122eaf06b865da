"""BIRD development set (Li et al. 2023, arXiv 2305.03111, CC-BY-SA-4.0): questions, gold SQL and SQLite databases.

Published layout, one folder: dev.json (question_id, db_id, question, evidence, SQL), dev_tables.json (schemas), and
dev_databases/<db_id>/<db_id>.sqlite. `scripts/make_sqlite_database.py` makes a small set of the same layout. Questions
without databases can be loaded for their texts; running them is refused then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import SpecError
from .files import Entry, read_entries
from .record import Record

FILES = ("bird/dev.json", "dev.json", "bird_dev.json", "bird_dev.json.gz", "sqlite_small/dev.json")
_TABLES = ("{stem}_tables.json", "{stem}_tables.json.gz")
_DATABASES = ("{stem}_databases", "dev_databases", "databases", "database")


def load(path: Path) -> list[Record]:
    """Return the questions of a file or of the folder that holds ``dev.json``; `gold` is the SQL.

    ``extras['database']`` is the path of the SQLite file, or "" where the databases are absent.

    Raises:
        SpecError: the schema file is missing, or what a question names is not in it.
    """
    path = path / "dev.json" if path.is_dir() else path
    stem = path.name.split(".")[0]
    schemas = {entry.get("db_id", str): _schema(entry) for entry in read_entries(_schema_file(path, stem))}
    folders = [path.parent / name.format(stem=stem) for name in _DATABASES]
    folder = next((candidate for candidate in folders if candidate.is_dir()), None)
    return [_record(entry, i, schemas, folder) for i, entry in enumerate(read_entries(path))]


def _schema_file(path: Path, stem: str) -> Path:
    candidates = [path.parent / name.format(stem=stem) for name in _TABLES]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise SpecError(f"the schemas must lie beside the questions, in '{candidates[0].name}'", where=str(path))


def _record(entry: Entry, row: int, schemas: dict[str, str], folder: Path | None) -> Record:
    database = entry.get("db_id", str)
    if database not in schemas:
        raise SpecError(f"the database '{database}' is not in the schema file", where=entry.where)
    parts = [schemas[database], f"Question: {entry.get('question', str).strip()}"]
    if evidence := str(entry.data.get("evidence") or "").strip():
        parts.append(f"Hint: {evidence}")
    file = ""
    if folder is not None:
        found = folder / database / f"{database}.sqlite"
        if not found.is_file():
            raise SpecError(f"the database '{found}' is missing", where=entry.where)
        file = str(found)
    extras = {"database": file, "db_id": database, "difficulty": str(entry.data.get("difficulty", ""))}
    return Record(str(entry.data.get("question_id", row)), "\n\n".join(parts), entry.get("SQL", str), extras)


def _schema(entry: Entry) -> str:
    """Return a schema as CREATE TABLE statements, one column a line with its description."""
    tables = entry.texts("table_names_original")
    columns = entry.get("column_names_original", list)
    names, types = entry.get("column_names", list), entry.texts("column_types")
    keys: list[set[int]] = [set(key) if isinstance(key, list) else {key} for key in entry.get("primary_keys", list)]
    pairs: list[Any] = entry.get("foreign_keys", list)
    single = {next(iter(key)) for key in keys if len(key) == 1}
    statements = []
    try:
        refers = {a: f" REFERENCES {_quoted(tables[columns[b][0]])}({_quoted(columns[b][1])})" for a, b in pairs}
        for t, table in enumerate(tables):
            own = [c for c, (of, _) in enumerate(columns) if of == t]
            lines = []
            for c in own:
                name = columns[c][1]
                key_words = " PRIMARY KEY" * (c in single) + refers.get(c, "")
                lines.append(f"  {_quoted(name)} {types[c]}{key_words},{_description(name, names[c][1])}")
            for key in keys:
                if len(key) > 1 and key <= set(own):
                    lines.append(f"  PRIMARY KEY ({', '.join(_quoted(columns[c][1]) for c in sorted(key))}),")
            statements.append(f"CREATE TABLE {_quoted(table)} (\n" + "\n".join(lines) + "\n);")
    except (IndexError, TypeError, ValueError) as error:
        raise SpecError(f"the schema's lists do not fit each other ({error})", where=entry.where) from error
    return "\n".join(statements)


def _description(column: str, text: str) -> str:
    """Return the description as a comment, unless it only repeats the name."""
    return "" if text.lower().split() == column.lower().replace("_", " ").split() else f" -- {text}"


def _quoted(name: str) -> str:
    return name if name.isidentifier() else f"`{name}`"
