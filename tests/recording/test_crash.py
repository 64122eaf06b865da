"""A client that is killed loses the calls in flight and nothing else, and can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aragog_env import make_policy
from aragog_env.backends.live import LiveBackend
from aragog_env.errors import SpecError
from aragog_env.harness.rollout import run_episode
from aragog_env.policy import Dispatch
from aragog_env.recording import Recording
from aragog_env.specs.scenario import Scenario
from aragog_env.view import DispatchView
from tests.live.fake_server import FakeServer
from tests.live.world import PATIENT, answer, endpoints_of, make_scenario, world

pytest.importorskip("httpx")
ROOT = Path(__file__).resolve().parents[2]

CLIENT = """
import sys
from pathlib import Path
from aragog_env import make_policy
from aragog_env.backends.live import LiveBackend
from aragog_env.harness.rollout import run_episode
from aragog_env.servers.endpoints import Endpoint
from tests.live.world import PATIENT, make_scenario
folder, urls = Path(sys.argv[1]), sys.argv[2:]
scenario = make_scenario(folder, requests=12, rate_rps=8.0)
endpoints = [Endpoint(r.name, r.model, url, r.model) for r, url in zip(scenario.cluster.expand(), urls)]
with LiveBackend(scenario, endpoints, recording=folder / "run.db", policy="least_loaded", options=PATIENT) as backend:
    run_episode(make_policy("least_loaded"), "least_loaded", backend, 0)
"""


def started_client(folder: Path, servers: list[FakeServer], until_calls: int) -> subprocess.Popen[bytes]:
    """Start a client of its own process and return when so many calls were asked for."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CLIENT, str(folder), *(server.url for server in servers)]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while sum(len(server.seen) for server in servers) < until_calls:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    return process


def prompts(servers: list[FakeServer]) -> Counter[str]:
    return Counter(body["messages"][0]["content"] for server in servers for body in server.seen)


def finish(process: subprocess.Popen[bytes], which: signal.Signals) -> None:
    process.send_signal(which)
    process.communicate(timeout=120)


@pytest.mark.parametrize("calls", [4, 17])
def test_after_kill_9_only_calls_in_flight_are_missing(calls: int, tmp_path: Path) -> None:
    scenario: Scenario = make_scenario(tmp_path, requests=12, rate_rps=8.0)
    with ExitStack() as stack:
        servers = [stack.enter_context(FakeServer(answer, token_s=0.02)) for _ in range(2)]
        finish(started_client(tmp_path, servers, calls), signal.SIGKILL)
        asked = prompts(servers)
        with Recording(tmp_path / "run.db") as recording:
            before: list[dict[str, Any]] = list(recording.rows("calls"))
            over = {row["request"] for row in recording.rows("requests") if row["status"] == "done"}
            stopped_s = recording.last_s
        lost = [row for row in before if row["status"] == "in flight"]
        # Every call that a server saw was written down before it was sent.
        assert set(asked) <= {row["prompt"] for row in before} and len(lost) <= 16
        assert len(before) - len(lost) >= calls - 16

        endpoints = endpoints_of(scenario, servers)
        with LiveBackend(
            scenario, endpoints, recording=tmp_path / "run.db", policy="least_loaded", options=PATIENT, resume=True
        ) as backend:
            log = run_episode(make_policy("least_loaded"), "least_loaded", backend, 0)
        again = prompts(servers)
    # What had been answered was not asked again; what was in flight was, once.
    for row in before:
        assert again[row["prompt"]] == asked[row["prompt"]] + (row["status"] == "in flight")
    assert len(log.requests) == 12 and np.isfinite(log.requests["finish_s"]).all()
    assert log.requests["correct"].tolist() == [int(q % 3 != 0) for q in log.requests["query"]]
    assert (np.diff(log.requests["arrival_s"]) >= 0).all()
    with Recording(tmp_path / "run.db") as recording:
        sessions = list(recording.rows("sessions"))
        assert [row["ending"] for row in sessions] == [None, "drained"] and sessions[1]["offset_s"] == stopped_s
        by_request = {row["request"]: row for row in recording.rows("requests")}
        assert all(row["status"] == "done" and row["correct"] is not None for row in by_request.values())
        assert all(by_request[r]["session"] == 0 and by_request[r]["finish_s"] <= stopped_s for r in over)
        statuses = Counter(row["status"] for row in recording.rows("calls"))
    assert statuses["lost"] == len(lost) and statuses["ok"] == len(log.calls) and "in flight" not in statuses


