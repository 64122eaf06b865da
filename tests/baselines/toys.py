"""Scenarios with a computable optimum, and settings small enough for tests of learners."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import HorizonSpec, ObservationSpec, Scenario
from aragog_env.specs.workload import ArrivalSpec, MixEntry, WorkloadSpec

if TYPE_CHECKING:
    from baselines.training_run import Settings, TrainingRun

SMALL: dict[str, Any] = {"envs": 6, "threads": 1, "width": 8, "evaluate_every": 0}


def burst(requests: int = 7) -> Scenario:
    """Calls of 10 ms on a fast server and of 20 ms on a slow one, one at a time, all there at the beginning.

    The completion times that the servers can offer are 10, 20, 30, ... and 20, 40, ... ms; the n earliest of them are the
    optimum, and no schedule can offer others.
    """
    toy = load_scenario("toy")
    fast, slow, _ = toy.cluster.replicas
    replicas = (replace(fast, max_num_seqs=1), replace(slow, max_num_seqs=1))
    return Scenario(
        name="burst",
        cluster=replace(toy.cluster, name="two", replicas=replicas),
        workload=WorkloadSpec(ArrivalSpec("closed", users=requests), (MixEntry("toy_single"),)),
        horizon=HorizonSpec(requests),
        observation=ObservationSpec(ready_slots=requests),
    )


def best_mean_s(requests: int = 7) -> float:
    """Return the mean completion time of the optimum of `burst`."""
    offered = sorted([10 * (k + 1) for k in range(requests)] + [20 * (k + 1) for k in range(requests)])
    return sum(offered[:requests]) / requests / 1e3


def together(requests: int) -> Scenario:
    """Two calls in a row on three servers of eight at a time; all requests are there at the beginning."""
    toy = override(load_scenario("toy"), requests=requests, warmup_requests=0)
    workload = replace(toy.workload, arrivals=ArrivalSpec("closed", users=requests))
    return replace(toy, workload=workload)


def cut() -> Scenario:
    """Overload, cut after 0.3 s: every episode is truncated."""
    return override(load_scenario("toy"), requests=40, warmup_requests=0, duration_s=0.3, rate_rps=50.0, ready_slots=3)


def make_run(folder: Path, scenario: Scenario, settings: Settings, **options: Any) -> TrainingRun:
    """Return a run that prints nothing."""
    from baselines.training_run import TrainingRun

    return TrainingRun(folder, scenario, settings, tell=lambda line: None, **options)
