"""What is trained and compared: pairs, loads, policies, seeds.

*Load* is the arrival rate over Aragog's throughput ceiling with the learned router: what it completes per second, in the
steady part of an episode, when more requests arrive than it can serve (measured as in `scripts.reproduction`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from aragog_env.harness.capacity import round_rate
from aragog_env.harness.jobs import Job
from aragog_env.harness.results import Results
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario

from ..reproduction.measure import steady_throughput_rps
from ..reproduction.plan import bound_rps

PAIRS: Final = (
    "self_refine_humaneval",
    "self_refine_squad",
    "text_to_sql_bird",
    "voting_mmlu_pro",
    "decomposition_strategyqa",
)
"""Workflows with their data sets, on Qwen2.5 7B, 14B and 32B."""
REFERENCE: Final = "aragog"
RULE: Final = "shortest_work"
LEARNED: Final = ("imitation", "ppo")
OTHERS: Final = (
    "per_input", "per_workflow", "per_input_plus_plus", "viable_shortest_queue", "viable_power_of_two", "viable_random",
    "least_loaded", "aragog:order=fewest_left",
)  # fmt: skip
OTHER_CLUSTER: Final = "qwen-16xh100-replicated"
AZURE: Final = "AzureLLMInferenceTrace_conv.csv.gz"
AZURE_PRESET: Final = "azure-conv-mmpp"
"""Arrivals fitted to the trace, where the file itself is not at hand."""
UNSEEN_LOAD: Final = 0.9
CEILING_LOAD: Final = 1.3
"""Ceilings are measured at this share of `bound_rps`, far beyond what can be served."""
CEILING_SEED: Final = 500


@dataclass(frozen=True)
class Size:
    """How much is run."""

    name: str
    requests: int
    """Of an episode; the first tenth is warm-up."""
    seeds: int
    """Episodes of a cell with Aragog, the rule and the learned policies, seeds 0, 1, ..."""
    other_seeds: int
    """Of the other policies."""
    loads: tuple[float, ...]
    pairs: tuple[str, ...]
    train_load: float
    """Load of training traffic."""
    imitated: int
    """Decisions of the rule that are imitated, per pair."""
    steps: int
    """Decisions of PPO, per pair."""
    minutes: float
    """PPO stops after so long, per pair."""


FULL: Final = Size("full", 1000, 8, 3, (0.7, 0.9, 1.1), PAIRS, 1.0, 40_000, 1_500_000, 6.0)
QUICK: Final = Size("quick", 150, 2, 1, (1.1,), PAIRS[:1], 1.0, 2_000, 20_000, 0.5)


def base(pair: str, size: Size, cluster: str = "") -> Scenario:
    """Return a pair's scenario with episodes of this size, on its own or another cluster."""
    scenario = load_scenario(f"aragog-{pair}-qwen")
    return override(scenario, requests=size.requests, cluster=cluster or None)


def ceiling_job(pair: str, size: Size, folder: Path, cluster: str = "") -> Job:
    """Return the episode that a pair's ceiling is measured on: twice as long as the others, far beyond saturation."""
    scenario = base(pair, size, cluster)
    rate = round_rate(CEILING_LOAD * bound_rps(scenario))
    name = f"{pair} ceiling{cluster and ' on ' + cluster}"
    scenario = replace(override(scenario, rate_rps=rate, requests=2 * size.requests), name=name)
    return Job(REFERENCE, scenario, CEILING_SEED, str(folder))


def ceiling_rps(results: Results, job: Job) -> float:
    """Return the measured ceiling."""
    run = results.get(job.key)
    assert run is not None
    return steady_throughput_rps(results.log(run))


def at_load(pair: str, size: Size, load: float, ceiling: float) -> Scenario:
    """Return a pair's scenario at a load."""
    return replace(override(base(pair, size), rate_rps=round_rate(load * ceiling)), name=f"{pair} at {load:g}")


def other_cluster(pair: str, size: Size, ceiling: float) -> Scenario:
    """Return the unseen family of another cluster; `ceiling` is Aragog's there."""
    scenario = override(base(pair, size, OTHER_CLUSTER), rate_rps=round_rate(UNSEEN_LOAD * ceiling))
    return replace(scenario, name=f"{pair} on {OTHER_CLUSTER}")


def azure(pair: str, size: Size, ceiling: float, data: Path) -> Scenario:
    """Return the unseen family of real arrivals: the Azure trace of 2023, conversations, at the pair's rate."""
    rate, path = round_rate(UNSEEN_LOAD * ceiling), data / "azure_llm_2023" / AZURE
    plain = override(base(pair, size), rate_rps=rate)
    scenario = override(plain, trace=path) if path.is_file() else override(plain, arrivals=AZURE_PRESET)
    return replace(scenario, name=f"{pair}, {'Azure trace' if path.is_file() else AZURE_PRESET}")


def table_jobs(size: Size, ceilings: dict[str, float], folder: Path) -> Iterator[Job]:
    """Yield the episodes of the main table. Those of a cell lie together, so that processes keep their compiled scenario."""
    for pair in size.pairs:
        for load in size.loads:
            scenario = at_load(pair, size, load, ceilings[pair])
            for policy in (REFERENCE, RULE, *LEARNED):
                yield from (Job(policy, scenario, seed, str(folder)) for seed in range(size.seeds))
            for policy in OTHERS:
                yield from (Job(policy, scenario, seed, str(folder)) for seed in range(size.other_seeds))


def unseen_scenarios(size: Size, ceilings: dict[str, float], data: Path) -> list[Scenario]:
    """Return the families that no training saw."""
    return [
        scenario
        for pair in size.pairs
        for scenario in (
            other_cluster(pair, size, ceilings[f"{pair} on {OTHER_CLUSTER}"]),
            azure(pair, size, ceilings[pair], data),
        )
    ]


def unseen_jobs(size: Size, ceilings: dict[str, float], folder: Path, data: Path) -> Iterator[Job]:
    """Yield the episodes of the unseen families."""
    for scenario in unseen_scenarios(size, ceilings, data):
        for policy in (REFERENCE, RULE, *LEARNED):
            yield from (Job(policy, scenario, seed, str(folder)) for seed in range(size.seeds))


def charged(scenario: Scenario, decision_ms: float) -> Scenario:
    """Return a scenario in which every dispatch costs this much of the clock."""
    cluster = replace(scenario.cluster, decision_ms=round(decision_ms, 3))
    return replace(scenario, cluster=cluster, name=f"{scenario.name}, {decision_ms:.3f} ms per decision")