def test_ctrl_c_ends_in_order_and_keeps_the_recording(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(FakeServer(answer, token_s=0.02)) for _ in range(2)]
        process = started_client(tmp_path, servers, 6)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=120)[0].decode()
        assert process.returncode != 0 and "KeyboardInterrupt" in output
        assert (
            "Exception ignored" not in output and "never awaited" not in output and "Task was destroyed" not in output
        )
    with Recording(tmp_path / "run.db") as recording:
        (session,) = recording.rows("sessions")
        assert session["ending"] in ("interrupted", "closed before the end") and session["ended_s"] > 0
        assert len(list(recording.rows("calls"))) >= 6
    assert not (tmp_path / "run.db-wal").exists()


class Stubborn:
    """Raises at its n-th decision."""

    def __init__(self, n: int) -> None:
        self.left = n

    def reset(self, scenario: Any, seed: int) -> None:
        pass

    def act(self, view: DispatchView) -> Dispatch:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("enough")
        return Dispatch(0, int(np.flatnonzero(view.allowed[0])[0]))


def test_a_run_can_be_resumed_again_and_again(tmp_path: Path) -> None:
    """Also where the last session ended with everything served: there is nothing left to do then."""
    with world(tmp_path, requests=6, rate_rps=30.0) as (first, servers):
        with pytest.raises(Exception, match="enough"):
            run_episode(Stubborn(3), "x", first, 0)
        first.close()
        arguments: dict[str, Any] = {"recording": tmp_path / "run.db", "options": PATIENT, "resume": True}
        endpoints = endpoints_of(first.scenario, servers)
        with LiveBackend(first.scenario, endpoints, **arguments) as second, pytest.raises(Exception, match="enough"):
            run_episode(Stubborn(5), "x", second, 0)
        with LiveBackend(first.scenario, endpoints, **arguments) as third:
            whole = run_episode(Stubborn(999), "x", third, 0)
        asked = sum(len(server.seen) for server in servers)
        with LiveBackend(first.scenario, endpoints, **arguments) as fourth:
            same = run_episode(Stubborn(0), "x", fourth, 0)
        assert asked == sum(len(server.seen) for server in servers)
    assert whole.requests.tobytes() == same.requests.tobytes() and len(whole.calls) == len(same.calls)
    with Recording(tmp_path / "run.db") as recording:
        endings = [row["ending"] for row in recording.rows("sessions")]
    assert endings == ["closed before the end", "closed before the end", "drained", "drained"]


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    with world(tmp_path, requests=2) as (backend, servers):
        run_episode(make_policy("least_loaded"), "x", backend, 0)
        endpoints = endpoints_of(backend.scenario, servers)
        arguments: dict[str, Any] = {"recording": tmp_path / "run.db", "options": PATIENT, "resume": True}
        with (
            LiveBackend(backend.scenario, endpoints, **arguments) as other,
            pytest.raises(SpecError, match="its seed is 0"),
        ):
            other.reset(1)
        with LiveBackend(backend.scenario, endpoints, policy="other", **arguments) as other:
            with pytest.raises(SpecError, match="its policy is ''"):
                other.reset(0)
        missing = {**arguments, "recording": tmp_path / "none.db"}
        with (
            LiveBackend(backend.scenario, endpoints, **missing) as other,
            pytest.raises(SpecError, match="no such recording"),
        ):
            other.reset(0)
