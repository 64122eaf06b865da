"""Recordings as files: what is written can be read, by our reader and by anybody's SQLite; damage and mix-ups are refused."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aragog_env.errors import SpecError
from aragog_env.recording import SCHEMA, Recording, RecordingWriter
from aragog_env.recording.processor import StolenTime
from aragog_env.recording.reader import dtype_text
from aragog_env.recording.schema import TABLES
from aragog_env.view import VIEW_CALL, VIEW_ROUTE

RUN: dict[str, Any] = {
    "scenario": "s",
    "scenario_hash": "h",
    "scenario_yaml": "name: s\n",
    "policy": "p",
    "seed": 3,
    "requests": 2,
    "workflows": ["w"],
    "nodes": [["a", "b"]],
    "models": ["m"],
    "routes": ["r"],
    "view_call": dtype_text(VIEW_CALL),
    "view_route": dtype_text(VIEW_ROUTE),
    "options": {"x": 1.5},
}


def filled(path: Path) -> None:
    """Write a recording with a row or two in every table."""
    writer = RecordingWriter(path, RUN)
    writer.begin_session(0.0, versions={"python": "3"}, machine={"cores": 2}, isolation=["seccomp"], servers=[])
    writer.arrival(0, tape=0, workflow="w", query=5, query_id="q5", arrival_s=0.25)
    calls, routes = np.zeros(2, VIEW_CALL), np.zeros(1, VIEW_ROUTE)
    calls["prompt_tokens"], routes["waiting_tokens"] = (7, 8), 1 << 40
    allowed, served = np.array([[True], [False]]), np.array([[-1, 0], [3, 4]], np.int32)
    common = {"calls": calls, "routes": routes, "allowed": allowed, "served_by": served, "in_flight": 1, "ready": 2}
    assert writer.decision(time_s=0.3, wall_s=0.01, action="dispatch", request=0, node=0, route=0, **common) == 0
    assert writer.decision(time_s=0.4, wall_s=0.02, action="wait", until_s=0.5, **common) == 1
    sent = {"request": 0, "node": 0, "stage": "a", "attempt": 1, "route": 0, "server": "r", "model": "m", "priority": 0}
    number = writer.dispatch(decision=0, ready_s=0.3, dispatch_s=0.31, max_tokens=9, prompt="what? ünïcode", **sent)
    writer.call(number, [0.4, 0.5], [1, 3], status="ok", finish_s=0.5, output="that", output_tokens=3)
    assert writer.dispatch(decision=1, ready_s=0.3, dispatch_s=0.6, max_tokens=9, prompt="again", **sent) == 1
    writer.tool(request=0, node=1, stage="b", start_s=0.5, finish_s=0.55, ok=1, output="text")
    writer.request(0, status="done", finish_s=0.9, answer="that", correct=1, grade="passed")
    writer.metrics(time_s=0.7, route=0, running=1, waiting=0)
    writer.event(0.95, "server down", "it died", route=0)
    writer.end_session(1.0, "drained")
    writer.close()


def test_everything_written_is_read(tmp_path: Path) -> None:
    filled(tmp_path / "sub" / "r.db")
    with Recording(tmp_path / "sub" / "r.db") as recording:
        assert recording.run["seed"] == 3 and json.loads(recording.run["nodes"]) == [["a", "b"]]
        counts = {table: len(list(recording.rows(table))) for table in TABLES}
        assert counts == {**dict.fromkeys(TABLES, 1), "decisions": 2, "calls": 2}
        first, second = recording.rows("calls")
        assert (first["prompt"], first["output"], first["status"]) == ("what? ünïcode", "that", "ok")
        assert second["status"] == "in flight" and second["finish_s"] is None
        seconds, tokens = recording.token_times(0)
        assert seconds.tolist() == [0.4, 0.5] and tokens.tolist() == [1, 3]
        assert [len(array) for array in recording.token_times(1)] == [0, 0]
        view = recording.view(1)
        assert view.calls["prompt_tokens"].tolist() == [7, 8] and view.routes["waiting_tokens"].tolist() == [1 << 40]
        assert view.allowed.tolist() == [[True], [False]] and view.served_by.tolist() == [[-1, 0], [3, 4]]
        assert recording.last_s == 1.0
    assert not list(tmp_path.glob("sub/r.db-*")), "one file is left"


def test_a_recording_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path / "r.db", RUN)
    with Recording(tmp_path / "r.db") as recording:
        assert not list(recording.rows("requests"))
        writer.arrival(0, tape=0, workflow="w", query=0, query_id="q", arrival_s=0.0)
        assert len(list(recording.rows("requests"))) == 1
    writer.close()


def test_pandas_reads_it_in_three_lines(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    filled(tmp_path / "r.db")
    connection = sqlite3.connect(tmp_path / "r.db")
    calls = pd.read_sql("SELECT * FROM calls", connection)
    assert calls["status"].tolist() == ["ok", "in flight"]
    connection.close()


def test_json_lines(tmp_path: Path) -> None:
    filled(tmp_path / "r.db")
    with Recording(tmp_path / "r.db") as recording:
        files = recording.export_jsonl(tmp_path / "out")
    assert {file.stem for file in files} == set(TABLES)
    data = {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in files}
    assert data["run"][0]["options"] == {"x": 1.5} and data["run"][0]["scenario_yaml"] == "name: s\n"
    assert data["calls"][0]["token_s"] == [0.4, 0.5] and data["calls"][1]["token_s"] is None
    decision = data["decisions"][1]
    assert decision["calls"][1]["prompt_tokens"] == 8 and decision["allowed"] == [[True], [False]]
    assert decision["routes"][0].keys() == set(VIEW_ROUTE.names or ())


def test_files_that_are_no_recordings(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such recording"):
        Recording(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("hello, this is no database at all" * 100)
    with pytest.raises(SpecError, match="not a recording"):
        Recording(tmp_path / "text.db")
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE x (y)")
    connection.close()
    with pytest.raises(SpecError, match="not a recording of aragog"):
        Recording(tmp_path / "other.db")
    filled(tmp_path / "new.db")
    connection = sqlite3.connect(tmp_path / "new.db", isolation_level=None)
    connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    with pytest.raises(SpecError, match=f"schema {SCHEMA + 1}; this version of aragog reads {SCHEMA}"):
        Recording(tmp_path / "new.db")


def test_runs_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    filled(path)
    with pytest.raises(SpecError, match="exists already"):
        RecordingWriter(path, RUN)
    for name, value in (("policy", "other"), ("seed", 4), ("scenario_hash", "x"), ("models", ["m", "n"])):
        with pytest.raises(SpecError, match=f"of another run: its {name}"):
            RecordingWriter(path, {**RUN, name: value}, resume=True)
    writer = RecordingWriter(path, RUN, resume=True)
    assert writer.session == 1
    writer.close()


def test_unknown_rows(tmp_path: Path) -> None:
    filled(tmp_path / "r.db")
    with Recording(tmp_path / "r.db") as recording:
        with pytest.raises(SpecError, match="no table 'nothing'"):
            list(recording.rows("nothing"))
        with pytest.raises(SpecError, match="no decision 9"):
            recording.view(9)
        with pytest.raises(SpecError, match="no call 9"):
            recording.token_times(9)


def test_stolen_processor_time_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr("aragog_env.recording.processor._STAT", stat)
    stat.write_text("cpu  100 0 50 800 0 0 0 50 7 7\ncpu0 1 2 3\n")
    writer = RecordingWriter(tmp_path / "a.db", RUN)
    writer.begin_session(0.0, versions={}, machine={}, isolation=[], servers=[])
    stat.write_text("cpu  130 0 60 840 0 0 0 70 9 9\ncpu0 1 2 3\n")  # 30 + 10 + 40 + 20 ticks later
    writer.end_session(1.0, "drained")
    writer.close()
    with Recording(tmp_path / "a.db") as recording:
        (session,) = recording.rows("sessions")
    assert session["cpu_stolen"] == pytest.approx(0.2)


@pytest.mark.parametrize("text", ["", "intr 1 2 3\n", "cpu  1 2 3 4\n"])
def test_machines_that_do_not_tell_stolen_time(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aragog_env.recording.processor._STAT", tmp_path / "stat")
    assert StolenTime().share() is None
    (tmp_path / "stat").write_text(text)
    assert StolenTime().share() is None


def test_a_file_without_the_newest_columns_can_be_read_and_resumed(tmp_path: Path) -> None:
    filled(tmp_path / "a.db")
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("ALTER TABLE sessions DROP COLUMN cpu_stolen")
    with Recording(tmp_path / "a.db") as recording:
        assert "cpu_stolen" not in next(recording.rows("sessions"))
    writer = RecordingWriter(tmp_path / "a.db", RUN, resume=True)
    writer.begin_session(2.0, versions={}, machine={}, isolation=[], servers=[])
    writer.end_session(3.0, "drained")
    writer.close()
    with Recording(tmp_path / "a.db") as recording:
        assert [row["ended_s"] for row in recording.rows("sessions")][-1] == 3.0
