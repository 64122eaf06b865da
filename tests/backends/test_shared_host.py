"""Client and shared processor around the engines: nothing without them, and by hand with them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aragog_env.backends.reference import ReferenceBackend
from aragog_env.backends.shared_host import SharedHostBackend
from aragog_env.backends.sim import SimBackend
from aragog_env.episode import EpisodeLog
from aragog_env.policy import WAIT, Dispatch
from aragog_env.specs.cluster import SharingSpec
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario

from .scenarios import LARGE, llm, random_scenarios, replica, scenario, workflow
from .test_parity import CHOOSERS, anywhere, same_logs, same_views, step

ALONE = "linear:overhead_ms=2,per_decode_ms=0"


def surrounded(made: Scenario, *, submit_ms: float = 0.0, close_ms: float = 0.0, **more: Any) -> Scenario:
    """Return a scenario whose cluster has something around its engines."""
    replicas = tuple(replace(r, submit_ms=submit_ms, close_ms=close_ms) for r in made.cluster.replicas)
    return replace(made, cluster=replace(made.cluster, replicas=replicas, **more))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_scenarios(), st.sampled_from(sorted(CHOOSERS)), st.integers(0, 99))
def test_without_surroundings_it_is_the_reference_backend(made: Scenario, chooser: str, seed: int) -> None:
    ours, truth = SharedHostBackend(made), ReferenceBackend(made)
    ours.reset(seed)
    truth.reset(seed)
    rng = random.Random(seed)
    while not truth.done:
        view = truth.view()
        same_views(ours.view(), view)
        step(ours, truth, CHOOSERS[chooser](view, rng), anywhere(view, rng))  # type: ignore[arg-type]
    assert (ours.done, ours.truncated) == (True, truth.truncated)
    same_logs(ours.log(), truth.log())


def one_by_one(made: Scenario, routes: list[int]) -> EpisodeLog:
    """Dispatch calls in their order to the given routes."""
    backend = SharedHostBackend(made)
    backend.reset(0)
    for route in routes:
        while True:
            view = backend.view()
            if len(view.calls):
                break
            backend.step(WAIT)
        backend.step(Dispatch(0, route))
    return backend.log()


def flat(*replicas: str, requests: int = 1, stages: int = 1, rate_rps: float = 1e5) -> Scenario:
    """Return servers whose every iteration takes 2 ms, and calls of 10 tokens."""
    names = [f"s{i}" for i in range(stages)]
    chain = [llm(name, *names[max(0, i - 1) : i], tokens=10, sigma=0.0) for i, name in enumerate(names)]
    made = scenario(
        workflow(*chain, queries=4), [replica(f"r{i}", model, latency=ALONE) for i, model in enumerate(replicas)],
        requests=requests,
    )  # fmt: skip
    return override(made, rate_rps=rate_rps)


def test_overheads_of_a_call() -> None:
    made = surrounded(flat(LARGE, stages=2), submit_ms=3.0, close_ms=0.5, decision_ms=1.0)
    log = one_by_one(made, [0, 0])
    first, second = log.calls
    assert first["dispatch_s"] - first["ready_s"] == pytest.approx(0.001)
    assert first["start_s"] - first["dispatch_s"] == pytest.approx(0.003)
    assert first["first_token_s"] - first["start_s"] == pytest.approx(0.002)
    # Nine more tokens, and the end of the stream.
    assert first["finish_s"] - first["first_token_s"] == pytest.approx(9 * 0.002 + 0.0005)
    assert second["ready_s"] == first["finish_s"]
    assert log.busy_s[0] == pytest.approx(2 * 10 * 0.002)


def test_the_client_decides_one_after_the_other() -> None:
    made = surrounded(flat(LARGE, LARGE, requests=3), decision_ms=1.5)
    log = one_by_one(made, [0, 1, 0])
    assert np.diff(log.calls["dispatch_s"]) == pytest.approx([0.0015, 0.0015])
    assert (log.calls["ready_s"] < 1e-3).all()


def test_a_busy_neighbour_slows_a_server_down_in_the_middle_of_an_iteration() -> None:
    made = surrounded(flat(LARGE, LARGE, requests=2), sharing=SharingSpec((1.0, 1.5)))
    made = override(made, rate_rps=100.0)
    backend = SharedHostBackend(made)
    backend.reset(3)
    backend.step(Dispatch(0, 0))
    backend.step(Dispatch(0, 1))
    log = backend.log()
    early, late = log.calls
    # Ten iterations of 2 ms each; while both run, 2 ms of work take 3.
    gap_s = late["dispatch_s"] - early["dispatch_s"]
    assert 0 < gap_s < 0.018 and (gap_s % 0.002) > 1e-4, "the second comes in the middle of an iteration"
    together_s = (0.02 - gap_s) * 1.5
    assert early["finish_s"] - early["dispatch_s"] == pytest.approx(gap_s + together_s, abs=1e-9)
    # The other has lost a third of that time and does the rest alone.
    assert late["finish_s"] - late["dispatch_s"] == pytest.approx(together_s + 0.02 - together_s / 1.5, abs=1e-9)
    assert log.busy_s == pytest.approx([early["finish_s"] - early["dispatch_s"], late["finish_s"] - late["dispatch_s"]])


def test_overheads_grow_when_others_are_busy() -> None:
    sharing = SharingSpec((1.0,), outside=(1.0, 2.0, 5.0))
    made = surrounded(flat(LARGE, LARGE, requests=2), submit_ms=3.0, close_ms=1.0, decision_ms=0.5, sharing=sharing)
    made = override(made, rate_rps=100.0)
    backend = SharedHostBackend(made)
    backend.reset(3)
    backend.step(Dispatch(0, 0))
    backend.step(Dispatch(0, 1))
    early, late = backend.log().calls
    assert early["start_s"] - early["ready_s"] == pytest.approx(0.0035) and late["ready_s"] > early["start_s"]
    # One server is busy: the client has a core of its own, but the way to the other server is longer.
    assert late["dispatch_s"] - late["ready_s"] == pytest.approx(0.0005)
    assert late["start_s"] - late["dispatch_s"] == pytest.approx(0.006)
    assert early["finish_s"] - early["first_token_s"] == pytest.approx(9 * 0.002 + 0.002)
    assert late["finish_s"] - late["first_token_s"] == pytest.approx(9 * 0.002 + 0.001)


def test_more_busy_servers_than_factors() -> None:
    made = surrounded(flat(LARGE, LARGE, LARGE, requests=3), sharing=SharingSpec((1.0, 2.0)))
    log = one_by_one(made, [0, 1, 2])
    assert log.calls["finish_s"] - log.calls["dispatch_s"] == pytest.approx([0.04] * 3, abs=1e-4)


def test_the_client_knows_what_it_sent() -> None:
    made = surrounded(flat(LARGE, requests=2), submit_ms=5.0, close_ms=5.0)
    backend = SharedHostBackend(made)
    backend.reset(0)
    backend.step(Dispatch(0, 0))
    route = backend.view().routes[0]
    assert (route["running"], route["waiting"]) == (0, 1) and route["waiting_tokens"] > 0


def test_the_compiled_simulator_charges_overheads_to_the_first_iteration() -> None:
    """It has no client: alone on the cluster, a call takes the same time all the same."""
    made = surrounded(flat(LARGE), submit_ms=3.0, close_ms=0.5, decision_ms=1.0)
    times = []
    for backend in (SimBackend(made), SharedHostBackend(made)):
        backend.reset(0)
        backend.step(Dispatch(0, 0))
        (call,) = backend.log().calls
        times.append(call["finish_s"] - call["ready_s"])
    assert times[0] == pytest.approx(times[1]) == pytest.approx(0.02 + 0.0045)
    typical = surrounded(flat(LARGE), sharing=SharingSpec((1.0, 1.5), 1.25))
    backend = SimBackend(typical)
    backend.reset(0)
    backend.step(Dispatch(0, 0))
    assert backend.log().busy_s[0] == pytest.approx(0.02 * 1.25)


def test_shipped_scenarios_are_untouched() -> None:
    """The keys are new: where they are not set, hashes of results made before stay valid."""
    from aragog_env.specs.plain import spec_hash, to_dict

    toy = load_scenario("toy")
    plain = to_dict(toy)
    assert not {"decision_ms", "sharing"} & plain["cluster"].keys()
    assert not {"submit_ms", "close_ms"} & plain["cluster"]["replicas"][0].keys()
    changed = replace(toy, cluster=replace(toy.cluster, decision_ms=1.0))
    assert to_dict(changed)["cluster"]["decision_ms"] == 1.0 and spec_hash(changed) != spec_hash(toy)
