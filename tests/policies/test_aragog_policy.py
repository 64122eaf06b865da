"""Aragog's policy: one request by hand from viable set to last stage, the queue's order, and what must hold in any episode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aragog_env.backends.sim import SimBackend
from aragog_env.episode import EpisodeLog
from aragog_env.errors import SpecError
from aragog_env.harness.rollout import run_episode
from aragog_env.outcomes import OutcomeTable, configuration_digits
from aragog_env.specs.cluster import ClusterSpec, ReplicaSpec
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import HorizonSpec, Scenario
from aragog_env.specs.workload import ArrivalSpec, MixEntry, WorkloadSpec
from aragog_env.view import ClusterInfo
from aragog_env.workload.tape import Tape
from policies.aragog.policy import AragogPolicy
from policies.aragog.queue import MovingAverage
from policies.viability import OracleViableSets

S, M, L = 0, 1, 2


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep profiles out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class ByHand:
    """Viable sets written down: query -> configurations."""

    name = "by hand"

    def __init__(self, sets: dict[int, list[int]], configurations: int = 9, routing_s: float = 0.0) -> None:
        self.sets, self.configurations, self.seconds = sets, configurations, routing_s
        self.budgets: list[float] = []

    def receive_outcomes(self, tables: tuple[OutcomeTable, ...]) -> None: ...

    def reset(self, scenario: Scenario) -> None: ...

    def viable(self, info: ClusterInfo, workflow: int, query: int, budget_s: float = math.inf) -> NDArray[np.bool_]:
        self.budgets.append(budget_s)
        return np.isin(np.arange(self.configurations), self.sets[query])

    def routing_s(self, workflow: int, query: int) -> float:
        return self.seconds


def episode(
    policy: AragogPolicy, scenario: Scenario, arrivals_ms: list[float], workflows: list[int] | None = None
) -> EpisodeLog:
    """Run requests that arrive at given times; request i asks query i."""
    n = len(arrivals_ms)
    backend = SimBackend(override(scenario, requests=n, warmup_requests=0))
    mix = np.array(workflows or [0] * n, np.int32)
    backend.simulation.load(0, Tape(np.array(arrivals_ms) / 1e3, mix, np.arange(n, dtype=np.int32), np.full(n, 0.5)))
    policy.reset(backend.scenario, 0)
    while not backend.done:
        backend.step(policy.act(backend.view()))
    return backend.log()


def models_of(log: EpisodeLog) -> list[list[int]]:
    """Return the models of each request's calls, in node order."""
    return [log.calls["model"][log.calls["request"] == i].tolist() for i in range(len(log.requests))]


def jct_ms(log: EpisodeLog) -> list[float]:
    times: list[float] = ((log.requests["finish_s"] - log.requests["arrival_s"]) * 1e3).round(6).tolist()
    return times


def by_hand(sets: dict[int, list[int]], *, routing_s: float = 0.0, **arguments: Any) -> AragogPolicy:
    policy = AragogPolicy("oracle", **arguments)
    policy.sets = ByHand(sets, routing_s=routing_s)
    return policy


def test_one_request_from_its_viable_set_to_its_last_stage() -> None:
    """Draft, then revise; configuration 3 a + b. Viable: (s,l) = 2, (m,s) = 3, (l,l) = 8.

    Router: {2, 3, 8}. Draft: s, m and l are possible and idle; one call more gains 100, 50 and 25 calls/s (10, 20 and 40 ms
    per call), so the beam sends it to s. Narrowing: only 2 = (s,l) is left, a third. Revise: l is the only model, though
    it gains least. Answer after 10 + 40 ms.
    """
    policy = by_hand({0: [2, 3, 8]})
    policy.record = []
    log = episode(policy, load_scenario("toy"), [0.0])
    assert models_of(log) == [[S, L]] and jct_ms(log) == [50.0]
    draft, revise = policy.record
    assert draft.remaining.tolist() == [[1 << 2 | 1 << 3 | 1 << 8]]
    assert draft.gain_rps[:, 0] == pytest.approx([100.0, 50.0, 25.0])
    assert draft.free.tolist() == revise.free.tolist() == [8, 8, 8]
    assert revise.remaining.tolist() == [[1 << 2]]


def test_two_requests_are_placed_together_and_narrowed_apart() -> None:
    """The second may use (m,s) and (l,l) only: draft on m (50 > 25), then s. Together they take s and m, then l and s."""
    policy = by_hand({0: [2, 3, 8], 1: [3, 8]})
    log = episode(policy, load_scenario("toy"), [0.0, 0.0])
    assert models_of(log) == [[S, L], [M, S]] and jct_ms(log) == [50.0, 30.0]


