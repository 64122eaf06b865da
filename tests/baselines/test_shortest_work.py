"""The rule `shortest_work`: it looks at the whole rest of a request, and lets those go first that are nearly done."""

from __future__ import annotations

import numpy as np
import pytest
from toy_outcomes import L, M, S, backend, ready, served, table_with

from aragog_env.backends.sim import SimBackend
from aragog_env.harness.rollout import run_episode
from aragog_env.policy import Dispatch, Wait
from aragog_env.registry import make_policy
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override


def test_a_fast_first_call_is_not_worth_a_slow_second_one() -> None:
    """Small then large take 50 ms, medium twice 40 ms; the least loaded server would be small."""
    viable = {q: [(S, L), (M, M)] for q in range(16)}
    models, _ = served("shortest_work:oracle", viable, [0.0, 100.0, 200.0])
    assert models == [(M, M)] * 3
    assert served("viable_shortest_queue:oracle", viable, [0.0])[0] == [(S, L)]


def test_a_second_call_goes_before_a_first_one() -> None:
    """Eight requests fill the small server and eight the large one; a latecomer waits when the first come back."""
    sim = backend(17)
    viable = {q: [(S, S)] for q in range(16)}
    policy = ready("shortest_work:oracle", sim, table_with(sim, viable), [0.0] * 16 + [5.0])
    for _ in range(16):
        sim.step(policy.act(sim.view()))
    assert sim.view().now_s == pytest.approx(0.005)
    action = policy.act(sim.view())
    assert isinstance(action, Wait)
    sim.step(action)
    view, done = sim.view(), sim.view().calls["nodes_done"]
    action = policy.act(view)
    assert view.now_s == pytest.approx(0.01, abs=0.002) and sorted(set(done.tolist())) == [0, 1]
    assert isinstance(action, Dispatch) and done[action.call] == 1 and view.routes["model"][action.route] == S


def test_it_needs_no_free_server_to_wait_and_serves_all() -> None:
    scenario = override(load_scenario("default"), requests=40, warmup_requests=0, rate_rps=100.0)
    log = run_episode(make_policy("shortest_work:oracle"), "shortest_work:oracle", SimBackend(scenario), 2)
    assert np.isfinite(log.requests["finish_s"]).all() and log.notes["saw_outcomes"]
