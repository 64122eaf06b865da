"""Public request traces: Azure LLM 2023 and 2024, BurstGPT, Mooncake; plain or gzip.

No public trace says which calls belong to one workflow. Using the arrivals of calls as arrivals of whole
workflows keeps their rate pattern and burstiness, but it is an assumption; results on traces should say so.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import IO, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import SpecError
from ..specs.workload import TraceFormat

CHUNK: Final = 200_000
"""Lines parsed at a time: enough for numpy's speed, little enough that a week of traffic fits in memory."""
Columns = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests of one trace file, in order of arrival."""

    times_s: NDArray[np.float64]  # (n,) seconds since the first request, ascending
    input_tokens: NDArray[np.int64]  # (n,)
    output_tokens: NDArray[np.int64]  # (n,)
    source: str
    """The file."""
    format: TraceFormat

    @property
    def rate_rps(self) -> float:
        """Mean requests per second, from the first to the last."""
        return float((len(self.times_s) - 1) / self.times_s[-1])


@dataclass(frozen=True)
class _Layout:
    """Where a CSV format keeps its columns, and how it writes times."""

    columns: tuple[str, str, str]
    """Header names of time, input tokens and output tokens."""
    time: Literal["date", "seconds"]


_AZURE: Final = _Layout(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), "date")
_CSV: Final[dict[str, _Layout]] = {
    "azure2023": _AZURE,
    "azure2024": _AZURE,
    "burstgpt": _Layout(("Timestamp", "Request tokens", "Response tokens"), "seconds"),
}
_MOONCAKE: Final = ("timestamp", "input_length", "output_length")


def read_trace(path: str | Path, format: TraceFormat = "auto") -> Trace:
    """Read a trace file.

    Args:
        path: the file; gzip is recognised by its content, not by its name.
        format: ``auto`` recognises the format by the first lines. Azure 2023 and 2024 have the same columns
            and differ in their timestamps only (2024 adds the UTC offset); both are read as either.

    Raises:
        SpecError: the file is missing, empty, truncated, of another format, unsorted, or has a bad number;
            with its line.
    """
    path = Path(path).expanduser()
    file = _open(path)
    with file:
        lines = _lines(file, path)
        first = next(lines, None)
        if first is None or not first.strip():
            raise SpecError("the trace is empty", where=f"{path}:1")
        known = _sniff(first, path) if format == "auto" else format
        parse: Callable[[Sequence[str]], Columns]
        if known == "mooncake":
            parse, start, lines = _parse_mooncake, 1, chain([first], lines)
        else:
            parse, start = _csv_parser(_CSV[known], first, path), 2
            second = next(lines, "")
            if format == "auto" and known == "azure2023" and "+" in second:
                known = "azure2024"
            lines = chain([second], lines) if second else lines
        parts = list(_parse(lines, start, parse, path))
    if not parts:
        raise SpecError("the trace has a header but no requests", where=f"{path}:2")
    times, inputs, outputs = (np.concatenate(column) for column in zip(*parts, strict=True))
    _check(times, inputs, outputs, start, path)
    return Trace(times - times[0], inputs, outputs, str(path), known)


def cached_trace(path: Path, format: TraceFormat) -> Trace:
    """Return `read_trace(path, format)`, read once per process as long as the file does not change."""
    path = path.expanduser()
    try:
        status = path.stat()
    except OSError as error:
        raise SpecError(f"cannot read the trace ({error.strerror})", where=str(path)) from error
    return _cached(path, format, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _cached(path: Path, format: TraceFormat, modified: int, size: int) -> Trace:
    return read_trace(path, format)


def _open(path: Path) -> IO[str]:
    try:
        with path.open("rb") as probe:
            packed = probe.read(2) == b"\x1f\x8b"
        binary = gzip.open(path, "rb") if packed else path.open("rb")
    except OSError as error:
        raise SpecError(f"cannot read the trace ({error.strerror or error})", where=str(path)) from error
    return io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    """Yield lines; turn damage of the file into a SpecError that says how far it is good."""
    number = 0
    try:
        for line in file:
            number += 1
            yield line
    except EOFError as error:
        raise SpecError(
            f"the gzip file is truncated after line {number}; download it again", where=f"{path}:{number + 1}"
        ) from error
    except (gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise SpecError(f"the file is damaged after line {number} ({error})", where=f"{path}:{number + 1}") from error


def _sniff(first: str, path: Path) -> TraceFormat:
    if first.lstrip().startswith("{"):
        return "mooncake"
    header = _header(first)
    for name, layout in _CSV.items():
        if layout.columns[0] in header:
            return name  # type: ignore[return-value]
    wanted = "; ".join(",".join(layout.columns) for layout in (_AZURE, _CSV["burstgpt"]))
    raise SpecError(
        f"this is no known trace format: the first line must be JSON with {', '.join(_MOONCAKE)}, or a CSV "
        f"header with {wanted}; got '{first.strip()[:60]}'",
        where=f"{path}:1",
    )


def _header(line: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([line]), [])]


def _parse(
    lines: Iterator[str], start: int, parse: Callable[[Sequence[str]], Columns], path: Path
) -> Iterator[Columns]:
    """Parse in chunks; when a chunk fails, find the first line that does."""
    number = start
    while chunk := list(islice(lines, CHUNK)):
        full = [line for line in chunk if line.strip()]
        if full:
            try:
                yield parse(full)
            except _PROBLEMS:
                _blame(chunk, number, parse, path)
        number += len(chunk)


def _blame(chunk: Sequence[str], number: int, parse: Callable[[Sequence[str]], Columns], path: Path) -> None:
    for i, line in enumerate(chunk):
        if not line.strip():
            continue
        try:
            parse([line])
        except _PROBLEMS as error:
            where = f"{path}:{number + i}"
            if i == len(chunk) - 1 and not line.endswith("\n"):
                raise SpecError("the last line is cut off; the file is truncated, get it again", where=where) from error
            raise SpecError(f"cannot read this line ({_reason(error)}): '{line.strip()[:60]}'", where=where) from error
    raise AssertionError("a chunk failed but none of its lines does")


_PROBLEMS: Final = (ValueError, IndexError, KeyError, TypeError, OverflowError)


def _reason(error: Exception) -> str:
    if isinstance(error, IndexError):
        return "too few columns"
    if isinstance(error, KeyError):
        return f"the key {error} is missing"
    return str(error)


def _csv_parser(layout: _Layout, first: str, path: Path) -> Callable[[Sequence[str]], Columns]:
    header = _header(first)
    for name in layout.columns:
        if name not in header:
            raise SpecError(
                f"the column '{name}' is missing; the header must hold {', '.join(layout.columns)}",
                where=f"{path}:1",
            )
    t, i, o = (header.index(name) for name in layout.columns)
    width = len(header)

    def parse(lines: Sequence[str]) -> Columns:
        quoted = any('"' in line for line in lines)
        rows = list(csv.reader(lines)) if quoted else [line.rstrip("\r\n").split(",") for line in lines]
        if any(len(row) < width for row in rows):
            raise IndexError
        stamps = [row[t] for row in rows]
        times = _dates(stamps) if layout.time == "date" else np.array(stamps, dtype=np.float64)
        return times, _integers([row[i] for row in rows]), _integers([row[o] for row in rows])

    return parse


def _dates(stamps: list[str]) -> NDArray[np.float64]:
    """Return seconds of ISO dates. Trailing UTC offsets are dropped: they are all alike in the traces."""
    offset = stamps[0].rfind("+")
    if offset > 0:
        zone = stamps[0][offset:]
        if any(not stamp.endswith(zone) for stamp in stamps):
            raise ValueError("timestamps with different UTC offsets")
        stamps = [stamp[: -len(zone)] for stamp in stamps]
    value = np.array(stamps, dtype="datetime64[ns]")
    if np.isnat(value).any():
        raise ValueError("a timestamp is missing")
    return value.astype(np.int64) / 1e9


def _integers(texts: list[str]) -> NDArray[np.int64]:
    try:
        return np.array(texts, dtype=np.int64)
    except ValueError:
        value = np.array(texts, dtype=np.float64)  # some exports write 12.0
        if not (value == np.floor(value)).all():
            raise ValueError("a token count is not a whole number") from None
        return value.astype(np.int64)


def _parse_mooncake(lines: Sequence[str]) -> Columns:
    # hash_ids, most of each line, come last in the public files and are not used: parse what is before them.
    usual = all(
        '"output_length"' in line.partition(', "hash_ids"')[0] and line.rstrip().endswith("]}") for line in lines
    )
    short = [line.partition(', "hash_ids"')[0] + "}" for line in lines] if usual else lines
    rows = json.loads(f"[{','.join(short)}]")
    if len(rows) != len(lines):
        raise ValueError("not one JSON object per line")
    time, inputs, outputs = ([row[key] for row in rows] for key in _MOONCAKE)
    for counts in (inputs, outputs):
        if any(type(count) is not int for count in counts):
            raise ValueError("a token count is not a whole number")
    return np.array(time, dtype=np.float64) / 1e3, np.array(inputs, np.int64), np.array(outputs, np.int64)


def _check(
    times: NDArray[np.float64], inputs: NDArray[np.int64], outputs: NDArray[np.int64], start: int, path: Path
) -> None:
    """Refuse negative numbers and times that go back; lines are counted as if none were blank."""
    for name, column in (("input", inputs), ("output", outputs)):
        if (column < 0).any():
            line = int(np.argmax(column < 0)) + start
            raise SpecError(f"the number of {name} tokens is negative", where=f"{path}:{line}")
    if not np.isfinite(times).all():
        raise SpecError("the time is not a finite number", where=f"{path}:{int(np.argmin(np.isfinite(times))) + start}")
    back = np.diff(times) < 0
    if back.any():
        line = int(np.argmax(back)) + 1 + start
        raise SpecError(
            "the requests are not sorted by time: this one is earlier than the one before it; sort the file",
            where=f"{path}:{line}",
        )
