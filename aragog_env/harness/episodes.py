"""Episode logs as files: one compressed npz per episode, written atomically, readable without pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..episode import EpisodeLog
from ..errors import SpecError
from ..files import write_atomically

_ARRAYS: Final = ("requests", "calls", "decision_s", "busy_s", "iterations")
_WALL_CLOCK: Final = frozenset({"decision_s"})


def save_episode(log: EpisodeLog, path: Path) -> None:
    """Write `log` to `path`; a reader sees the whole file or none."""
    meta = {f.name: getattr(log, f.name) for f in dataclasses.fields(log) if f.name not in _ARRAYS}
    arrays: dict[str, Any] = {name: np.asarray(getattr(log, name)) for name in _ARRAYS}
    arrays["meta"] = np.frombuffer(json.dumps(meta, default=_jsonable).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def load_episode(path: Path) -> EpisodeLog:
    """Read a log written by `save_episode`.

    Raises:
        SpecError: the file is missing or damaged.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as data:
            meta = json.loads(data["meta"].tobytes())
            arrays = {name: data[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise SpecError(f"cannot read this episode log ({error})", where=str(path)) from error
    for name, value in meta.items():
        if isinstance(value, list):
            meta[name] = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    return EpisodeLog(**meta, **arrays)


def differences(a: EpisodeLog, b: EpisodeLog) -> list[str]:
    """Return what differs between two logs, in words; wall-clock decision times are left out."""
    found = []
    for f in dataclasses.fields(EpisodeLog):
        if f.name in _WALL_CLOCK:
            continue
        x, y = getattr(a, f.name), getattr(b, f.name)
        if f.name in _ARRAYS:
            found += _array_differences(f.name, np.asarray(x), np.asarray(y))
        elif json.dumps(x, default=_jsonable, sort_keys=True) != json.dumps(y, default=_jsonable, sort_keys=True):
            found.append(f"{f.name}: {x!r} != {y!r}")
    return found


def digest(log: EpisodeLog) -> str:
    """Return the SHA-256 of everything in `log` that a re-run reproduces."""
    sha = hashlib.sha256()
    for name in _ARRAYS:
        if name not in _WALL_CLOCK:
            sha.update(name.encode() + np.ascontiguousarray(getattr(log, name)).tobytes())
    return sha.hexdigest()


def _array_differences(name: str, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> list[str]:
    if x.dtype != y.dtype or x.shape != y.shape:
        return [f"{name}: {x.dtype}{list(x.shape)} != {y.dtype}{list(y.shape)}"]
    if x.tobytes() == y.tobytes():
        return []
    if x.dtype.names is None:
        return [f"{name}: {_first(x, y)}"]
    return [f"{name}.{field}: {_first(x[field], y[field])}" for field in x.dtype.names if _unequal(x[field], y[field])]


def _unequal(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> bool:
    return np.ascontiguousarray(x).tobytes() != np.ascontiguousarray(y).tobytes()


def _first(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> str:
    """Describe the first entry that differs (bit for bit, so that nan equals nan)."""
    different = [i for i in range(len(x)) if x[i].tobytes() != y[i].tobytes()]
    i = different[0]
    return f"{len(different)} of {len(x)} differ, first at [{i}]: {x[i].item()!r} != {y[i].item()!r}"


def _jsonable(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"an episode log's notes must be plain data, not {type(value).__name__}")
