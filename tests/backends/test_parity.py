"""The compiled simulator against the reference backend: every view and the whole log, without tolerance."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aragog_env.backends.reference import ReferenceBackend
from aragog_env.backends.sim import SimBackend
from aragog_env.engine.config import EngineRequest
from aragog_env.engine.reference import run_reference
from aragog_env.episode import EpisodeLog
from aragog_env.latency.compiled import PS_PER_S
from aragog_env.policy import WAIT, Dispatch, Wait
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from aragog_env.specs.workflow import FanOutSpec, LengthSpec, SkipSpec, WorkflowSpec
from aragog_env.specs.workload import ArrivalSpec
from aragog_env.view import DispatchView

from .scenarios import LARGE, llm, random_scenarios, replica, scenario, tool, workflow

Chooser = Callable[[DispatchView, random.Random], Dispatch | Wait]


def anywhere(view: DispatchView, rng: random.Random) -> Dispatch | Wait:
    """Send any ready call to any route that may serve it, with any priority."""
    call = rng.randrange(len(view.calls))
    return Dispatch(call, rng.choice(np.flatnonzero(view.allowed[call]).tolist()), rng.randrange(3))


def hesitant(view: DispatchView, rng: random.Random) -> Dispatch | Wait:
    """Do the same, but wait at a third of the decisions."""
    return WAIT if rng.random() < 0.35 else anywhere(view, rng)


def patient(view: DispatchView, rng: random.Random) -> Dispatch | Wait:
    """Wait a stated time at most, at a third of the decisions."""
    return Wait(view.now_s + 10 ** rng.uniform(-4, 0)) if rng.random() < 0.35 else anywhere(view, rng)


def crowding(view: DispatchView, rng: random.Random) -> Dispatch | Wait:
    """Send the last ready call to its first route, so that all the load is in one place."""
    call = len(view.calls) - 1
    return Dispatch(call, int(np.argmax(view.allowed[call])), rng.randrange(2))


def spreading(view: DispatchView, rng: random.Random) -> Dispatch | Wait:
    """Send the oldest ready call to the route with the fewest calls."""
    held = view.routes["running"] + view.routes["waiting"] + np.where(view.allowed[0], 0, 10**6)
    return Dispatch(0, int(np.argmin(held)))


CHOOSERS = {f.__name__: f for f in (anywhere, hesitant, patient, crowding, spreading)}


def same_views(ours: DispatchView, truth: DispatchView) -> None:
    assert ours.now_s == truth.now_s
    assert ours.in_flight == truth.in_flight
    for name in ("calls", "routes"):
        mine, theirs = getattr(ours, name), getattr(truth, name)
        assert mine.dtype == theirs.dtype and len(mine) == len(theirs)
        for column in mine.dtype.names:
            assert mine[column].tolist() == theirs[column].tolist(), f"{name}.{column} at {truth.now_s} s"
    assert ours.allowed.tolist() == truth.allowed.tolist()
    assert ours.served_by.tolist() == truth.served_by.tolist()


def same_logs(ours: EpisodeLog, truth: EpisodeLog) -> None:
    for f in fields(EpisodeLog):
        mine, theirs = getattr(ours, f.name), getattr(truth, f.name)
        if not isinstance(mine, np.ndarray):
            assert mine == theirs, f.name
        elif mine.dtype.names:
            assert mine.dtype == theirs.dtype and len(mine) == len(theirs), f.name
            for column in mine.dtype.names:
                np.testing.assert_array_equal(mine[column], theirs[column], f"{f.name}.{column}")
        else:
            np.testing.assert_array_equal(mine, theirs, f.name)


def play(made: Scenario, choose: Chooser, seed: int = 0, *, log_every: int = 7) -> EpisodeLog:
    """Run an episode on both backends, hold them against each other at every decision, return the log."""
    return play_on(SimBackend(made), ReferenceBackend(made), choose, seed, log_every)


def play_on(ours: SimBackend, truth: ReferenceBackend, choose: Chooser, seed: int, log_every: int = 7) -> EpisodeLog:
    rng = random.Random(seed)
    ours.reset(seed)
    truth.reset(seed)
    decisions = 0
    while not truth.done:
        assert not ours.done
        view = truth.view()
        same_views(ours.view(), view)
        if decisions % log_every == log_every - 1:
            same_logs(ours.log(), truth.log())
        step(ours, truth, choose(view, rng), anywhere(view, rng))
        decisions += 1
    assert (ours.done, ours.truncated, ours.now_s) == (True, truth.truncated, truth.now_s)
    log = truth.log()
    same_logs(ours.log(), log)
    return log


def step(ours: SimBackend, truth: ReferenceBackend, action: Dispatch | Wait, otherwise: Dispatch | Wait) -> None:
    """Carry out `action` on both; where both refuse it (a wait that would never end), do `otherwise`."""
    try:
        truth.step(action)
    except ValueError:
        with pytest.raises(ValueError, match="waiting would never end"):
            ours.step(action)
        step(ours, truth, otherwise, otherwise)
    else:
        ours.step(action)


def play_all(made: Scenario, seed: int = 0) -> list[EpisodeLog]:
    """Run an episode with every chooser."""
    return [play(made, choose, seed) for choose in CHOOSERS.values()]


def calls_of(logs: list[EpisodeLog]) -> NDArray[np.void]:
    return np.concatenate([log.calls for log in logs])


CHAIN = workflow(llm("draft"), llm("revise", "draft", template="b"))
BUSY = ArrivalSpec(rate_rps=400.0)


def test_toy_preset() -> None:
    logs = play_all(load_scenario("toy"))
    assert all(len(log.requests) == 40 and not log.truncated for log in logs)


def test_default_preset() -> None:
    log = play(override(load_scenario("default"), requests=10, warmup_requests=0), anywhere, 3)
    assert {int(w) for w in log.requests["workflow"]} == set(range(5)) or len(log.requests) == 10
    assert (log.calls["cached_tokens"] > 0).any()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("prefix", [False, True], ids=["no-cache", "cache"])
def test_memory_pressure(prefix: bool, asynchronous: bool) -> None:
    limits = {"enable_prefix_caching": prefix, "async_scheduling": asynchronous}
    made = scenario(
        workflow(llm("long", tokens=60, most=120, template_tokens=40), queries=6),
        [replica("one", num_gpu_blocks=26, max_model_len=256, **limits)],
        requests=20,
        arrivals=BUSY,
    )
    calls = calls_of(play_all(made))
    assert calls["preemptions"].sum() >= 5
    assert (calls["cached_tokens"] > 0).any() == prefix


def test_prefix_cache_with_eviction() -> None:
    """Three stages whose prompts extend each other, few queries, and a cache that cannot hold them all."""
    chain = workflow(
        llm("a", tokens=30),
        llm("b", "a", tokens=30),
        llm("c", "b", tokens=20, context=("a", "b")),
        queries=5,
    )

    def cached_tokens(blocks: int) -> int:
        made = scenario(chain, [replica("one", num_gpu_blocks=blocks)], requests=24, arrivals=BUSY)
        return int(calls_of(play_all(made))["cached_tokens"].sum())

    assert 1000 < cached_tokens(36) < 0.9 * cached_tokens(400)


def test_prompts_keep_the_order_of_their_contexts() -> None:
    """What a stage reads stands in its prompt in one order, which decides what two stages share."""
    judged = workflow(
        llm("a", tokens=30, sigma=0.0),
        llm("b", tokens=30, sigma=0.0),
        llm("one", "a", "b", context=("a", "b")),
        llm("two", "one", context=("b", "a")),
        queries=3,
    )
    play_all(scenario(judged, [replica("one"), replica("two")], requests=8))


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("prefix", [False, True], ids=["no-cache", "cache"])
def test_priority_scheduling(prefix: bool, asynchronous: bool) -> None:
    limits = {
        "scheduling_policy": "priority",
        "enable_prefix_caching": prefix,
        "async_scheduling": asynchronous,
    }
    made = scenario(
        workflow(llm("draft", tokens=40, most=80), llm("revise", "draft"), queries=6),
        [replica("one", num_gpu_blocks=22, max_model_len=256, **limits), replica("two", LARGE, **limits)],
        requests=20,
        arrivals=BUSY,
    )
    assert calls_of(play_all(made))["preemptions"].sum() >= 5


@pytest.mark.parametrize("think_s", [0.0, 0.03])
def test_closed_loop(think_s: float) -> None:
    arrivals = ArrivalSpec(kind="closed", users=3, think_s=think_s)
    made = scenario(CHAIN, [replica("one"), replica("two", LARGE)], requests=14, arrivals=arrivals)
    for log in play_all(made):
        finishes = np.sort(log.requests["finish_s"])
        assert (log.requests["arrival_s"][3:] >= finishes[: len(finishes) - 3]).all()


def branching() -> WorkflowSpec:
    """Tools at the root and between calls, copies, and skips, one of them on a call that may be skipped."""
    skip = {0.187: 0.4, 8.047: 0.7}
    return workflow(
        tool("search", median_s=0.004),
        llm("plan", "search"),
        llm("solve", "plan", fan_out=FanOutSpec((0.3, 0.3, 0.4))),
        tool("run", "solve", skip=SkipSpec("plan", skip)),
        llm("judge", "run", context=("plan", "solve"), skip=SkipSpec("plan", skip)),
        llm("repair", "judge", skip=SkipSpec("judge", skip)),
        queries=10,
        name="branching",
    )


def test_tools_skips_and_copies() -> None:
    logs = play_all(scenario(branching(), [replica("one"), replica("two", LARGE)], requests=16))
    nodes = [np.bincount(log.calls["node"], minlength=8) for log in logs]
    counts = np.sum(nodes, axis=0)
    whole = 16 * len(CHOOSERS)
    assert counts[1] == counts[2] == whole  # plan and the first copy are never skipped
    assert 0 < counts[4] < counts[3] < whole
    assert 0 < counts[6] < whole and 0 < counts[7] < whole


def test_tools_that_take_no_time_end_before_the_policy_is_asked() -> None:
    instant = workflow(tool("now", median_s=0.0, sigma=0.0), llm("side"), llm("main", "now"), llm("end", "main"))
    made = scenario(instant, [replica("one")], requests=6)
    backend = ReferenceBackend(made)
    backend.reset(0)
    assert backend.view().calls["node"].tolist() == [2, 1]  # main is ready with the arrival
    play_all(made)


@pytest.mark.parametrize("duration_s", [0.01, 0.1, 0.25])
def test_horizon(duration_s: float) -> None:
    """The cut falls into iterations, into stretches of them, and between arrivals."""
    made = scenario(CHAIN, [replica("one"), replica("two", LARGE)], requests=40, duration_s=duration_s, arrivals=BUSY)
    for log in play_all(made):
        assert log.truncated and log.duration_s == duration_s
        assert np.isnan(log.requests["finish_s"]).any()


def test_different_replicas() -> None:
    made = scenario(
        [CHAIN, branching()],
        [
            replica("small", count=2, max_num_seqs=2, enable_prefix_caching=False),
            replica("large", LARGE, scheduling_policy="priority", num_gpu_blocks=40),
            replica("slow", LARGE, max_num_batched_tokens=24, latency="linear:overhead_ms=9.1"),
            replica("ahead", async_scheduling=True, num_gpu_blocks=45),
        ],
        requests=20,
        arrivals=BUSY,
    )
    for log in play_all(made):
        assert (log.iterations > 0).any()


@pytest.mark.parametrize(("seqs", "budget"), [(1, 512), (1, 1), (2, 7), (3, 33), (8, 8)])
def test_few_places_and_small_budgets(seqs: int, budget: int) -> None:
    limits = {"max_num_seqs": seqs, "max_num_batched_tokens": budget}
    play_all(scenario(CHAIN, [replica("one", **limits), replica("two", LARGE, **limits)], arrivals=BUSY))


def test_equal_latencies_make_events_coincide() -> None:
    """Round numbers: iterations of several replicas, tools and users come to an end at the same instants."""
    chain = workflow(
        tool("t", median_s=0.01, sigma=0.0),
        llm("a", "t", sigma=0.0),
        tool("u", "a", median_s=0.005, sigma=0.0),
        llm("b", "u", sigma=0.0),
    )
    replicas = [replica("r", count=3, latency="linear:overhead_ms=5", max_num_seqs=2)]
    arrivals = ArrivalSpec(kind="closed", users=6, think_s=0.0)
    play_all(scenario(chain, replicas, requests=30, arrivals=arrivals))


def test_backends_can_be_used_again() -> None:
    made = scenario(branching(), [replica("one", num_gpu_blocks=36), replica("two", LARGE)], requests=10)
    ours, truth = SimBackend(made), ReferenceBackend(made)
    first = play_on(ours, truth, anywhere, 1)
    play_on(ours, truth, crowding, 2)
    same_logs(play_on(ours, truth, anywhere, 1), first)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(random_scenarios(), st.sampled_from(sorted(CHOOSERS)), st.integers(0, 3))
def test_random_scenarios(made: Scenario, chooser: str, seed: int) -> None:
    play(made, CHOOSERS[chooser], seed)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_one_server_of_the_reference_backend_is_the_reference_engine(asynchronous: bool, policy: str) -> None:
    """One call per request, sent on arrival: the backend adds nothing to the engine."""
    server = replica(
        "one",
        num_gpu_blocks=24,
        max_model_len=256,
        scheduling_policy=policy,
        async_scheduling=asynchronous,
        enable_prefix_caching=False,
    )
    made = scenario(workflow(llm("a", tokens=60, most=120)), [server], requests=20, arrivals=BUSY)
    backend = ReferenceBackend(made)
    backend.reset(4)
    while not backend.done:
        backend.step(Dispatch(0, 0))
    log = backend.log()
    requests = [
        EngineRequest(
            request_id=i,
            arrival_ps=round(call["dispatch_s"] * PS_PER_S),
            prompt=((2 * i, int(call["prompt_tokens"])),),
            output_tokens=int(call["output_tokens"]),
            output_content_id=2 * i + 1,
        )
        for i, call in enumerate(log.calls)
    ]
    (config,), (table,) = backend.compiled.engines, backend.compiled.latencies
    assert config.async_scheduling == asynchronous
    run = run_reference(config, table.compile(config.max_num_seqs, config.max_num_batched_tokens), requests)
    for call, times in zip(log.calls, run.calls, strict=True):
        assert call["start_s"] == times.start_ps / PS_PER_S
        assert call["first_token_s"] == times.first_token_ps / PS_PER_S
        assert call["finish_s"] == times.finish_ps / PS_PER_S
        assert call["preemptions"] == times.preemptions
    assert log.iterations.tolist() == [run.iterations]
    assert log.calls["preemptions"].sum() > 0


def test_standalone_latency_is_that_of_one_request_on_an_empty_cluster() -> None:
    single = scenario(
        workflow(llm("a", tokens=30), query_tokens=LengthSpec(median=200, maximum=200)),
        [
            replica("fast", enable_prefix_caching=False, max_num_batched_tokens=64),
            replica("slow", LARGE, latency="linear:overhead_ms=7"),
        ],
        requests=1,
    )
    logs = [play(single, lambda view, _, route=route: Dispatch(0, route)) for route in (0, 1)]
    latencies = [log.requests["finish_s"][0] - log.requests["arrival_s"][0] for log in logs]
    assert min(latencies) == pytest.approx(logs[0].requests["standalone_s"][0], abs=1e-9)
    chain = scenario(branching(), [replica("one", enable_prefix_caching=False, max_num_seqs=1)], requests=1)
    log = play(chain, crowding)
    assert log.requests["standalone_s"][0] <= log.requests["finish_s"][0] - log.requests["arrival_s"][0] + 1e-9


def test_both_refuse_the_same_actions() -> None:
    only_large = workflow(llm("a", candidates=(LARGE,)))
    made = scenario(only_large, [replica("one"), replica("two", LARGE)], requests=1)
    for backend in (SimBackend(made), ReferenceBackend(made)):
        backend.reset(0)
        with pytest.raises(ValueError, match="call 1 is not ready"):
            backend.step(Dispatch(1, 1))
        with pytest.raises(ValueError, match="route 2 does not exist"):
            backend.step(Dispatch(0, 2))
        with pytest.raises(ValueError, match="does not serve a candidate model"):
            backend.step(Dispatch(0, 0))
        with pytest.raises(ValueError, match="waiting would never end"):
            backend.step(WAIT)
        backend.step(Dispatch(0, 1))
        with pytest.raises(ValueError, match="the episode is over"):
            backend.step(Dispatch(0, 1))
