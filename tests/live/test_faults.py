"""The fault matrix of docs/live.md: what a live run does when servers misbehave. No request is ever lost without a word."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aragog_env import make_policy
from aragog_env.backends.live import LiveBackend
from aragog_env.episode import EpisodeLog
from aragog_env.harness.rollout import run_episode
from aragog_env.policy import WAIT, Dispatch, Policy, Wait
from aragog_env.recording import Recording
from aragog_env.view import DispatchView
from tests.live.fake_server import FakeServer
from tests.live.world import PATIENT, QUICK, world

pytest.importorskip("httpx")
LIMITED = replace(PATIENT, timeouts=replace(PATIENT.timeouts, first_token_s=3.0, between_tokens_s=3.0))
"""Answers may not take longer than a machine may stand still."""


class Recorded:
    """A policy that notes which routes each view offers."""

    def __init__(self, name: str = "least_loaded") -> None:
        self.policy: Policy = make_policy(name)
        self.allowed: list[tuple[int, int, list[bool]]] = []

    def reset(self, scenario: Any, seed: int) -> None:
        self.policy.reset(scenario, seed)

    def act(self, view: DispatchView) -> Dispatch | Wait:
        for call, row in zip(view.calls, view.allowed, strict=True):
            assert row.any(), "a view holds only calls that can go somewhere"
            assert not (row & (view.routes["up"] == 0)).any()
            self.allowed.append((int(call["request"]), int(call["node"]), row.tolist()))
        return self.policy.act(view)


def run(backend: LiveBackend, policy: Any = None) -> EpisodeLog:
    return run_episode(policy or make_policy("least_loaded"), "p", backend, 0)


def once_busy(server: FakeServer, calls: int, what: Callable[[], object]) -> None:
    """Do something as soon as a server has been asked for so many completions."""

    def wait() -> None:
        deadline = time.monotonic() + 20.0
        while len(server.seen) < calls and time.monotonic() < deadline:
            time.sleep(0.005)
        what()

    threading.Thread(target=wait, daemon=True).start()


def later(seconds: float, what: Callable[[], object]) -> None:
    threading.Timer(seconds, what).start()


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    with Recording(folder / "run.db") as recording:
        return list(recording.rows(table))


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("500", "server"),
        ("garbage", "garbage"),
        ("cut", "cut"),
        ("error", "server"),
        ("stall", "timeout"),
        ("hang", "timeout"),
    ],
)
def test_a_server_that_fails_calls(fault: str, status: str, tmp_path: Path) -> None:
    """Its calls go elsewhere, it leaves the mask, and comes back when it works again."""
    policy = Recorded("fixed:smallest")
    options = LIMITED if status == "timeout" else PATIENT
    with world(tmp_path, options=options, requests=5, rate_rps=20.0, copies=2) as (backend, servers):
        servers[0].fault, servers[0].faults_left = fault, 2
        log = run(backend, policy)
    assert np.isfinite(log.requests["finish_s"]).all() and log.notes["failed_requests"] == {}
    failed = [row for row in rows(tmp_path, "calls") if row["status"] != "ok"]
    assert 1 <= len(failed) <= 2 and {row["status"] for row in failed} == {status}
    assert {row["server"] for row in failed} == {"toy-s-0"} and all(row["error"] for row in failed)
    assert log.notes["retries"] == len(failed)
    again = [row for row in rows(tmp_path, "calls") if row["attempt"] == 2]
    assert len(again) == len(failed) and all(row["server"] != "toy-s-0" and row["status"] == "ok" for row in again)
    kinds = [row["kind"] for row in rows(tmp_path, "events")]
    assert kinds.count("server down") >= 1 and "call tried again" in kinds
    # While it was down no view offered it.
    assert any(not row[0] and row[1] for _, _, row in policy.allowed)


class Restarter(Recorded):
    """Starts a server again as soon as a view lacks it, and thinks until it is back."""

    def __init__(self, backend: LiveBackend, server: FakeServer) -> None:
        super().__init__()
        self.backend, self.server, self.restarted, self.stopped = backend, server, False, threading.Event()

    def stop(self) -> None:
        self.server.stop()
        self.stopped.set()

    def act(self, view: DispatchView) -> Dispatch | Wait:
        if not view.routes["up"][0] and not self.restarted:
            self.restarted = self.stopped.wait(20.0)
            self.server.start()
            deadline = time.monotonic() + 20.0
            while not self.backend.episode.pool.routes[0].up and time.monotonic() < deadline:
                time.sleep(0.005)
        return super().act(view)


def test_a_server_that_dies_and_is_restarted(tmp_path: Path) -> None:
    with world(tmp_path, requests=16, rate_rps=12.0) as (backend, servers):
        small = servers[0]
        small.token_s = 0.03
        policy = Restarter(backend, small)
        once_busy(small, 3, policy.stop)
        log = run(backend, policy)
    assert np.isfinite(log.requests["finish_s"]).all() and log.notes["failed_requests"] == {}
    events = [(row["kind"], row["route"]) for row in rows(tmp_path, "events") if row["kind"].startswith("server")]
    assert events == [("server down", 0), ("server up", 0)], "once: what was cut says nothing about the new server"
    states = [row[0] for _, _, row in policy.allowed]
    down = states.index(False)
    assert True in states[:down] and True in states[down:], "allowed, then not, then again"
    served = [row["server"] for row in rows(tmp_path, "calls") if row["status"] == "ok"]
    assert served[-1] and {"toy-s", "toy-l"} == set(served)


def test_a_server_that_does_not_answer_at_all_any_more(tmp_path: Path) -> None:
    """As if stopped (SIGSTOP): connections stay open and nothing comes. Its calls do not wait for their time limit."""
    options = replace(
        PATIENT, timeouts=replace(PATIENT.timeouts, probe_s=1.0), pool=replace(PATIENT.pool, unresponsive_s=3.0)
    )
    with world(tmp_path, options=options, requests=4, rate_rps=20.0) as (backend, servers):
        small = servers[0]
        small.fault = "hang"
        once_busy(small, 1, lambda: setattr(small, "healthy", None))
        begin = time.monotonic()
        log = run(backend)
        assert time.monotonic() - begin < PATIENT.timeouts.first_token_s
    assert np.isfinite(log.requests["finish_s"]).all()
    down = [row for row in rows(tmp_path, "events") if row["kind"] == "server down"]
    assert "no answer" in down[0]["text"] and down[0]["route"] == 0


def test_a_refused_call_goes_to_another_model(tmp_path: Path) -> None:
    """4xx says something about the call, not about the server: it stays up, the call does not come back to this model."""
    with world(tmp_path, requests=1, copies=2) as (backend, servers):
        for server in servers[:2]:
            server.fault = "refuse"
        log = run(backend)
    assert np.isfinite(log.requests["finish_s"]).all()
    assert not [row for row in rows(tmp_path, "events") if row["kind"] == "server down"]
    calls = rows(tmp_path, "calls")
    by_call: dict[tuple[int, int], list[str]] = {}
    for row in calls:
        by_call.setdefault((row["request"], row["node"]), []).append(row["model"])
    assert all(models in (["toy-small", "toy-large"], ["toy-large"]) for models in by_call.values())


def test_a_call_that_every_model_refuses_fails_its_request(tmp_path: Path) -> None:
    with world(tmp_path, requests=2) as (backend, servers):
        for server in servers:
            server.fault = "refuse"
        log = run(backend)
    assert np.isnan(log.requests["finish_s"]).all() and not log.truncated
    for row in rows(tmp_path, "requests"):
        assert row["status"] == "failed" and "stage 'draft': every server refuses the call" in row["reason"]
        assert "prompt too long" in row["reason"]


def test_attempts_are_bounded(tmp_path: Path) -> None:
    with world(tmp_path, requests=1) as (backend, servers):
        for server in servers:
            server.fault = "500"
        log = run(backend)
    assert log.notes["failed_requests"].keys() == {0}  # type: ignore[attr-defined]
    (request,) = rows(tmp_path, "requests")
    assert "4 attempts failed; the last on toy-" in request["reason"] and "out of cheese" in request["reason"]
    assert [row["attempt"] for row in rows(tmp_path, "calls")] == [1, 2, 3, 4]
    assert "request failed" in {row["kind"] for row in rows(tmp_path, "events")}


def test_a_call_that_no_server_can_take_fails_in_time(tmp_path: Path) -> None:
    with world(tmp_path, options=QUICK, requests=3, rate_rps=5.0) as (backend, servers):
        backend.reset(0)
        for server in servers:
            server.stop()
        policy = make_policy("least_loaded")
        policy.reset(backend.scenario, 0)
        while not backend.done:
            backend.step(policy.act(backend.view()))
        log = backend.log()
    assert np.isnan(log.requests["finish_s"]).all() and len(log.requests) == 3
    for row in rows(tmp_path, "requests"):
        assert row["status"] == "failed" and "no server could take the call for" in row["reason"]


def test_servers_that_come_back_in_time_lose_nothing(tmp_path: Path) -> None:
    with world(tmp_path, requests=3, rate_rps=30.0) as (backend, servers):
        backend.reset(0)
        for server in servers:
            server.stop()
            later(0.6, server.start)
        policy = make_policy("least_loaded")
        policy.reset(backend.scenario, 0)
        while not backend.done:
            backend.step(policy.act(backend.view()))
        assert np.isfinite(backend.log().requests["finish_s"]).all()


def test_a_workflow_or_tool_or_grader_that_raises(tmp_path: Path) -> None:
    with world(tmp_path, requests=3, rate_rps=100.0) as (backend, _):
        runtime: Any = backend.queries.runtimes[0]
        functions = runtime._functions

        def broken(*_: object) -> Any:
            raise RuntimeError("broken on purpose")

        functions["measure.tool"] = broken
        log = run(backend)
    assert all(
        "tool 'measure' raised RuntimeError: broken on purpose" in row["reason"] for row in rows(tmp_path, "requests")
    )
    assert len(log.notes["failed_requests"]) == 3  # type: ignore[arg-type]
    with world(tmp_path / "2", requests=2) as (backend, _):
        functions = backend.queries.runtimes[0]._functions
        functions["grader"] = broken
        log = run(backend)
    assert np.isfinite(log.requests["finish_s"]).all() and (log.requests["correct"] == -1).all()
    assert all(row["grade"] == "error" for row in rows(tmp_path / "2", "requests"))


def test_a_server_without_metrics_is_used_all_the_same(tmp_path: Path) -> None:
    with world(tmp_path, requests=2) as (backend, servers):
        for server in servers:
            server._respond = _without_metrics(server)  # type: ignore[method-assign]
        assert np.isfinite(run(backend).requests["finish_s"]).all()


def _without_metrics(server: FakeServer) -> Any:
    respond = server._respond

    async def without(path: str, *rest: Any) -> None:
        await respond("/nothing" if path == "/metrics" else path, *rest)

    return without


def test_siblings_of_a_failed_call_are_broken_off(tmp_path: Path) -> None:
    """The request is lost; what its other calls would still write is of no use to anybody."""
    with world(tmp_path, requests=1) as (backend, servers):
        small = servers[0]
        small.token_s = 4.0
        functions = backend.queries.runtimes[0]._functions  # type: ignore[attr-defined]
        functions["measure.tool"] = lambda _: _fail_once_voting(servers, 2)
        backend.reset(0)
        assert not backend.done
        backend.step(Dispatch(0, 1))  # the draft, by the quick server
        begin = time.monotonic()
        while not backend.done:
            backend.step(Dispatch(0, 0))  # the votes, by the slow one
        assert time.monotonic() - begin < 11.0, "three tokens at 4 s were not waited for"
        deadline = time.monotonic() + 20.0
        while small.running and time.monotonic() < deadline:
            time.sleep(0.01)
        assert small.running == 0 and small.written < 6, "the server was told"
    (request,) = rows(tmp_path, "requests")
    assert request["status"] == "failed" and "tool 'measure' raised" in request["reason"]
    votes = [row for row in rows(tmp_path, "calls") if row["stage"].startswith("vote")]
    # All is over with the failure of the only request, so that either word of it may come first.
    assert len(votes) == 2 and {row["status"] for row in votes} <= {"cancelled", "lost"}
    assert not [row for row in rows(tmp_path, "events") if row["kind"] == "server down"]


def _fail_once_voting(servers: list[FakeServer], votes: int) -> Any:
    """Raise as soon as so many votes were asked for."""
    deadline = time.monotonic() + 60.0
    while sum("VOTE" in str(body) for server in servers for body in list(server.seen)) < votes:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    raise RuntimeError("broken on purpose")


def test_siblings_are_broken_off_while_others_go_on(tmp_path: Path) -> None:
    with world(tmp_path, requests=3, rate_rps=100.0) as (backend, servers):
        servers[0].token_s = servers[1].token_s = 0.5
        functions = backend.queries.runtimes[0]._functions  # type: ignore[attr-defined]
        measure = functions["measure.tool"]
        first: list[object] = []

        def once(call: Any) -> Any:
            first.append(call)
            return _fail_once_voting(servers, 6) if len(first) == 1 else measure(call)

        functions["measure.tool"] = once
        log = run(backend)
    assert len(log.notes["failed_requests"]) == 1 and np.isfinite(log.requests["finish_s"]).sum() == 2  # type: ignore[arg-type]
    (failed,) = log.notes["failed_requests"]  # type: ignore[misc,attr-defined]
    statuses = {row["status"] for row in rows(tmp_path, "calls") if row["request"] == failed and row["node"] > 0}
    assert statuses == {"cancelled"}
    assert not [row for row in rows(tmp_path, "events") if row["kind"] in ("server down", "call tried again")]


@pytest.mark.parametrize("name", ["fixed:largest", "per_input:viable=oracle"])
def test_policies_with_fixed_models_survive_the_loss_of_one(name: str, tmp_path: Path) -> None:
    """They take another model meanwhile: an answer of lesser quality beats none."""
    with world(tmp_path, requests=8, rate_rps=20.0) as (backend, servers):
        large = servers[1]
        large.fault, large.faults_left = "cut", 2
        log = run(backend, make_policy(name))
    assert np.isfinite(log.requests["finish_s"]).all() and log.notes["failed_requests"] == {}


class Stubborn:
    """Sends calls to the last route and nowhere else."""

    def reset(self, scenario: Any, seed: int) -> None:
        pass

    def act(self, view: DispatchView) -> Dispatch | Wait:
        last = view.allowed.shape[1] - 1
        open_calls = np.flatnonzero(view.allowed[:, last])
        return Dispatch(int(open_calls[0]), last) if len(open_calls) else WAIT


def test_a_policy_that_waits_for_a_server_gets_it_back(tmp_path: Path) -> None:
    with world(tmp_path, requests=2) as (backend, servers):
        large = servers[1]
        backend.reset(0)
        large.stop()
        later(0.5, large.start)
        log = run_to_the_end(backend, Stubborn())
    assert np.isfinite(log.requests["finish_s"]).all() and log.notes["failed_requests"] == {}


def test_a_policy_that_waits_for_a_server_in_vain_loses_the_requests_only(tmp_path: Path) -> None:
    with world(tmp_path, options=QUICK, requests=2) as (backend, servers):
        backend.reset(0)
        servers[1].stop()
        log = run_to_the_end(backend, Stubborn())
    assert np.isnan(log.requests["finish_s"]).all() and not log.truncated
    for row in rows(tmp_path, "requests"):
        assert row["status"] == "failed" and "the policy waits for a server that did not come back" in row["reason"]


def run_to_the_end(backend: LiveBackend, policy: Any) -> EpisodeLog:
    """Go on with an episode that has begun."""
    while not backend.done:
        backend.step(policy.act(backend.view()))
    return backend.log()
