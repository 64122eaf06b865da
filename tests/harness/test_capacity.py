"""Rate sweeps: the search on a known system, then on the fake cluster."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from aragog_env.errors import SpecError
from aragog_env.harness.capacity import (
    Point,
    PolicyCapacity,
    SweepSettings,
    capacity,
    load_capacity,
    points_of,
    round_rate,
    search,
)
from aragog_env.harness.results import read
from aragog_env.specs.scenario import Scenario
from aragog_env.specs.workload import ArrivalSpec

from .fakes import FakeBackend, Fixed, Large, Raises, make_scenario


def _known_system(rate: float, ceiling: float, slo_limit: float) -> Point:
    growth = max(0.0, 1 - ceiling / rate)
    attainment = 1.0 if rate <= slo_limit else 0.5
    metrics = {
        "bulk_throughput_rps": min(rate, ceiling),
        "throughput_rps": min(rate, ceiling),
        "backlog_growth": growth,
        "latency_trend": growth,
        "slo_attainment": attainment,
        "unfinished": 0.0,
        "requests": 100.0,
    }
    return Point(rate, [metrics, metrics])


def _drive(first: float, settings: SweepSettings, ceiling: float, slo_limit: float) -> tuple[PolicyCapacity, int]:
    points: dict[float, Point] = {}
    running = search("p", first, settings)
    wanted = next(running)
    while True:
        for rate in wanted:
            points[rate] = _known_system(rate, ceiling, slo_limit)
        try:
            wanted = running.send(points)
        except StopIteration as end:
            return end.value, len(points)


@pytest.mark.parametrize("first", [0.01, 1.0, 500.0])
@pytest.mark.parametrize(("ceiling", "slo_limit"), [(7.3, 4.4), (0.31, 0.3), (120.0, 60.0)])
def test_search_finds_ceiling_and_capacity_from_any_start(first: float, ceiling: float, slo_limit: float) -> None:
    found, tried = _drive(first, SweepSettings(), ceiling, slo_limit)
    assert found.ceiling_rps.value == pytest.approx(ceiling, rel=0.01)
    assert found.capacity_rps <= slo_limit < found.infeasible_rps
    assert found.infeasible_rps / found.capacity_rps <= 1.055
    assert tried <= 30


def test_capacity_is_bounded_by_the_backlog_even_if_the_slo_is_met() -> None:
    found, _ = _drive(1.0, SweepSettings(), ceiling=5.0, slo_limit=1e9)
    assert found.capacity_rps == pytest.approx(5.0, rel=0.06)


def test_noise_in_the_backlog_alone_is_no_growth() -> None:
    point = _known_system(1.0, ceiling=2.0, slo_limit=9.0)
    for metrics in point.metrics:
        metrics["backlog_growth"] = 0.1
    assert point.sustained
    for metrics in point.metrics:
        metrics["latency_trend"] = 0.1
    assert not point.sustained


def test_capacity_is_zero_when_the_slo_is_never_met() -> None:
    found, _ = _drive(1.0, SweepSettings(), ceiling=5.0, slo_limit=0.0)
    assert found.capacity_rps == 0.0 and found.infeasible_rps < 1.0


def test_given_rates_are_the_curve() -> None:
    found, _ = _drive(1.0, SweepSettings(rates=(1.0, 2.0), max_bisections=0), ceiling=5.0, slo_limit=9.0)
    assert found.rates_rps == (1.0, 2.0) and found.capacity_rps == 2.0 and math.isnan(found.infeasible_rps)


@pytest.mark.parametrize(("rate", "rounded"), [(1.23456, 1.23), (0.0123456, 0.0123), (1234.5, 1230.0), (9.999, 10.0)])
def test_rates_are_rounded_to_three_digits(rate: float, rounded: float) -> None:
    assert round_rate(rate) == rounded


def test_a_sweep_of_the_fake_cluster(tmp_path: Path) -> None:
    """One replica with 6 slots; a request holds one for three calls of 169.5 tokens on average."""
    scenario = make_scenario(tmp_path, requests=300)
    options: dict[str, Any] = {"out": tmp_path / "out", "workers": 1, "make_backend": FakeBackend}
    results, found = capacity({"small": Fixed, "large": Large}, scenario, 2, **options)
    small, large = found
    assert small.ceiling_rps.value == pytest.approx(6 / (3 * 169.5 * 0.006), rel=0.1)
    assert large.ceiling_rps.value == pytest.approx(6 / (3 * 169.5 * 0.025), rel=0.1)
    assert 0 < small.capacity_rps <= small.ceiling_rps.value * 1.05
    # Alone, it takes 4.2 times as long as the fastest route: an SLO of 5 times leaves little room for queues.
    assert 0 < large.capacity_rps < 0.75 * large.ceiling_rps.value
    assert load_capacity(tmp_path / "out")[0] == small
    assert sorted(points_of(results, "small")) == list(small.rates_rps)


def test_a_resumed_sweep_repeats_its_search_from_disk(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path, requests=60)
    options: dict[str, Any] = {"out": tmp_path / "out", "workers": 1, "make_backend": FakeBackend}
    _, found = capacity({"small": Fixed}, scenario, 1, **options)
    path = tmp_path / "out" / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    (tmp_path / "out" / "capacity.json").unlink()
    results, again = capacity({"small": Fixed}, scenario, 1, resume=True, **options)
    assert [p.rates_rps for p in again] == [p.rates_rps for p in found]
    assert [p.capacity_rps for p in again] == [p.capacity_rps for p in found]
    assert len(results.ok) == len(lines)


def test_a_policy_that_fails_ends_its_search_only(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path)
    _, found = capacity(
        {"bad": Raises, "small": Fixed},
        scenario,
        1,
        out=tmp_path / "out",
        workers=1,
        make_backend=FakeBackend,
    )
    assert found[0].error is not None and "out of ideas" in found[0].error
    assert found[1].error is None and found[1].ceiling_rps.value > 0
    assert load_capacity(tmp_path / "out")[0].error == found[0].error
    assert len(read(tmp_path / "out").failed) == 1


def test_a_closed_loop_has_no_rate_to_sweep(tmp_path: Path) -> None:
    from dataclasses import replace

    scenario: Scenario = make_scenario(tmp_path)
    closed = replace(scenario, workload=replace(scenario.workload, arrivals=ArrivalSpec("closed", users=3)))
    with pytest.raises(SpecError, match="closed loop"):
        capacity({"small": Fixed}, closed, make_backend=FakeBackend, out=tmp_path / "out")
