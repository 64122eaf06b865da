"""What is trained and compared: pairs, loads, policies, seeds.

A *case* is a pair with a source of viable sets, the same for Aragog and all that is compared with it. *Load* is the arrival
rate over Aragog's throughput ceiling in that case: what it completes per second, in the steady part of an episode, when more
requests arrive than it can serve (measured as in `scripts.reproduction`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from aragog_env.harness.capacity import round_rate
from aragog_env.harness.jobs import Job
from aragog_env.harness.results import Results
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario

from ..reproduction.measure import steady_throughput_rps
from ..reproduction.paper import WORKFLOWS
from ..reproduction.plan import bound_rps

PAIRS: Final = tuple(WORKFLOWS)
"""Workflows with their data sets, on Qwen2.5 7B, 14B and 32B."""
REFERENCE: Final = "aragog"
RULE: Final = "shortest_work"
PRICED: Final = "shortest_work, priced"
"""The rule with a price on accuracy instead of hard viable sets; what is imitated."""
LEARNED: Final = ("imitation", "ppo")
OTHERS: Final = (
    "per_input", "per_workflow", "per_input_plus_plus", "viable_shortest_queue", "viable_power_of_two", "viable_random",
    "aragog:order=fewest_left", "least_loaded", "power_of_two", "random", "earliest_finish", "fixed:smallest", "fixed:largest",
)  # fmt: skip
BLIND: Final = ("least_loaded", "power_of_two", "random", "earliest_finish", "fixed:smallest", "fixed:largest")
"""Policies that look at no viable sets."""
COMPARED: Final = (REFERENCE, RULE, PRICED, *LEARNED)
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
    sets: tuple[str, ...]
    """Sources of viable sets."""
    train_load: float
    """Load of training traffic."""
    imitated: int
    """Decisions of the rule that are imitated, per pair."""
    steps: int
    """Decisions of PPO, per pair."""
    minutes: float
    """PPO stops after so long, per pair."""
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """`point_s` and `most_loss` by pair, once they are known (`prices.choose`)."""


FULL: Final = Size("full", 1200, 4, 4, (0.7, 0.9, 1.1), PAIRS, ("router",), 1.0, 20_000, 600_000, 5.0)
QUICK: Final = Size("quick", 150, 2, 1, (1.1,), PAIRS[:1], ("router",), 1.0, 2_000, 20_000, 0.5)


@dataclass(frozen=True)
class Case:
    """A pair with a source of viable sets."""

    pair: str
    sets: str
    point_s: float = field(default=0.0, compare=False)
    """Price of a point of accuracy in seconds (`baselines.features.Rules.point_s`)."""
    most_loss: float = field(default=20.0, compare=False)
    """In points (`baselines.features.Rules.most_loss`)."""

    def __str__(self) -> str:
        """Name it."""
        return f"{self.pair}, {self.sets} sets"

    def policy(self, name: str, models: Path) -> str:
        """Return the name by which a policy with these sets is made."""
        if name in LEARNED:
            return f"{name}:{models},viable={self.sets}"
        if name == PRICED:
            return f"{RULE}:{self.sets},point_s={self.point_s:g},most_loss={self.most_loss:g}"
        if name in BLIND:
            return name
        head, _, rest = name.partition(":")
        return f"{head}:{self.sets}" + (f",{rest}" if rest else "")


def cases(size: Size) -> list[Case]:
    """Return all cases."""
    return [Case(pair, sets, *size.prices.get(pair, ())) for pair in size.pairs for sets in size.sets]


def base(pair: str, size: Size, cluster: str = "") -> Scenario:
    """Return a pair's scenario with episodes of this size, on its own or another cluster."""
    return override(load_scenario(f"aragog-{pair}-qwen"), requests=size.requests, cluster=cluster or None)


def ceiling_job(case: Case, size: Size, folder: Path, cluster: str = "") -> Job:
    """Return the episode that a ceiling is measured on, far beyond saturation."""
    scenario = base(case.pair, size, cluster)
    rate = round_rate(CEILING_LOAD * bound_rps(scenario))
    scenario = replace(
        override(scenario, rate_rps=rate), name=f"{case}, ceiling" + (f" on {cluster}" if cluster else "")
    )
    return Job(case.policy(REFERENCE, folder), scenario, CEILING_SEED, str(folder))


def ceiling_rps(results: Results, job: Job) -> float:
    """Return the measured ceiling."""
    run = results.get(job.key)
    assert run is not None
    return steady_throughput_rps(results.log(run))


Ceilings = dict[tuple[Case, str], float]
"""Aragog's ceilings in requests per second, by case and cluster; the pair's own cluster is called ''."""


def at_load(case: Case, size: Size, load: float, ceilings: Ceilings) -> Scenario:
    """Return a pair's scenario at a load."""
    rate = round_rate(load * ceilings[case, ""])
    return replace(override(base(case.pair, size), rate_rps=rate), name=f"{case}, load {load:g}")


def other_cluster(case: Case, size: Size, ceilings: Ceilings) -> Scenario:
    """Return the unseen family of another cluster, at its own load."""
    rate = round_rate(UNSEEN_LOAD * ceilings[case, OTHER_CLUSTER])
    scenario = override(base(case.pair, size, OTHER_CLUSTER), rate_rps=rate)
    return replace(scenario, name=f"{case}, on {OTHER_CLUSTER}")


def azure(case: Case, size: Size, ceilings: Ceilings, data: Path) -> Scenario:
    """Return the unseen family of real arrivals: the Azure trace of 2023, conversations, at the pair's rate."""
    plain, path = at_load(case, size, UNSEEN_LOAD, ceilings), data / "azure_llm_2023" / AZURE
    scenario = override(plain, trace=path) if path.is_file() else override(plain, arrivals=AZURE_PRESET)
    return replace(scenario, name=f"{case}, {'Azure trace' if path.is_file() else AZURE_PRESET}")


def table_jobs(size: Size, ceilings: Ceilings, folder: Path, models: Path) -> Iterator[Job]:
    """Yield the episodes of the main table. Those of a cell lie together, so that processes keep their compiled scenario."""
    for case in cases(size):
        for load in size.loads:
            scenario = at_load(case, size, load, ceilings)
            for policy in COMPARED:
                yield from _jobs(case, policy, scenario, size.seeds, folder, models)
            for policy in OTHERS:
                yield from _jobs(case, policy, scenario, size.other_seeds, folder, models)


def unseen_scenarios(size: Size, ceilings: Ceilings, data: Path) -> list[tuple[Case, Scenario]]:
    """Return the families that no training saw."""
    return [
        (case, scenario)
        for case in cases(size)
        for scenario in (other_cluster(case, size, ceilings), azure(case, size, ceilings, data))
    ]


def unseen_jobs(size: Size, ceilings: Ceilings, folder: Path, models: Path, data: Path) -> Iterator[Job]:
    """Yield the episodes of the unseen families."""
    for case, scenario in unseen_scenarios(size, ceilings, data):
        for policy in COMPARED:
            yield from _jobs(case, policy, scenario, size.seeds, folder, models)


def _jobs(case: Case, policy: str, scenario: Scenario, seeds: int, folder: Path, models: Path) -> Iterator[Job]:
    name = case.policy(policy, models)
    yield from (Job(name, scenario, seed, str(folder)) for seed in range(seeds))
