"""Overrides: what they change, what they keep, and how they are refused."""

from __future__ import annotations

import pytest

from aragog_env.errors import SpecError
from aragog_env.specs.load import load_cluster, load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.strict import location
from aragog_env.specs.workload import ArrivalSpec, MixEntry

DEFAULT = load_scenario("default")


def test_nothing_given_changes_nothing() -> None:
    assert override(DEFAULT) == DEFAULT


def test_simple_values() -> None:
    changed = override(DEFAULT, rate_rps=7, duration_s=60.0, slo_s=3.0, slo_scale=2.0, ready_slots=4)
    assert changed.workload.arrivals.rate_rps == 7.0
    assert changed.horizon.duration_s == 60.0
    assert (changed.objective.slo_s, changed.objective.slo_scale) == (3.0, 2.0)
    assert changed.observation.ready_slots == 4
    assert changed.workload.mix == DEFAULT.workload.mix
    assert changed.cluster == DEFAULT.cluster
    assert location(changed, "workload.arrivals.rate_rps") == "override 'rate_rps'"


def test_the_warm_up_keeps_its_share() -> None:
    assert override(DEFAULT, requests=100).horizon.warmup_requests == 10
    assert override(DEFAULT, requests=100, warmup_requests=3).horizon.warmup_requests == 3


def test_workflows_and_cluster() -> None:
    one = override(DEFAULT, workflow="toy_chain", cluster="toy-3")
    assert one.workload.mix == (MixEntry("toy_chain"),)
    assert one.cluster == load_cluster("toy-3")
    two = override(DEFAULT, workflow="toy_chain, toy_single")
    assert two.workload.mix == (MixEntry("toy_chain"), MixEntry("toy_single"))


def test_a_trace_keeps_the_scenarios_rate_unless_told() -> None:
    assert override(DEFAULT, trace="t.csv").workload.arrivals == ArrivalSpec(kind="trace", path="t.csv", rate_rps=8.0)
    assert override(DEFAULT, trace="t.csv", rate_rps=9).workload.arrivals.rate_rps == 9.0
    native = override(DEFAULT, trace="t.csv", trace_format="mooncake", native_rate=True).workload.arrivals
    assert (native.rate_rps, native.format) == (None, "mooncake")


def test_arrivals_by_name() -> None:
    bursty = override(DEFAULT, arrivals="azure-code-mmpp").workload.arrivals
    assert (bursty.kind, bursty.rate_rps) == ("mmpp", 8.0)
    closed = override(DEFAULT, arrivals="closed", users=3).workload.arrivals
    assert (closed.kind, closed.users, closed.rate_rps) == ("closed", 3, None)


def test_out_of_range_values_name_the_override() -> None:
    with pytest.raises(SpecError, match=r"^override 'rate_rps': must be greater than 0, got -1$"):
        override(DEFAULT, rate_rps=-1)
    with pytest.raises(SpecError, match=r"^override 'requests': must be at least 1, got 0$"):
        override(DEFAULT, requests=0)
    with pytest.raises(SpecError, match=r"^override 'rate_rps': must be greater than 0, got -2$"):
        override(DEFAULT, trace="t.csv", rate_rps=-2)
    with pytest.raises(SpecError, match=r"^override 'slo_s': must be finite"):
        override(DEFAULT, slo_s=float("nan"))


def test_contradictions_are_refused() -> None:
    closed = override(DEFAULT, arrivals="closed")
    with pytest.raises(SpecError, match=r"^override 'rate_rps': a closed loop has no arrival rate; override 'users'"):
        override(closed, rate_rps=1)
    with pytest.raises(SpecError, match=r"^override 'users': arrivals of kind 'poisson' have no users"):
        override(DEFAULT, users=1)
    with pytest.raises(
        SpecError, match=r"^override 'native_rate': arrivals of kind 'poisson' have no rate of their own"
    ):
        override(DEFAULT, native_rate=True)
    with pytest.raises(SpecError, match=r"^override 'rate_rps': the trace cannot keep its own rate and have another"):
        override(DEFAULT, trace="t.csv", native_rate=True, rate_rps=1)
    with pytest.raises(SpecError, match=r"^unknown cluster 'toy-4'\. Did you mean 'toy-3'\?"):
        override(DEFAULT, cluster="toy-4")
