"""The live backend over fake servers: whole episodes, what policies see, waiting, horizon, copies."""

from __future__ import annotations

import copy
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aragog_env import make_policy
from aragog_env.backends.live import LiveBackend
from aragog_env.errors import AragogError, PolicyError, SpecError
from aragog_env.harness.metrics import episode_metrics
from aragog_env.harness.rollout import run_episode
from aragog_env.policy import WAIT, Dispatch, Wait
from aragog_env.recording import Recording
from aragog_env.servers.endpoints import Endpoint
from aragog_env.view import DispatchView
from tests.live.world import NODES, PATIENT, QUICK, endpoints_of, make_scenario, world

pytest.importorskip("httpx")


def test_an_episode_from_arrivals_to_grades(tmp_path: Path) -> None:
    with world(tmp_path, requests=6) as (backend, servers):
        log = run_episode(make_policy("least_loaded"), "least_loaded", backend, 0)
        easy = [backend.queries.records[0][q].query for q in log.requests["query"] if q % 2 == 0]
    assert not log.truncated and np.isfinite(log.requests["finish_s"]).all()
    # The right answer of every third question is another one.
    assert log.requests["correct"].tolist() == [int(q % 3 != 0) for q in log.requests["query"]]
    # Easy questions skip the last stage: draft and two votes, else four calls.
    assert len(log.calls) == 6 * 4 - len(easy) == sum(len(s.seen) for s in servers)
    calls = log.calls
    assert (calls["ready_s"] <= calls["dispatch_s"]).all() and (calls["dispatch_s"] < calls["first_token_s"]).all()
    assert (calls["first_token_s"] <= calls["finish_s"]).all() and (
        calls["output_tokens"] == 3 - (calls["node"] == 4)
    ).all()
    metrics = episode_metrics(log)
    assert metrics["accuracy"] == pytest.approx(log.requests["correct"].mean())
    assert metrics["completed"] == 6 and metrics["jct_mean_s"] > 0 and metrics["ttft_mean_s"] > 0
    assert log.notes["backend"] == "live" and log.notes["failed_requests"] == {} and log.outcome_kinds == ("live",)


def test_traffic_is_that_of_the_simulator_in_real_time(tmp_path: Path) -> None:
    from aragog_env.backends.sim import SimBackend

    with world(tmp_path, requests=5, rate_rps=20.0) as (backend, _):
        sim = run_episode(make_policy("fixed:largest"), "x", SimBackend(backend.scenario), 3)
        begin = time.perf_counter()
        live = run_episode(make_policy("fixed:largest"), "x", backend, 3)
        assert time.perf_counter() - begin >= live.requests["arrival_s"][-1]
    for name in ("arrival_s", "query", "workflow"):
        assert live.requests[name] == pytest.approx(sim.requests[name], abs=1e-9)
    # Every stage by the larger model, model 1: 1111 in binary.
    assert (live.requests["configuration"] == 15).all()


class Watcher:
    """Sends the first call to the first route allowed, and keeps what it saw."""

    def __init__(self, think_s: float = 0.0) -> None:
        self.seen: list[dict[str, Any]] = []
        self.think_s = think_s

    def reset(self, scenario: Any, seed: int) -> None:
        time.sleep(0.3)

    def act(self, view: DispatchView) -> Dispatch | Wait:
        self.seen.append(
            {name: getattr(view, name) for name in ("now_s", "calls", "routes", "allowed", "in_flight", "served_by")}
        )
        time.sleep(self.think_s)
        return Dispatch(0, int(np.flatnonzero(view.allowed[0])[0]))


def test_what_a_policy_sees(tmp_path: Path) -> None:
    policy = Watcher()
    with world(tmp_path, requests=1) as (backend, servers):
        servers[0].token_s = 0.05
        run_episode(policy, "watcher", backend, 1)
        info = backend.info
    assert info.queries[0].texts[3] == "q3" and info.queries[0].ids[3] == "id3" and info.nodes[0][1] == "vote[0]"
    first, second, third = policy.seen[:3]
    # The clock started with the first decision, not with the 0.3 s of `reset`.
    assert 0 <= first["calls"]["ready_s"][0] <= first["now_s"] < first["calls"]["ready_s"][0] + 0.2
    assert first["calls"]["node"].tolist() == [0] and first["calls"]["depth"].tolist() == [3]
    assert first["calls"]["nodes"].tolist() == [NODES] and first["in_flight"] == 1 and first["allowed"].all()
    assert first["served_by"].tolist() == [[-1] * NODES] and first["routes"]["running"].tolist() == [0, 0]
    assert first["routes"]["up"].tolist() == [1, 1] and first["routes"]["kv_blocks"].tolist() == [256, 256]
    assert second["calls"]["node"].tolist() == [1, 2] and second["served_by"][:, 0].tolist() == [0, 0]
    assert second["calls"]["nodes_done"][0] in (1, 2)  # the tool beside the votes may be done already
    # The first vote is on its way, whatever /metrics last said.
    assert third["calls"]["node"].tolist() == [2] and third["routes"]["running"].tolist() == [1, 0]


