"""The log of a recording is the log that the live backend gave when the run ended."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from aragog_env import make_policy
from aragog_env.episode import EpisodeLog
from aragog_env.errors import SpecError
from aragog_env.harness.episodes import differences
from aragog_env.harness.metrics import WALL_CLOCK_METRICS, episode_metrics
from aragog_env.harness.rollout import run_episode
from aragog_env.recording import Recording
from aragog_env.recording.episode import recorded_log
from tests.live.world import world
from tests.recording.test_recording import filled

pytest.importorskip("httpx")


def log_of(path: Path) -> EpisodeLog:
    with Recording(path) as recording:
        return recorded_log(recording)


def same(live: EpisodeLog, recorded: EpisodeLog) -> None:
    """Assert equality but for what only the harness knows."""
    live.notes = {k: v for k, v in live.notes.items() if k not in ("overflow", "saw_outcomes")}
    assert differences(live, recorded) == []


def test_it_is_the_log_of_the_run(tmp_path: Path) -> None:
    with world(tmp_path, requests=6, copies=2) as (backend, _):
        live = run_episode(make_policy("least_loaded"), "least_loaded", backend, 3)
    recorded = log_of(tmp_path / "run.db")
    recorded.policy = live.policy  # the recording was made without the policy's name
    same(live, recorded)
    assert len(recorded.decision_s) == len(live.decision_s) and (recorded.decision_s >= live.decision_s * 0.5).all()
    ours, theirs = episode_metrics(recorded), episode_metrics(live)
    for name in set(ours) - WALL_CLOCK_METRICS - {"overflow"}:
        assert ours[name] == pytest.approx(theirs[name], nan_ok=True), name


def test_failed_attempts_and_failed_requests(tmp_path: Path) -> None:
    with world(tmp_path, requests=5) as (backend, servers):
        servers[0].fault, servers[0].faults_left = "500", 2
        servers[1].fault, servers[1].faults_left = "refuse", 1
        live = run_episode(make_policy("random"), "random", backend, 0)
    assert live.notes["retries"]
    recorded = log_of(tmp_path / "run.db")
    recorded.policy = live.policy
    same(live, recorded)


def test_calls_in_flight_at_the_horizon(tmp_path: Path) -> None:
    with world(tmp_path, requests=4, rate_rps=50.0, duration_s=0.5) as (backend, servers):
        servers[0].fault, servers[0].faults_left = "hang", 2
        live = run_episode(make_policy("least_loaded"), "least_loaded", backend, 0)
    assert live.truncated and np.isnan(live.calls["finish_s"]).any()
    recorded = log_of(tmp_path / "run.db")
    recorded.policy = live.policy
    assert (recorded.calls["prompt_tokens"] > 0).all()
    # The live log is taken some moments after the horizon: what was open then has gone on being busy.
    live.busy_s = recorded.busy_s
    same(live, recorded)


def test_a_recording_without_a_run(tmp_path: Path) -> None:
    filled(tmp_path / "r.db")
    connection = sqlite3.connect(tmp_path / "r.db", isolation_level=None)
    with pytest.raises(SpecError, match="its scenario"):
        log_of(tmp_path / "r.db")  # the text of its scenario is none
    connection.execute("UPDATE run SET scenario_yaml = (SELECT 'name: x')")
    with pytest.raises(SpecError, match="missing key"):
        log_of(tmp_path / "r.db")
    connection.close()
