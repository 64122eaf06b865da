"""Per-workflow, per-input, "+" and "++" on the toy, where the right choice is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from toy_outcomes import L, M, S, backend, ready, served, table_with

from aragog_env.errors import SpecError
from aragog_env.policy import Dispatch, Wait
from aragog_env.registry import make_policy
from aragog_env.specs.graph import unroll
from aragog_env.specs.load import load_scenario, load_workflow
from baselines.configurations import Configurations
from baselines.forecast import WorkflowForecast
from baselines.per_input import PerInputPolicy
from baselines.per_workflow import profiled_accuracy

ALL_SMALL = {q: [(S, S)] for q in range(16)}


def test_per_input_takes_the_cheapest_viable_configuration_of_each_request() -> None:
    viable = {0: [(S, S), (M, M)], 1: [(M, M), (S, L)], 2: []}
    # (M, M) has 2 x 1.1 billion parameters, (S, L) 8.2.
    models, _ = served("per_input:oracle", viable, [0.0, 500.0, 1000.0])
    assert models == [(S, S), (M, M), (L, L)]


def test_per_workflow_takes_the_cheapest_that_matches_on_average() -> None:
    # (M, M) is right for all queries, (S, S) for 15 of 16.
    viable = {q: [(M, M), (S, S)] for q in range(15)} | {15: [(M, M)]}
    models, _ = served("per_workflow:oracle", viable, [0.0, 500.0])
    assert models == [(M, M), (M, M)]
    models, _ = served("per_workflow:oracle,tolerance=0.06", viable, [0.0, 500.0])
    assert models == [(S, S), (S, S)]  # 0.9 / 16 = 0.056 below
    models, _ = served("per_workflow:oracle,same=draft+revise", {q: [(S, M)] for q in range(16)}, [0.0])
    assert models == [(L, L)]


def test_per_workflow_without_an_oracle_goes_by_one_run_on_half_of_the_queries() -> None:
    sim = backend(1)
    table = table_with(sim, ALL_SMALL)
    measured = profiled_accuracy(table)
    assert measured.shape == (9,) and set((measured * 8).tolist()) <= set(range(9))
    # One uniform number per query decides all its configurations, so that equal ones get equal marks.
    assert measured[0] == measured[-1] > 0 and measured[1] == 0
    models, _ = served("per_workflow", ALL_SMALL, [0.0])
    assert models == [(S, S)]
    with pytest.raises(SpecError, match="tolerance"):
        make_policy("per_workflow:tolerance=2")
    with pytest.raises(SpecError, match="receive_outcomes"):
        make_policy("per_workflow:oracle").reset(sim.scenario, 0)


class SlowRouter:
    """An oracle whose routing takes 25 ms."""

    def __init__(self, sets: Any) -> None:
        self.sets, self.name = sets, "slow"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sets, name)

    def routing_s(self, workflow: int, query: int) -> float:
        return 0.025


def test_routing_delays_a_request_only_when_charged() -> None:
    for charge, expected in ((True, [45.0, 45.0]), (False, [20.0, 20.0])):
        policy = PerInputPolicy("oracle", charge_routing=charge)
        policy.sets = SlowRouter(policy.sets)
        _, log = served(policy, ALL_SMALL, [0.0, 100.0])
        jct_ms = (log.requests["finish_s"] - log.requests["arrival_s"]) * 1e3
        assert jct_ms == pytest.approx(expected, abs=1e-6)


def test_calls_wait_in_the_queue_not_at_the_server_and_others_pass_them() -> None:
    """toy-s takes 8: of 9 small requests and one medium one behind them, the ninth waits and the tenth does not."""
    viable = {**{q: [(S, S)] for q in range(9)}, 9: [(M, M)]}
    _, log = served("per_input:oracle", viable, [0.0] * 10)
    calls = log.calls
    first = calls[calls["node"] == 0]
    sent_ms = {int(r): round(float(t) * 1e3, 6) for r, t in zip(first["request"], first["dispatch_s"], strict=True)}
    assert [sent_ms[r] for r in range(10)] == [0.0] * 8 + [20.0, 0.0]
    # At 10 ms the second stages of the first eight go before the ninth's first stage, which is older in the queue's order
    # of readiness but belongs to a younger request.
    _, log = served("per_input:oracle,hold=false", viable, [0.0] * 10)
    assert (log.calls["dispatch_s"] == log.calls["ready_s"]).all()


def test_per_input_plus_chooses_by_load_at_arrival_and_keeps_to_it() -> None:
    """Small is twice as fast as medium, so it is chosen until as many calls wait for it as it runs at once."""
    viable = {q: [(S, S), (M, M)] for q in range(16)}
    models, _ = served("per_input_plus:oracle", viable, [0.0] * 20)
    assert models[:12] == [(S, S)] * 12
    assert models[18:] == [(M, M)] * 2
    assert set(models) == {(S, S), (M, M)}


def test_per_input_plus_plus_chooses_again_at_the_second_stage() -> None:
    """(M, S) and (M, M) agree after the first stage. What decides the second is the load then, not at arrival."""
    viable = {0: [(M, S), (M, M)], **{q: [(S, S)] for q in range(1, 16)}}
    burst = [0.0] + [15.0] * 25  # fills toy-s, and its queue, before request 0 needs it at 20 ms
    bound, _ = served("per_input_plus:oracle", viable, burst)
    late, _ = served("per_input_plus_plus:oracle", viable, burst)
    assert bound[0] == (M, S) and late[0] == (M, M)


def test_parallel_calls_are_bound_together() -> None:
    """Voters chosen one by one could end in a combination that is not viable; bound together they cannot."""
    from aragog_env.backends.sim import SimBackend
    from aragog_env.harness.rollout import run_episode
    from aragog_env.specs.override import override

    scenario = override(load_scenario("aragog-voting_mmlu_pro-qwen"), requests=80, rate_rps=40.0, warmup_requests=0)
    sim = SimBackend(scenario)
    for name in ("per_input_plus_plus:oracle", "per_input_plus:oracle", "viable_random:oracle"):
        requests = run_episode(make_policy(name), name, sim, 0).requests
        largest_right = sim.draws[0][requests["query"]] < requests["p_largest"]
        assert (requests["correct"].astype(bool) | ~largest_right).all()
        assert len(set(requests["configuration"].tolist())) > 5


def test_the_forecast_follows_the_longest_path() -> None:
    """A tool and what was sent take no time; parallel calls count once, by the slowest."""
    graph = unroll(load_workflow("voting_mmlu_pro"))
    voters, last = [k for k, n in enumerate(graph.nodes) if n.children], len(graph.nodes) - 1
    from aragog_env.backends.sim import SimBackend

    sim = SimBackend(load_scenario("aragog-voting_mmlu_pro-qwen"))
    configurations = Configurations(graph, 3, np.ones(243, bool), 242)
    forecast = WorkflowForecast(sim.compiled.info, 0, graph, configurations)
    call_s = np.tile([1.0, 2.0, 4.0], (len(graph.nodes), 1))
    nothing = np.full(len(graph.nodes), -1, np.int32)
    latency_s = forecast.workflow_latency_s(call_s, nothing)
    assert latency_s[0] == 2.0 and latency_s[-1] == 8.0
    one_large_voter = int(
        (configurations.digits @ sim.compiled.info.radix[0])[(configurations.digits == [2, 0, 0, 0, 1]).all(axis=1)][0]
    )
    assert latency_s[one_large_voter] == 4.0 + 2.0
    served_by = nothing.copy()
    served_by[voters] = 2
    assert forecast.workflow_latency_s(call_s, served_by)[-1] == 4.0
    sim.reset(0)
    view = sim.view()
    idle = forecast.call_latency_s(view, 0, np.zeros(3, np.int64), np.zeros(3, np.int64))
    busy = forecast.call_latency_s(view, 0, np.array([2000, 0, 0]), np.array([400_000, 0, 0]))
    assert idle.shape == (len(graph.nodes), 3) and np.isfinite(idle).all()
    assert (busy[:, 0] > 2 * idle[:, 0]).all() and (busy[:, 1:] == idle[:, 1:]).all()
    assert last == len(graph.nodes) - 1 and math.isfinite(idle[last, 0])


def test_memory_does_not_grow_with_the_episode() -> None:
    sim = backend(1500)
    policy = ready("per_input:oracle", sim, table_with(sim, ALL_SMALL), [30.0 * k for k in range(1500)])
    while not sim.done:
        sim.step(policy.act(sim.view()))
    assert len(policy.request) == 1024  # type: ignore[attr-defined]
    # 1500 at once lie too far apart for that.
    sim = backend(1500)
    policy = ready(
        "per_input_plus:oracle", sim, table_with(sim, {q: [(S, S), (M, M)] for q in range(16)}), [0.0] * 1500
    )
    first = policy.act(sim.view())
    assert first == Dispatch(0, S) and len(policy.request) == 2048  # type: ignore[attr-defined]
    assert not isinstance(first, Wait)


def test_a_lost_server_is_replaced_by_any_candidate() -> None:
    sim = backend(1)
    policy = ready("per_input:oracle", sim, table_with(sim, ALL_SMALL), [0.0])
    view = sim.view()
    view.routes["up"][S] = 0
    view.allowed[:, S] = False
    action = policy.act(view)
    assert isinstance(action, Dispatch) and action.route in (M, L)