def test_calls_beyond_saturation_wait_in_the_queue_and_go_elsewhere_if_they_may() -> None:
    """s is saturated at 8. Ten requests may be all-s; the ninth may also be all-m, and in one case all may be all-l."""
    sets = {i: [0, 8] if i != 8 else [0, 4, 8] for i in range(10)}
    narrow = {i: [0] if i != 8 else [0, 4] for i in range(10)}
    spill = episode(by_hand(sets), load_scenario("toy"), [0.0] * 10)
    assert models_of(spill) == [[S, S]] * 8 + [[M, M], [L, L]]
    wait = episode(by_hand(narrow), load_scenario("toy"), [0.0] * 10)
    assert models_of(wait) == [[S, S]] * 8 + [[M, M], [S, S]]
    # The tenth gets a slot of s only when older requests need it no more: their second calls come first, at 10 ms.
    assert jct_ms(wait) == [20.0] * 8 + [40.0, 40.0]


def test_a_request_keeps_its_place_across_stages() -> None:
    """One slot. The second request waits for both calls of the first, whose second call is older in the queue."""
    scenario = one_slot(["toy_chain"])
    policy = by_hand({0: [0], 1: [0]}, saturation=1.0)
    policy.sets = ByHand({0: [0], 1: [0]}, configurations=1)
    log = episode(policy, scenario, [0.0, 1.0])
    assert log.calls["request"].tolist() == [0, 0, 1, 1]
    assert jct_ms(log) == [20.0, 39.0]
    policy = AragogPolicy("oracle", order="lifo")
    policy.sets = ByHand({0: [0], 1: [0]}, configurations=1)
    assert episode(policy, scenario, [0.0, 1.0]).calls["request"].tolist() == [0, 1, 1, 0]


def one_slot(mix: list[str]) -> Scenario:
    """Return a scenario with one engine that runs one call at a time, 1 ms per token."""
    replica = ReplicaSpec(
        "only", "toy-small", "h100_sxm", max_num_seqs=1, max_num_batched_tokens=2048, num_gpu_blocks=2049,
        latency="linear:overhead_ms=1",
    )  # fmt: skip
    workload = WorkloadSpec(ArrivalSpec("poisson", 1.0), tuple(MixEntry(name) for name in mix))
    return Scenario("one slot", ClusterSpec("one", (replica,)), workload, HorizonSpec(2, warmup_requests=0))


WORKFLOW = """
name: {name}
description: Parallel stages of unequal depth.
source: invented
dataset: none
queries: 4
query_tokens: {{median: 100, maximum: 100}}
accuracy_by_size_b: {{0.187: 0.5, 1.104: 0.7, 8.047: 0.9}}
stages:
"""
STAGE = """
  - name: {name}
    parents: [{parents}]
    prompt: {{template: {name}, template_tokens: 90}}
    output: {{median_by_size_b: {{1: 10}}, sigma: 0, max_tokens: 10}}
"""


def write_workflow(folder: Path, name: str, stages: dict[str, str]) -> str:
    """Write a workflow of stages -> parents; return its path."""
    text = WORKFLOW.format(name=name) + "".join(STAGE.format(name=k, parents=v) for k, v in stages.items())
    path = folder / name / "workflow.yaml"
    path.parent.mkdir()
    path.write_text(text)
    return str(path)


def test_earlier_requests_go_first_and_inside_a_request_the_deepest_stage(tmp_path: Path) -> None:
    """The paper's example: R1's A (depth 4) goes before R2's C (depth 5). R1's B (depth 2) follows A, before R2 too."""
    first = {"b": "", "b2": "b", "a": "", "a2": "a", "a3": "a2", "a4": "a3"}
    second = {"c": "", "c2": "c", "c3": "c2", "c4": "c3", "c5": "c4"}
    scenario = one_slot([write_workflow(tmp_path, "r1", first), write_workflow(tmp_path, "r2", second)])
    policy = AragogPolicy("oracle")
    policy.sets = ByHand({0: [0], 1: [0]}, configurations=1)
    log = episode(policy, scenario, [0.0, 0.0], workflows=[0, 1])
    names = [log.node_names[r][n] for r, n in zip(log.calls["request"], log.calls["node"], strict=True)]
    # With one slot everything is in order: R1 by depth (4 3 | 2 2 1 | 1), B before A3 on a tie, then R2.
    assert names[:1] == ["a"] and names.index("c") == 6 and names[6:] == ["c", "c2", "c3", "c4", "c5"]
    assert names[:6] == ["a", "a2", "b", "a3", "b2", "a4"]


