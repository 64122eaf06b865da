"""Reading data files strictly: every error names the file, the line or entry, the field, and what would be right."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import SpecError

T = TypeVar("T")


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, unpacked when its name ends in ``.gz``.

    Raises:
        SpecError: the file is missing, damaged, or not UTF-8.
    """
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.name.endswith(".gz") else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"cannot read this data file ({reason})", where=str(path)) from error


@dataclass(frozen=True)
class Entry:
    """One object of a data file, which knows where it stands."""

    data: dict[str, Any]
    where: str

    def get(self, key: str, kind: type[T], *others: type[Any]) -> T:
        """Return a field that must be there and be of one of these types.

        Raises:
            SpecError: it is missing or of another type.
        """
        if key not in self.data:
            known = ", ".join(sorted(self.data)) or "nothing"
            raise SpecError(f"the field '{key}' is missing (there are: {known})", where=self.where)
        value = self.data[key]
        if not isinstance(value, (kind, *others)) or (isinstance(value, bool) and kind is not bool):
            names = " or ".join(_NAMES.get(t, t.__name__) for t in (kind, *others))
            got = _NAMES.get(type(value), type(value).__name__)
            raise SpecError(f"the field '{key}' must be {names}, got {got}", where=self.where)
        return value  # type: ignore[return-value]

    def texts(self, key: str) -> list[str]:
        """Return a field that must be a list of texts."""
        items = self.get(key, list)
        if not all(isinstance(item, str) for item in items):
            raise SpecError(f"the field '{key}' must be a list of texts", where=self.where)
        return items


_NAMES: dict[type[Any], str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "nothing",
}


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the objects of a file: one per line (``.jsonl``), a JSON list (``.json``), or rows under a header (``.csv``).

    Raises:
        SpecError: as for `read_text`, or the text is not of its kind.
    """
    suffixes = path.suffixes[:-1] if path.suffix == ".gz" else path.suffixes
    kind = suffixes[-1].lower() if suffixes else ""
    if kind == ".jsonl":
        yield from _lines(path)
    elif kind == ".json":
        yield from _list(path)
    elif kind == ".csv":
        yield from _rows(path)
    elif kind == ".parquet":
        yield from _parquet(path)
    else:
        message = "the name of a data file must end in .jsonl, .json, .csv (each also with .gz) or .parquet"
        raise SpecError(message, where=str(path))


def _lines(path: Path) -> Iterator[Entry]:
    # Not `splitlines`: texts may hold other line separators, such as U+2028.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield Entry(_object(_parse(line, where), where), where)


def _list(path: Path) -> Iterator[Entry]:
    data = read_json(path)
    if not isinstance(data, list):
        raise SpecError("this JSON file must hold a list of objects", where=str(path))
    for i, item in enumerate(data):
        where = f"{path}, entry {i}"
        yield Entry(_object(item, where), where)


def _rows(path: Path) -> Iterator[Entry]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restkey="(more)", strict=True)
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if "(more)" in row or None in row.values():
                raise SpecError(f"this row must have {len(reader.fieldnames or ())} fields", where=where)
            yield Entry(dict(row), where)
    except csv.Error as error:
        raise SpecError(f"this is not CSV ({error})", where=f"{path}:{reader.line_num}") from error


def _parquet(path: Path) -> Iterator[Entry]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ModuleNotFoundError as error:
        message = "parquet files need the package 'pyarrow' (pip install pyarrow), or export the rows as .jsonl"
        raise SpecError(message, where=str(path)) from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot read this data file ({error})", where=str(path)) from error
    for i, row in enumerate(rows):
        yield Entry(row, f"{path}, entry {i}")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        SpecError: as for `read_text`, or it is not JSON.
    """
    return _parse(read_text(path), str(path))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if "\n" not in text else f"{where}:{error.lineno}"
        raise SpecError(f"this is not JSON ({error.msg}, column {error.colno})", where=place) from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError("expected an object in braces", where=where)
    return value
