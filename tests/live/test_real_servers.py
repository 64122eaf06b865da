"""The live side on real vLLM servers: checker, evaluation, and every fault that a process can suffer. Four minutes in all."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from aragog_env import cli, make_policy
from aragog_env.backends.live import LiveBackend, LiveOptions
from aragog_env.errors import SpecError
from aragog_env.harness.results import read
from aragog_env.harness.rollout import run_episode
from aragog_env.policy import Policy
from aragog_env.recording import Recording
from aragog_env.servers.client import Timeouts
from aragog_env.servers.pool import PoolOptions
from aragog_env.servers.probe import is_healthy
from aragog_env.specs.strict import dump_yaml
from tests.live.conftest import RealCluster

pytest.importorskip("httpx")
pytestmark = [pytest.mark.live, pytest.mark.slow]

# A server that is stopped is noticed in 6 s instead of 15; the rest is as for users.
QUICK = LiveOptions(pool=PoolOptions(unresponsive_s=5.0), timeouts=Timeouts(probe_s=2.0))


def recorded(path: Path, table: str) -> list[dict[str, Any]]:
    with Recording(path) as recording:
        return list(recording.rows(table))


def both_healthy(cluster: RealCluster) -> None:
    """Every test finds both servers well, and says so if the one before it broke something."""
    for endpoint in cluster.endpoints:
        assert is_healthy(endpoint.url, timeout_s=30.0), endpoint


def test_the_environment_passes_the_checker_of_gymnasium(real_cluster: RealCluster, tmp_path: Path) -> None:
    """See test_live_env for what an environment that is registered as nondeterministic need not repeat."""
    env = gym.make(
        "aragog_env:aragog/StageDispatchLive-v0",
        scenario=real_cluster.scenario(requests=2, rate_rps=4.0),
        cluster=real_cluster.folder,
        recording=tmp_path,
    )
    check_env(env.unwrapped, skip_render_check=True)
    observation, _ = env.reset(seed=0)
    terminated = truncated = False
    while not (terminated or truncated):
        action = int(np.flatnonzero(observation["action_mask"])[0])
        observation, _, terminated, truncated, info = env.step(action)
    assert terminated and info["metrics"]["completed"] == 2 and info["metrics"]["accuracy"] >= 0
    env.close()


def test_a_short_evaluation_from_the_command_line(
    real_cluster: RealCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both_healthy(real_cluster)
    monkeypatch.chdir(tmp_path)
    Path("sums.yaml").write_text(dump_yaml(real_cluster.scenario(requests=4)))
    words = ["evaluate", "--backend", "live", "--cluster", str(real_cluster.folder), "-s", "sums.yaml", "--out", "r"]
    words += ["-p", "least_loaded", "-p", "fixed:largest", "--seeds", "1", "--rate", "2", "--rate", "4"]
    assert cli.main(words) == 0
    assert "arithmetic@2rps" in capsys.readouterr().out
    results = read("r")
    assert len(results.ok) == 4 and not results.failed
    for run in results.ok:
        assert run.metrics["completed"] == 4 and run.metrics["failed"] == 0
        assert run.details["before"] == [], "idle, and the caches were emptied"
        log = results.log(run)
        assert (log.requests["correct"] >= 0).all(), "graded for real"
        assert (log.calls["output_tokens"] > 0).all() and (log.calls["first_token_s"] < log.calls["finish_s"]).any()
        assert run.recording is not None
        metrics = recorded(Path("r") / run.recording, "server_metrics")
        assert {row["route"] for row in metrics} == {0, 1} and any(row["generation_tokens"] for row in metrics)
    largest = [run for run in results.ok if run.policy == "fixed:largest"]
    assert all((results.log(run).calls["route"] == 1).all() for run in largest)


def test_a_server_that_is_stopped_and_goes_on(real_cluster: RealCluster, tmp_path: Path) -> None:
    """SIGSTOP: connections stay open, nothing comes. Its calls go elsewhere; when it goes on it is used again."""
    both_healthy(real_cluster)
    stopped = real_cluster.pids(0)
    scenario = real_cluster.scenario(requests=30, rate_rps=1.5)
    path = tmp_path / "run.db"
    hooked = Hooked(after_calls=6, what=lambda: _stop_for(stopped, 10.0))
    try:
        with LiveBackend(scenario, real_cluster.endpoints, recording=path, policy="x", options=QUICK) as backend:
            log = run_episode(hooked, "x", backend, 0)
    finally:
        _send(stopped, signal.SIGCONT)
    assert np.isfinite(log.requests["finish_s"]).all() and log.notes["failed_requests"] == {}
    events = [(row["kind"], row["route"]) for row in recorded(path, "events") if row["kind"].startswith("server")]
    assert events[:2] == [("server down", 0), ("server up", 0)], events
    assert recorded(path, "calls")[-1]["status"] == "ok"
    both_healthy(real_cluster)


def test_a_client_that_is_killed_and_resumed(
    real_cluster: RealCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kill -9` in the middle of a run: what was finished stays, what was in flight is asked again, nothing is lost."""
    both_healthy(real_cluster)
    monkeypatch.chdir(tmp_path)
    Path("sums.yaml").write_text(dump_yaml(real_cluster.scenario(requests=12, rate_rps=2.0)))
    words = ["evaluate", "--backend", "live", "--cluster", str(real_cluster.folder), "-s", "sums.yaml", "--out", "r"]
    words += ["-p", "least_loaded", "--seeds", "1", "--no-report", "--quiet"]
    command = [sys.executable, "-m", "aragog_env.cli", *words]
    with subprocess.Popen(command) as first:
        deadline = time.monotonic() + 120.0
        while time.monotonic() < deadline and _arrived(Path("r/recordings")) < 5:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        assert first.wait(10) == -signal.SIGKILL
    assert cli.main([*words, "--resume"]) == 0
    (run,) = read("r").ok
    assert run.recording is not None and run.details["resumed"] is True
    path = Path("r") / run.recording
    assert [row["ending"] for row in recorded(path, "sessions")] == [None, "drained"]
    requests = recorded(path, "requests")
    assert len(requests) == 12 and {row["status"] for row in requests} == {"done"}
    assert {row["session"] for row in requests} == {0, 1}
    calls = [row for row in recorded(path, "calls") if row["status"] == "ok"]
    assert len(calls) == len({(row["request"], row["node"]) for row in calls}), "no call was answered twice"