def test_routing_is_charged_to_the_clock_only_when_asked() -> None:
    toy = load_scenario("toy")
    free = by_hand({0: [0]}, routing_s=0.005)
    assert jct_ms(episode(free, toy, [0.0])) == [20.0] and free.sets.budgets == [math.inf]  # type: ignore[attr-defined]
    charged = by_hand({0: [0], 1: [0]}, routing_s=0.005, charge_routing=True, least_budget_s=0.001)
    # The first is routed at 5 ms; the second, at 103 ms, waits for nobody else either.
    assert jct_ms(episode(charged, toy, [0.0, 98.0])) == [25.0, 25.0]
    # Its budget is the first one's wait, the only sample so far.
    assert charged.sets.budgets == pytest.approx([0.001, 0.005])  # type: ignore[attr-defined]


def test_routing_costs_nothing_to_a_request_that_waits_for_a_slot_anyway() -> None:
    """One slot, busy until 20 ms (until 25 ms when the first is routed for 5): the second is routed meanwhile."""
    scenario = one_slot(["toy_chain"])
    policy = AragogPolicy("oracle", charge_routing=True)
    policy.sets = ByHand({0: [0], 1: [0]}, configurations=1, routing_s=0.005)
    assert jct_ms(episode(policy, scenario, [0.0, 1.0])) == [25.0, 44.0]


def test_polling_holds_rounds_at_given_times() -> None:
    """Every 15 ms: the draft goes out at 0, is done at 10, the other at 15. A request at 16 ms is seen at 30."""
    policy = by_hand({0: [0], 1: [0]}, poll_s=0.015)
    assert jct_ms(episode(policy, load_scenario("toy"), [0.0, 16.0])) == [25.0, 14.0 + 25.0]


def served_within(policy: AragogPolicy, backend: SimBackend, log: EpisodeLog) -> int:
    """Assert that every request was served as some viable configuration says; return how many sets had a choice."""
    sets = OracleViableSets()
    sets.receive_outcomes(backend.outcomes, backend.draws)
    models, choices = len(log.models), 0
    for i, request in enumerate(log.requests):
        workflow = int(request["workflow"])
        table = backend.outcomes[workflow]
        viable = sets.viable(backend.compiled.info, workflow, int(request["query"]))
        digits = configuration_digits(models, len(table.llm_nodes))
        calls = log.calls[log.calls["request"] == i]
        for call in calls:
            viable = viable & (digits[:, table.llm_nodes.index(call["node"])] == call["model"])
        assert viable.any(), f"request {i} was served outside its viable set"
        choices += int(sets.viable(backend.compiled.info, workflow, int(request["query"])).sum() > 1)
    return choices


@pytest.fixture(scope="module")
def busy() -> SimBackend:
    """The default mix at a rate far above capacity, on engines with few slots."""
    scenario = load_scenario("default")
    cluster = scenario.cluster
    small = ClusterSpec(
        "small",
        tuple(
            ReplicaSpec(f"{r.name}-{i}", r.model, r.gpu, r.tp, max_num_seqs=6)
            for r in cluster.replicas
            for i in range(2 if r.name == "qwen-7b" else 1)
        ),
    )
    return SimBackend(
        override(Scenario("busy", small, scenario.workload), rate_rps=50.0, requests=150, warmup_requests=0)
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"beam": 1, "tie_break": False, "look_ahead": False},
        {"order": "lifo"},
        {"order": "fewest_left", "charge_routing": True},
        {"poll_s": 0.2},
    ],
    ids=str,
)
def test_no_request_is_ever_served_outside_its_viable_set(busy: SimBackend, arguments: dict[str, Any]) -> None:
    policy = AragogPolicy("oracle", **arguments)
    policy.record = []
    log = run_episode(policy, "aragog", busy, 7)
    assert not log.truncated and len(log.requests) == 150
    assert served_within(policy, busy, log) > 50
    # The queue was long, requests had parallel stages, and engines were never filled beyond saturation.
    assert max(len(r.request) for r in policy.record) > 40
    assert any((np.diff(r.request) == 0).any() for r in policy.record)
    assert (np.diff([r.free.min() for r in policy.record]) != 0).any() and min(r.free.min() for r in policy.record) == 0


