"""Requests on their way, estimates of tokens, arrivals, and the arrays of a view: without servers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aragog_env.backends.live.progress import LiveCall, LiveRequest, ReadyCalls, TokenEstimator
from aragog_env.backends.live.tape import ArrivalQueue, draw_live_tape
from aragog_env.backends.live.view import Routing, Sent, view_routes
from aragog_env.compiled_scenario import compile_scenario
from aragog_env.datasets.record import Record
from aragog_env.grading.runtime import WorkflowRuntime, load_runtime
from aragog_env.servers.metrics import ServerMetrics
from aragog_env.servers.pool import RouteState
from tests.live.world import make_scenario, write_workflow

DRAFT, VOTE, VOTE_TOO, MEASURE, LAST = range(5)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> WorkflowRuntime:
    return load_runtime(write_workflow(tmp_path_factory.mktemp("w") / "errand"))


def request(runtime: WorkflowRuntime, rank: int = 0) -> LiveRequest:
    return LiveRequest(rank, rank, 0, 0, Record("id", "q1", "gold1"), runtime, 0.0)


def test_stages_become_ready_when_their_parents_are_done(runtime: WorkflowRuntime) -> None:
    one = request(runtime)
    assert one.advance() == ([DRAFT], []) and one.advance() == ([], [])
    one.complete(DRAFT, "hard one gold1")
    assert one.advance() == ([VOTE, VOTE_TOO], [MEASURE])
    one.complete(VOTE_TOO, "b")
    one.complete(MEASURE, "14")
    assert one.advance() == ([], [])
    one.complete(VOTE, "a")
    assert one.advance() == ([LAST], [])
    one.complete(LAST, "so gold1")
    assert one.advance() == ([], []) and one.is_complete and runtime.grade(one.record, one.outputs).correct


def test_a_skipped_stage_counts_as_served_by_the_largest(runtime: WorkflowRuntime) -> None:
    one = request(runtime)
    one.advance()
    one.complete(DRAFT, "easy one gold1")
    one.advance()
    for node in (VOTE, VOTE_TOO, MEASURE):
        one.complete(node, "x")
    assert one.advance() == ([], []) and one.is_complete and LAST not in one.outputs
    one.served = {DRAFT: 0, VOTE: 1, VOTE_TOO: 0}
    # Digits draft, vote, vote, last: 0 1 0 and 2, the largest of three.
    assert one.configuration(3) == 0 * 27 + 1 * 9 + 0 * 3 + 2


def test_a_request_goes_on_where_it_stood(runtime: WorkflowRuntime) -> None:
    one = request(runtime)
    one.restore({DRAFT: ("hard", 1), VOTE: ("a", 0)}, {MEASURE: "4"})
    assert one.advance() == ([VOTE_TOO], []) and one.served == {DRAFT: 1, VOTE: 0}


def test_calls_are_ordered_by_arrival_then_depth(runtime: WorkflowRuntime) -> None:
    ready = ReadyCalls()
    calls = [
        LiveCall(request(runtime, rank), node, "", 1, 0.0)
        for rank, node in ((1, DRAFT), (0, LAST), (0, VOTE), (0, DRAFT))
    ]
    for call in calls:
        ready.add(call)
    assert [(call.request.rank, call.node) for call in ready] == [(0, DRAFT), (0, VOTE), (0, LAST), (1, DRAFT)]
    ready.remove(calls[2])
    ready.drop(calls[0].request)
    assert len(ready) == 2


def test_estimates_follow_what_servers_count() -> None:
    estimator = TokenEstimator()
    assert estimator.estimate(0, 0, "x" * 400) == 100 and estimator.estimate(0, 0, "") == 1
    for _ in range(50):
        estimator.learn(0, 0, "x" * 400, 400)  # one token a character
    assert 390 <= estimator.estimate(0, 0, "x" * 400) <= 400
    assert estimator.estimate(0, 1, "x" * 400) == 100, "other stages have prompts of their own"


def test_arrivals_of_a_closed_loop_match_the_simulator(tmp_path: Path) -> None:
    """Same users, same think times; here the times of completion are given by hand."""
    scenario = make_scenario(tmp_path, requests=5)
    arrivals = replace(scenario.workload.arrivals, kind="closed", rate_rps=None, users=2, think_s=1.0)
    tape = draw_live_tape(replace(scenario, workload=replace(scenario.workload, arrivals=arrivals)), [12], 0)
    assert tape.think_s is not None
    queue = ArrivalQueue(tape)
    assert len(queue) == 2
    times = [queue.pop() for _ in range(2)]
    assert times == [(t, i) for i, t in enumerate(sorted(tape.think_s[:, 0]))] and queue.next_s == math.inf
    queue.finished(1, 10.0)
    assert queue.pop() == (10.0 + tape.think_s[1, 1], 3)
    queue.finished(3, 20.0)
    assert len(queue) == 0  # 5 requests: user 1 has no third


def test_what_a_view_says_of_servers(tmp_path: Path, runtime: WorkflowRuntime) -> None:
    compiled = compile_scenario(make_scenario(tmp_path))
    call = LiveCall(request(runtime), DRAFT, "", 10, 0.0)
    sent = {t: Sent(call, 0, 0, 0.0, 0) for t in range(10)}

    def look(metrics: ServerMetrics, in_flight: int, started: int) -> tuple[int, ...]:
        states = (RouteState(True, "", metrics, 0.0, in_flight), RouteState(False))
        row, other = view_routes(compiled, states, sent, lambda ticket: ticket < started)
        assert other["up"] == 0 and other["running"] == 0
        return tuple(int(row[name]) for name in ("running", "waiting", "waiting_tokens"))

    # Ten of ours, eight seats; the server's own numbers are from before we sent them.
    assert look(ServerMetrics(), 0, 8) == (8, 2, 20)
    assert look(ServerMetrics(running=0, waiting=0), 0, 3) == (8, 2, 20)
    # Three of other clients were there beside two of ours.
    assert look(ServerMetrics(running=5, waiting=0), 2, 8) == (8, 5, 20)
    # It has no blocks left: more wait than seats alone would say.
    assert look(ServerMetrics(running=4, waiting=6), 10, 4) == (4, 6, 60)
    blocks = ServerMetrics(kv_blocks=129, block_size=128, kv_usage=0.5)
    row = view_routes(compiled, (RouteState(True, "", blocks), RouteState(True)), {}, lambda ticket: True)[0]
    assert (row["kv_blocks"], row["kv_blocks_used"]) == (1024, 512), "in blocks of 16 tokens"


def test_where_calls_may_go(tmp_path: Path, runtime: WorkflowRuntime) -> None:
    compiled = compile_scenario(make_scenario(tmp_path, copies=2))
    routing, call = Routing(compiled), LiveCall(request(runtime), DRAFT, "", 1, 0.0)
    up = [RouteState(up=True)] * 4
    assert routing.permitted(up, call) == [0, 1, 2, 3]
    call.excluded = {0, 2}
    assert routing.permitted(up, call) == [1, 3]
    assert routing.permitted([RouteState(up=r in (0, 2)) for r in range(4)], call) == [0, 2], "the last resort"
    call.refused = {0}
    assert routing.permitted(up, call) == [3] and routing.candidates(call) == [2, 3]
    call.refused = {0, 1}
    assert routing.candidates(call) == [] and np.all(compiled.workflow.allowed[0, DRAFT])