def test_a_server_that_is_killed_and_started_again(real_cluster: RealCluster, tmp_path: Path) -> None:
    """`kill -9` of a server in the middle of a run, started again beside it: no request is lost, and it is used again."""
    both_healthy(real_cluster)
    victim = real_cluster.server(0)
    again = threading.Thread(target=real_cluster.start_again)

    def kill() -> None:
        os.kill(victim.pid, signal.SIGKILL)
        again.start()

    # Long enough for a server to come back; the wait of the last requests does not count.
    rate_rps = 1.0
    scenario = real_cluster.scenario(requests=int(rate_rps * (1.2 * real_cluster.start_s + 15)), rate_rps=rate_rps)
    path = tmp_path / "run.db"
    try:
        with LiveBackend(scenario, real_cluster.endpoints, recording=path, policy="x") as backend:
            log = run_episode(Hooked(after_calls=12, what=kill), "x", backend, 0)
    finally:
        if again.ident is not None:
            again.join()
    assert np.isfinite(log.requests["finish_s"]).all() and log.notes["failed_requests"] == {}
    assert (log.requests["correct"] >= 0).all()
    events = [(row["kind"], row["route"]) for row in recorded(path, "events") if row["kind"].startswith("server")]
    assert events[0] == ("server down", 0) and ("server up", 0) in events, events
    calls = recorded(path, "calls")
    up_s = next(row["time_s"] for row in recorded(path, "events") if row["kind"] == "server up")
    assert any(row["route"] == 0 and row["dispatch_s"] > up_s and row["status"] == "ok" for row in calls)
    assert real_cluster.server(0).pid != victim.pid and real_cluster.endpoints[0].url == victim.endpoint.url
    both_healthy(real_cluster)


class Hooked:
    """The least loaded server; after some calls something happens, once."""

    def __init__(self, after_calls: int, what: Any) -> None:
        self.policy: Policy = make_policy("least_loaded")
        self.left, self.what = after_calls, what

    def reset(self, scenario: Any, seed: int) -> None:
        self.policy.reset(scenario, seed)

    def act(self, view: Any) -> Any:
        action = self.policy.act(view)
        self.left -= 1
        if self.left == 0:
            threading.Thread(target=self.what, daemon=True).start()
        return action


def _stop_for(pids: list[int], seconds: float) -> None:
    _send(pids, signal.SIGSTOP)
    time.sleep(seconds)
    _send(pids, signal.SIGCONT)


def _send(pids: list[int], which: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, which)
        except ProcessLookupError:
            continue


def _arrived(recordings: Path) -> int:
    try:
        return max((len(recorded(path, "requests")) for path in recordings.glob("*.db")), default=0)
    except (SpecError, sqlite3.OperationalError):
        return 0  # this very moment it is being made