def test_thinking_takes_time_and_is_recorded(tmp_path: Path) -> None:
    policy = Watcher(think_s=0.1)
    with world(tmp_path, requests=1) as (backend, _):
        log = run_episode(policy, "watcher", backend, 1)
    assert (log.calls["dispatch_s"] - log.calls["ready_s"] >= 0.1).all()
    with Recording(tmp_path / "run.db") as recording:
        decisions = list(recording.rows("decisions"))
        assert len(decisions) == len(log.calls) and all(row["wall_s"] >= 0.1 for row in decisions)
        view = recording.view(1)
    for name in ("calls", "routes", "allowed", "served_by"):
        assert np.array_equal(getattr(view, name), policy.seen[1][name])


def test_waiting(tmp_path: Path) -> None:
    with world(tmp_path, requests=2, rate_rps=0.7) as (backend, servers):
        backend.reset(0)
        assert not backend.done
        view = backend.view()
        arrivals = backend.episode.tape.arrival_s
        backend.step(Wait(view.now_s + 0.02))
        assert view.now_s + 0.02 <= backend.now_s < arrivals[1] and len(backend.view().calls) == 1
        backend.step(WAIT)  # the next event is the second arrival
        assert backend.now_s >= arrivals[1] and backend.view().calls["request"].tolist() == [0, 1]
        with pytest.raises(ValueError, match="cannot wait until"):
            backend.step(Wait(0.0))
        with pytest.raises(ValueError, match="would never end"):
            backend.step(WAIT)
        for action, message in ((Dispatch(2, 0), "call 2"), (Dispatch(0, 9), "route 9"), (Dispatch(-1, 0), "call -1")):
            with pytest.raises(ValueError, match=message):
                backend.step(action)
        servers[0].token_s = 1.0
        backend.step(Dispatch(0, 0))
        assert backend.view().calls["request"].tolist() == [1]
        backend.step(WAIT)  # until the draft is done
        assert set(backend.view().calls["request"].tolist()) == {0, 1} and not backend.done


def test_a_policy_that_waits_for_ever_is_told(tmp_path: Path) -> None:
    class Idle(Watcher):
        def act(self, view: DispatchView) -> Wait:
            return WAIT

    with world(tmp_path, requests=1) as (backend, _), pytest.raises(PolicyError, match="would never end"):
        run_episode(Idle(), "idle", backend, 0)


def test_the_horizon_cuts(tmp_path: Path) -> None:
    with world(tmp_path, requests=3, rate_rps=100.0, duration_s=0.4) as (backend, servers):
        for server in servers:
            server.fault = "hang"
        log = run_episode(make_policy("least_loaded"), "x", backend, 0)
    assert log.truncated and 0.4 <= log.duration_s < 60 and np.isnan(log.requests["finish_s"]).all()
    with Recording(tmp_path / "run.db") as recording:
        assert next(recording.rows("sessions"))["ending"] == "horizon"
        assert {(row["status"], row["error"]) for row in recording.rows("calls")} == {
            ("lost", "in flight at the end (horizon)")
        }


def test_a_closed_loop_sends_the_next_when_one_is_done(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path, requests=6)
    arrivals = replace(scenario.workload.arrivals, kind="closed", rate_rps=None, users=2, think_s=0.05)
    scenario = replace(scenario, workload=replace(scenario.workload, arrivals=arrivals))
    with world(tmp_path / "w") as (other, servers):
        del other
        with LiveBackend(
            scenario, endpoints_of(scenario, servers), recording=tmp_path / "c.db", options=PATIENT
        ) as backend:
            log = run_episode(make_policy("fixed:smallest"), "x", backend, 0)
    assert len(log.requests) == 6
    in_flight = [
        sum(log.requests["arrival_s"] <= t) - sum(log.requests["finish_s"] <= t) for t in log.requests["arrival_s"]
    ]
    assert max(in_flight) == 2


def test_copies_are_refused_with_a_reason(tmp_path: Path) -> None:
    with world(tmp_path) as (backend, _):
        for operation in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be copied: its servers go on in real time"):
                operation(backend)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(backend)


def test_endpoints_must_fit_the_cluster(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path)
    with pytest.raises(SpecError, match="no server answers for replica 'toy-s'"):
        LiveBackend(scenario, [])
    wrong = [Endpoint(r.name, "toy-large", "http://127.0.0.1:9", "x") for r in scenario.cluster.expand()]
    with pytest.raises(SpecError, match="'toy-s' serves 'toy-small', but its server has 'toy-large'"):
        LiveBackend(scenario, wrong)


def test_nothing_begins_without_servers(tmp_path: Path) -> None:
    with world(tmp_path, options=QUICK) as (backend, servers):
        servers[1].stop()
        with pytest.raises(AragogError, match="no server of model 'toy-large' answers; 'toy-l' at http"):
            backend.reset(0)


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    with world(tmp_path, requests=1) as (backend, _):
        run_episode(make_policy("least_loaded"), "x", backend, 0)
        with pytest.raises(SpecError, match="exists already"):
            backend.reset(0)
