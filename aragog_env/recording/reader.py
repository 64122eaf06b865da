"""Read a recording, while it is written or afterwards; export it as JSON lines."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ..errors import SpecError
from . import schema


@dataclass(frozen=True, eq=False)
class RecordedView:
    """What a policy saw at one decision: the arrays of `aragog_env.view.DispatchView`."""

    calls: NDArray[np.void]  # (n,) of VIEW_CALL
    routes: NDArray[np.void]  # (R,) of VIEW_ROUTE
    allowed: NDArray[np.bool_]  # (n, R)
    served_by: NDArray[np.int32]  # (n, N)


class Recording:
    """A recording, opened read-only. Use as a context manager, or close it.

    Raises:
        SpecError: no such file, or no recording of this schema.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise SpecError("there is no such recording", where=str(path))
        try:
            self._connection = sqlite3.connect(f"file:{quote(str(self.path.resolve()))}?mode=ro", uri=True)
        except sqlite3.Error as error:
            raise SpecError(f"cannot open this recording ({error})", where=str(path)) from error
        self._connection.row_factory = sqlite3.Row
        try:
            schema.check(self._connection, str(path))
            (self.run,) = list(self.rows("run"))
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def rows(self, table: str, where: str = "", values: tuple[Any, ...] = ()) -> Iterator[dict[str, Any]]:
        """Yield the rows of a table in the order they were written, arrays as bytes.

        Args:
            table: one of `schema.TABLES`.
            where: condition in SQL, with ``?`` for each of `values`.
            values: what stands for the question marks.
        """
        if table not in schema.TABLES:
            raise SpecError(f"a recording has no table '{table}' (it has {', '.join(schema.TABLES)})")
        condition = f" WHERE {where}" if where else ""
        for row in self._connection.execute(f"SELECT * FROM {table}{condition} ORDER BY rowid", values):
            yield dict(row)

    def token_times(self, call: int) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Return (k,) seconds at which pieces of a call's output arrived, and (k,) its output tokens by then."""
        row = next(self.rows("calls", "call = ?", (call,)), None)
        if row is None:
            raise SpecError(f"there is no call {call} in this recording", where=str(self.path))
        return self.arrays(row)

    @staticmethod
    def arrays(row: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Return what `token_times` returns, of a row of `calls` that was read already."""
        seconds, counts = (np.frombuffer(row[name] or b"", schema.ARRAYS[name]) for name in ("token_s", "token_count"))
        return seconds, counts

    def view(self, decision: int) -> RecordedView:
        """Return what the policy saw at a decision."""
        row = next(self.rows("decisions", "decision = ?", (decision,)), None)
        if row is None:
            raise SpecError(f"there is no decision {decision} in this recording", where=str(self.path))
        calls = np.frombuffer(zlib.decompress(row["calls"]), self._dtype("view_call"))
        routes = np.frombuffer(zlib.decompress(row["routes"]), self._dtype("view_route"))
        allowed = np.frombuffer(zlib.decompress(row["allowed"]), np.uint8).astype(np.bool_)
        served = np.frombuffer(zlib.decompress(row["served_by"]), "<i4")
        n = len(calls)
        return RecordedView(
            calls, routes, allowed.reshape(n, len(routes)), served.reshape(n, len(served) // n if n else 0)
        )

    def _dtype(self, name: str) -> np.dtype[np.void]:
        fields: dict[str, Any] = json.loads(self.run[name])
        return np.dtype(fields)  # type: ignore[call-overload, no-any-return]

    @property
    def last_s(self) -> float:
        """The last time that is written anywhere: where the clock of a resumed run goes on."""
        columns = (
            ("sessions", "ended_s"),
            ("requests", "arrival_s"),
            ("requests", "finish_s"),
            ("decisions", "time_s"),
            ("calls", "dispatch_s"),
            ("calls", "finish_s"),
            ("tools", "finish_s"),
            ("server_metrics", "time_s"),
            ("events", "time_s"),
        )
        found = [
            self._connection.execute(f"SELECT max({column}) FROM {table}").fetchone()[0] for table, column in columns
        ]
        return max((float(time_s) for time_s in found if time_s is not None), default=0.0)

    def export_jsonl(self, folder: str | Path) -> list[Path]:
        """Write one file of JSON lines per table, ``calls.jsonl`` and so on, arrays as lists; return the files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for table in schema.TABLES:
            path = folder / f"{table}.jsonl"
            with open(path, "w", encoding="utf-8") as file:
                for row in self.rows(table):
                    file.write(json.dumps(self._plain(table, row), ensure_ascii=False) + "\n")
            written.append(path)
        return written

    def _plain(self, table: str, row: dict[str, Any]) -> dict[str, Any]:
        if table == "decisions":
            view = self.view(row["decision"])
            for name in ("calls", "routes"):
                array = getattr(view, name)
                row[name] = [dict(zip(array.dtype.names, item.tolist(), strict=True)) for item in array]
            row["allowed"], row["served_by"] = view.allowed.tolist(), view.served_by.tolist()
        elif table == "calls":
            for name in ("token_s", "token_count"):
                row[name] = None if row[name] is None else np.frombuffer(row[name], schema.ARRAYS[name]).tolist()
        elif table in ("run", "sessions"):
            for name, value in row.items():
                if name in schema.JSON_COLUMNS:
                    row[name] = json.loads(value)
        return row


def dtype_text(dtype: np.dtype[np.void]) -> dict[str, Any]:
    """Return a structured type as plain data that `numpy.dtype` takes: names, formats, offsets, itemsize."""
    assert dtype.names is not None and dtype.fields is not None
    fields = [dtype.fields[name] for name in dtype.names]
    return {
        "names": list(dtype.names),
        "formats": [field[0].str for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
    }
