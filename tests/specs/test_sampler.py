"""Drawn scenarios: reproducible, within their ranges, and bad files refused with their line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aragog_env.errors import SpecError
from aragog_env.specs.load import load_scenario
from aragog_env.specs.sampler import SampledScenario, ScenarioSampler, checked, load_sampler, read_sampler
from aragog_env.specs.strict import dump_yaml
from aragog_env.specs.validate import validate_scenario
from aragog_env.specs.workload import ArrivalSpec

FULL = """\
name: wide
scenarios:
  - {scenario: toy, capacity_rps: 20, weight: 3}
  - {scenario: mine.yaml, cluster: toy-3, capacity_rps: 10}
load: [0.5, 1.25]
arrivals: [{kind: poisson}, {kind: gamma, cv: 2.5}, azure-code-mmpp]
latency_scale: [0.8, 1.25]
requests: 30
"""
MINE = """\
name: mine
cluster: toy-3
workload: {arrivals: {kind: poisson, rate_rps: 3}, mix: [toy_single]}
"""


def _write(folder: Path, text: str) -> Path:
    (folder / "mine.yaml").write_text(MINE)
    path = folder / "sampler.yaml"
    path.write_text(text)
    return path


def test_draws_are_reproducible_valid_and_within_their_ranges(tmp_path: Path) -> None:
    sampler = load_sampler(_write(tmp_path, FULL))
    drawn = [sampler.sample(seed) for seed in range(60)]
    assert drawn == [load_sampler(tmp_path / "sampler.yaml").sample(seed) for seed in range(60)]
    assert len({scenario.workload.arrivals.rate_rps for scenario in drawn}) == 60
    for scenario in drawn:
        validate_scenario(scenario)
        capacity = 20 if scenario.name.startswith("toy") else 10
        rate = scenario.workload.arrivals.rate_rps
        assert rate is not None and 0.5 * capacity <= rate <= 1.25 * capacity
        assert scenario.horizon.requests == 30
        assert all(0.8 <= replica.latency_scale <= 1.25 for replica in scenario.cluster.replicas)
        assert len({replica.latency_scale for replica in scenario.cluster.replicas}) == 3
    kinds = {scenario.workload.arrivals.kind for scenario in drawn}
    assert kinds == {"poisson", "gamma", "mmpp"}
    shares = np.mean([scenario.name == "toy~wide" for scenario in drawn])
    assert 0.6 < shares < 0.9  # three times as often


def test_what_is_not_named_stays_as_it_is() -> None:
    sampler = ScenarioSampler("plain", (SampledScenario("toy"),))
    toy, drawn = load_scenario("toy"), sampler.sample(7)
    assert (drawn.cluster, drawn.workload, drawn.horizon) == (toy.cluster, toy.workload, toy.horizon)
    fixed = ScenarioSampler("fixed", (SampledScenario("toy"),), rate_rps=(8.0,), latency_scale=(2.0,)).sample(7)
    assert fixed.workload.arrivals.rate_rps == pytest.approx(8.0)
    assert [replica.latency_scale for replica in fixed.cluster.replicas] == pytest.approx([2.0] * 3)


def test_traffic_and_machine_are_drawn_independently(tmp_path: Path) -> None:
    sampler = load_sampler(_write(tmp_path, FULL))
    machine = sampler.machine(0, 1)
    one, two = sampler.with_traffic(machine, 0, 5), sampler.with_traffic(machine, 0, 6)
    assert one.cluster == two.cluster and one.workload != two.workload
    assert sampler.with_traffic(sampler.machine(0, 2), 0, 5).workload == one.workload


def test_groups_are_spread_over_scenarios_by_weight() -> None:
    sampler = ScenarioSampler("three", tuple(SampledScenario("toy", weight=w) for w in (2.0, 1.0, 1.0)))
    for seed in range(20):
        counts = np.bincount(sampler.spread(8, seed), minlength=3)
        assert counts.sum() == 8 and np.abs(counts - [4, 2, 2]).max() <= 1
    assert len({tuple(sampler.spread(2, seed)) for seed in range(20)}) > 1


def test_text_round_trip(tmp_path: Path) -> None:
    sampler = load_sampler(_write(tmp_path, FULL))
    again = read_sampler(dump_yaml(sampler), "run.json")
    assert again == sampler and again.sample(3) == sampler.sample(3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("load: [0.5, 1.25]", "lode: [1]", "sampler.yaml:5, key 'lode': unknown key. Did you mean 'load'?"),
        ("load: [0.5, 1.25]", "load: [2, 1]", "sampler.yaml:5, key 'load': a range is [lowest, highest]"),
        ("load: [0.5, 1.25]", "load: [0, 1]", "sampler.yaml:5, key 'load[0]': must be greater than 0"),
        ("load: [0.5, 1.25]", "load: [1]\nrate_rps: [1]", "give 'rate_rps' or 'load', not both"),
        ("capacity_rps: 10}", "weight: 1}", "sampler.yaml:4, key 'scenarios[1]': 'load' is a share of 'capacity_rps'"),
        (
            "scenario: toy,",
            "scenario: tyo,",
            "sampler.yaml:3, key 'scenarios[0]': unknown scenario 'tyo'. Did you mean",
        ),
        ("cluster: toy-3,", "cluster: toy-4,", "key 'scenarios[1]': unknown cluster 'toy-4'"),
        ("azure-code-mmpp]", "azure-mmpp]", "key 'arrivals[2]': unknown arrival process 'azure-mmpp'"),
        ("{kind: poisson}", "{kind: closed, users: 3}", "key 'arrivals[0]': a closed loop has no arrival rate"),
        ("{kind: poisson}", "{preset: azure-code-mmpp}", "write the name 'azure-code-mmpp' alone"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in FULL
    with pytest.raises(SpecError) as caught:
        load_sampler(_write(tmp_path, FULL.replace(old, new)))
    assert message in str(caught.value)


def test_samplers_made_in_python_are_checked_too() -> None:
    with pytest.raises(SpecError, match="at least one scenario"):
        checked(ScenarioSampler("empty", ()))
    good = checked(ScenarioSampler("good", (SampledScenario("toy"),), arrivals=(ArrivalSpec("gamma", cv=3.0),)))
    assert good.sample(0).workload.arrivals == ArrivalSpec("gamma", rate_rps=5.0, cv=3.0)