def test_episodes_repeat_to_the_bit_and_leave_nothing_behind(busy: SimBackend) -> None:
    policy = AragogPolicy("oracle")
    logs = [run_episode(policy, "aragog", busy, seed) for seed in (1, 2, 1)]
    fresh = run_episode(AragogPolicy("oracle"), "aragog", busy, 1)
    assert logs[0].calls.tobytes() == logs[2].calls.tobytes() == fresh.calls.tobytes()
    assert logs[0].calls.tobytes() != logs[1].calls.tobytes()


def test_the_exhaustive_search_runs_an_episode_too() -> None:
    backend = SimBackend(load_scenario("toy"))
    log = run_episode(AragogPolicy("oracle", search="exact"), "aragog", backend, 1)
    assert not log.truncated
    served_within(AragogPolicy("oracle"), backend, log)


def test_memory_does_not_grow_with_the_number_of_requests() -> None:
    backend = SimBackend(override(load_scenario("toy"), requests=3000, rate_rps=50.0))
    policy = AragogPolicy("oracle")
    run_episode(policy, "aragog", backend, 0)
    assert policy.queue._bits.shape == (1024, 1)


def test_many_requests_in_flight_get_more_room_and_lose_nothing() -> None:
    backend = SimBackend(override(load_scenario("toy"), requests=600, rate_rps=1e5))
    policy = AragogPolicy("oracle")
    log = run_episode(policy, "aragog", backend, 0)
    assert len(policy.queue._bits) >= 8 * 512 and served_within(policy, backend, log) > 0


def test_an_average_follows_its_samples() -> None:
    average = MovingAverage(0.25)
    assert math.isnan(average.value)
    for sample in (8.0, 4.0, 4.0):
        average.add(sample)
    assert average.value == 8.0 * 0.75**2 + 4.0 * (1 - 0.75**2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beam": 0}, "beam must be at least 1"),
        ({"search": "exacto"}, "Did you mean 'exact'"),
        ({"viable": "oraclee"}, "Did you mean 'oracle'"),
    ],
)
def test_arguments_that_are_not_possible_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        AragogPolicy(**{"viable": "oracle", **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": "fifu"}, "Did you mean 'fifo'"),
        ({"saturation": 1.5}, "saturation must be above 0 and at most 1"),
        ({"profile": "missing.json"}, "there is no such profile"),
        ({"same": "drafts"}, "Did you mean 'draft'"),
    ],
)
def test_arguments_that_do_not_fit_the_scenario_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        AragogPolicy("oracle", **arguments).reset(load_scenario("toy"), 0)


def reachable(thing: object, depth: int = 9, seen: set[int] | None = None) -> Iterator[object]:
    """Yield everything that attributes, slots, items and array bases lead to."""
    seen = set() if seen is None else seen
    if id(thing) in seen or depth == 0 or isinstance(thing, str | bytes | int | float | type):
        return
    seen.add(id(thing))
    yield thing
    inner: list[object] = [thing.base] if isinstance(thing, np.ndarray) else []
    inner += list(thing.values()) if isinstance(thing, dict) else []
    inner += list(thing) if isinstance(thing, list | tuple) else []
    inner += list(getattr(thing, "__dict__", {}).values())
    slots = (name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ()))
    inner += [getattr(thing, name) for name in slots if hasattr(thing, name)]
    for value in inner:
        yield from reachable(value, depth - 1, seen)


def test_the_view_that_a_policy_gets_leads_to_no_outcomes_and_no_true_lengths(busy: SimBackend) -> None:
    """What Aragog knows of answers comes through its viable sets, handed over openly; the view has none of it."""
    busy.reset(3)
    for _ in range(30):
        view = busy.view()
        busy.step(FirstRoute.act(view))
    view = busy.view()
    hidden = [table for table in busy.outcomes]
    secret = [a for t in hidden for a in (t.p_correct, t.output_tokens, t.own_prompt_tokens)]
    secret += [busy.compiled.workflow.output, busy.compiled.workflow.p_correct]
    objects = list(reachable(view))
    arrays = [thing for thing in objects if isinstance(thing, np.ndarray)]
    assert len(arrays) > 10 and not any(isinstance(thing, OutcomeTable) for thing in objects)
    for array in arrays:
        for private in secret:
            assert not np.shares_memory(array, private)
            assert array.shape != private.shape or not np.array_equal(array, private)
    # The walk finds what is there: a table hung on the view would not go unnoticed.
    assert any(thing is hidden[0].output_tokens for thing in reachable([view, hidden[0]]))


class FirstRoute:
    """The first call to the first route it may take."""

    @staticmethod
    def act(view: Any) -> Any:
        from aragog_env.policy import Dispatch

        return Dispatch(0, int(np.flatnonzero(view.allowed[0])[0]))
