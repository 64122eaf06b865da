"""What the W&B client wrote offline: runs, configs, summaries, points of curves, tables, artifacts."""

from __future__ import annotations

import importlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class OfflineRun:
    """The content of one offline run."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    """By name."""


def records(directory: Path) -> list[Any]:
    """Read the records: protobuf messages in LevelDB's log format, after a header of 7 bytes."""
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (path,) = directory.glob("*.wandb")
    data, position, parts, found = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # the end of a block too short for a header is padding
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if position + 7 + length > len(data):
            break
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = messages.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def read_offline(directory: Path) -> OfflineRun:
    """Return what a run's directory holds."""
    found, end = OfflineRun(), time.monotonic() + 60
    # The client's own process writes; the last record may come after `finish` has returned.
    while not (its := records(directory)) or its[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < end, f"{directory} was not finished"
        time.sleep(0.05)
    for record in its:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = found.run or record.run
            found.config |= _items(record.run.config.update)
        elif kind == "config":
            found.config |= _items(record.config.update)
        elif kind == "summary":
            found.summary |= _items(record.summary.update)
        elif kind == "history":
            found.history.append(_items(record.history.item))
        elif kind == "metric":
            found.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "artifact":
            found.artifacts[record.artifact.name] = record.artifact
    return found


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *above, last = item.nested_key or [item.key]
        place = found
        for name in above:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return found


def tables(directory: Path) -> dict[str, Any]:
    """Return the logged tables by key."""
    logged = {key: value for row in read_offline(directory).history for key, value in row.items()}
    found = {}
    for key, value in logged.items():
        if isinstance(value, dict) and value.get("_type") == "table-file":
            found[key] = json.loads((directory / "files" / value["path"]).read_text())
    return found
