"""The W&B mirror, with the real client offline."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from aragog_env.errors import SpecError
from aragog_env.harness.metrics import METRICS
from aragog_env.harness.results import read
from aragog_env.harness.tracking import mirror


def _records(directory: Path) -> list[Any]:
    """Read what the client wrote: protobuf records in LevelDB's log format, after a header of 7 bytes."""
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (path,) = directory.glob("*.wandb")
    data, position, parts, found = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # the end of a block too short for a header is padding
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = messages.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


@pytest.mark.filterwarnings("default")
def test_offline_mirror_holds_groups_configs_summaries_table_and_artifact(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    copy = Path(shutil.copytree(folder, tmp_path / "experiment"))
    path = copy / "results.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    results = read(copy)
    directories = mirror(results, mode="offline")
    assert len(directories) == 3

    first = _records(directories[0])
    (started,) = [r.run for r in first if r.WhichOneof("record_type") == "run"]
    assert (started.run_group, started.job_type) == ("experiment", "eval")
    assert started.display_name == f"{results.runs[0].policy}-{results.runs[0].seed}"
    assert results.runs[0].policy in started.tags
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert config["seed"] == results.runs[0].seed and config["requests"] == 60
    updates = [r.summary.update for r in first if r.WhichOneof("record_type") == "summary"]
    summary = {item.key: item.value_json for update in updates for item in update}
    assert json.loads(summary["jct_mean_s"]) == results.runs[0].metrics["jct_mean_s"]

    last = _records(directories[-1])
    (started,) = [r.run for r in last if r.WhichOneof("record_type") == "run"]
    assert started.job_type == "report"
    artifacts = {r.artifact.type: r.artifact for r in last if r.WhichOneof("record_type") == "artifact"}
    stored = {entry.path for entry in artifacts["results"].manifest.contents}
    assert {"manifest.json", "results.jsonl", results.runs[0].episode} <= stored
    (path,) = directories[-1].glob("files/media/table/*.json")
    table = json.loads(path.read_text())
    assert [row[:3] for row in table["data"]] == [[r.policy, r.scenario, r.seed] for r in results.runs]
    assert table["columns"][5:] == list(METRICS)


def test_mirroring_again_uses_the_same_run_ids(folder: Path) -> None:
    from aragog_env.harness.tracking import _id

    results = read(folder)
    ids = {_id(results, run.key) for run in results.runs}
    assert len(ids) == 12 and ids == {_id(read(folder), run.key) for run in results.runs}


def test_without_wandb_the_error_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SpecError, match="pip install wandb"):
        mirror(read(folder), mode="offline")


def test_modes(folder: Path) -> None:
    assert mirror(read(folder), mode="off") == []
    with pytest.raises(SpecError, match="off, offline, online"):
        mirror(read(folder), mode="maybe")
