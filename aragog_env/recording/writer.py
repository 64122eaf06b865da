"""Write a recording, one transaction per thing that happens.

SQLite in WAL mode with `synchronous=NORMAL`. A transaction is in the operating system's hands when it ends, so that killing
this process at any moment loses nothing that was written: at most the calls in flight are missing their ends. Against FULL,
NORMAL gives up the last transactions before a power cut, never the file's consistency; FULL would wait for the disk at every
dispatch and every end of a call, milliseconds that would show in the latencies that are being measured.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SpecError
from . import schema
from .lock import WriterLock
from .processor import StolenTime

if TYPE_CHECKING:
    from collections.abc import Sequence


class RecordingWriter:
    """The one writer of a recording; its methods may be called from any thread.

    Args:
        path: the file; made with its folder if it does not exist.
        run: the values of the table `run` but for `schema` and `created`; lists and mappings are written as JSON.
        resume: go on with the file if it exists; otherwise an existing file is refused.

    Raises:
        SpecError: the file exists and is not to be resumed, is no recording, is of another run, or another process writes it.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = WriterLock(path)
        try:
            exists = path.exists() and path.stat().st_size > 0
            if exists and not resume:
                raise SpecError("this recording exists already; resume it, or name another file", where=str(path))
            # isolation_level=None: every statement is a transaction of its own unless we begin one.
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
            try:
                self._open(run, new=not exists)
            except BaseException:
                self._connection.close()
                raise
        except BaseException:
            self._writer.release()
            raise
        self._stolen = StolenTime()
        self.session = self._next("sessions", "session")
        self._calls = self._next("calls", "call")
        self._decisions = self._next("decisions", "decision")

    def _open(self, run: Mapping[str, Any], *, new: bool) -> None:
        connection = self._connection
        # A process that was killed while it made the file leaves it without a table.
        new = new or schema.is_blank(connection)
        if not new:
            schema.check(connection, str(self.path))
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if not new:
            schema.add_new_columns(connection)
        values = {name: _plain(value) for name, value in run.items()}
        if not new:
            self._check_same(values)
            return
        connection.execute("BEGIN IMMEDIATE")
        schema.create(connection)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        self._put("run", {"schema": schema.SCHEMA, "created": created, **values})
        connection.execute("COMMIT")

    def _check_same(self, run: Mapping[str, Any]) -> None:
        """Refuse to mix two runs in one file."""
        for name in ("scenario_hash", "policy", "seed", "nodes", "models", "routes"):
            (before,) = self._connection.execute(f"SELECT {name} FROM run").fetchone()
            if before != run[name]:
                message = f"this recording is of another run: its {name} is {before!r}, not {run[name]!r}"
                raise SpecError(message, where=str(self.path))

    def _next(self, table: str, key: str) -> int:
        (last,) = self._connection.execute(f"SELECT max({key}) FROM {table}").fetchone()
        return 0 if last is None else int(last) + 1

    def _put(self, table: str, values: Mapping[str, Any]) -> None:
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        self._connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))

    def _change(self, table: str, values: Mapping[str, Any], key: str, which: int) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        self._connection.execute(f"UPDATE {table} SET {names} WHERE {key} = ?", (*values.values(), which))

    def begin_session(
        self, offset_s: float, *, versions: object, machine: object, isolation: object, servers: object
    ) -> None:
        """Note that a process begins, or goes on, with the run."""
        with self._lock:
            self._put(
                "sessions",
                {
                    "session": self.session,
                    "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "offset_s": offset_s,
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    **{
                        name: _plain(value)
                        for name, value in (
                            ("versions", versions),
                            ("machine", machine),
                            ("isolation", isolation),
                            ("servers", servers),
                        )
                    },
                },
            )

    def end_session(self, time_s: float, ending: str) -> None:
        """Note that the process is done: ``drained``, ``horizon``, ``interrupted``, ``failed: why``."""
        with self._lock:
            values = {"ended_s": time_s, "ending": ending, "cpu_stolen": self._stolen.share()}
            self._change("sessions", values, "session", self.session)

    def arrival(self, request: int, **values: Any) -> None:
        """A request has arrived."""
        with self._lock:
            self._put("requests", {"request": request, "session": self.session, **values})

    def request(self, request: int, **values: Any) -> None:
        """Something new is known of a request: its end, its grade."""
        with self._lock:
            self._change("requests", values, "request", request)

    def decision(
        self,
        *,
        calls: NDArray[np.void],
        routes: NDArray[np.void],
        allowed: NDArray[np.bool_],
        served_by: NDArray[np.int32],
        **values: Any,
    ) -> int:
        """The policy has decided, on what these arrays show; returns the decision's number."""
        with self._lock:
            number = self._decisions
            self._decisions += 1
            arrays = {
                "calls": _packed(calls),
                "routes": _packed(routes),
                "allowed": _packed(allowed.astype(np.uint8)),
                "served_by": _packed(served_by),
            }
            self._put("decisions", {"decision": number, "session": self.session, **values, **arrays})
            return number

    def dispatch(self, **values: Any) -> int:
        """A call is sent; returns its number. Written before it is sent, so that a crash leaves a trace of it."""
        with self._lock:
            number = self._calls
            self._calls += 1
            self._put("calls", {"call": number, "session": self.session, **values})
            return number

    def call(
        self,
        number: int,
        token_s: Sequence[float] | None = None,
        token_count: Sequence[int] | None = None,
        **values: Any,
    ) -> None:
        """A call has ended, well or not."""
        if token_s is not None:
            values["token_s"] = np.asarray(token_s, "<f8").tobytes()
            values["token_count"] = np.asarray(token_count, "<i4").tobytes()
        with self._lock:
            self._change("calls", values, "call", number)

    def lose_calls(self, why: str) -> None:
        """No call that is still in flight will end any more."""
        with self._lock:
            self._connection.execute("UPDATE calls SET status = 'lost', error = ? WHERE status = 'in flight'", (why,))

    def tool(self, **values: Any) -> None:
        """A tool stage has run."""
        with self._lock:
            self._put("tools", {"session": self.session, **values})

    def metrics(self, **values: Any) -> None:
        """A server's metrics were read."""
        with self._lock:
            self._put("server_metrics", {"session": self.session, **values})

    def event(
        self, time_s: float, kind: str, text: str = "", *, route: int | None = None, request: int | None = None
    ) -> None:
        """Something happened that is worth knowing: a server left or came back, a call is tried again, Ctrl-C."""
        values = {"time_s": time_s, "kind": kind, "route": route, "request": request, "text": text}
        with self._lock:
            self._put("events", {"session": self.session, **values})

    def close(self) -> None:
        """Close the file; all is on disk then, in one file that can be copied and read from a read-only folder."""
        with self._lock:
            try:
                self._connection.execute("PRAGMA journal_mode = DELETE")
            except sqlite3.OperationalError:
                pass  # somebody is reading: the log beside the file stays until the last reader is gone
            self._connection.close()
            self._writer.release()


def _packed(array: NDArray[Any]) -> bytes:
    return zlib.compress(np.ascontiguousarray(array).tobytes(), 1)


def _plain(value: object) -> object:
    """Return a value as SQLite holds it: numbers and text as they are, the rest as JSON."""
    if isinstance(value, str | int | float | bytes) or value is None:
        return value
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
