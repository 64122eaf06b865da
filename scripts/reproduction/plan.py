"""What is run: settings (a policy on a cluster), on which pairs, at which arrival rates, with which seeds.

As in the paper (section 5.1) the eighth GPU runs Aragog's router, and holds a second replica of the smallest model for
baselines, which know the true viable sets and pay for no router.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from typing import Final

import numpy as np

from aragog_env.compiled_scenario import compile_scenario
from aragog_env.harness.capacity import round_rate
from aragog_env.harness.jobs import Job
from aragog_env.harness.profile import profile_scenario
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario

from .embedders import told_by
from .paper import FAMILIES, WORKFLOWS

ABLATED: Final = ("self_refine_humaneval", "voting_mmlu_pro")
"""The two workflows of the paper's ablations, on Qwen."""
TIED_STAGES: Final = {"self_refine_humaneval": "critique+refine", "voting_mmlu_pro": "vote"}
WITH_ROUTER: Final = {"qwen": "qwen-8xh100", "llama": "llama-8xh100", "mixed": "mixed-8xh100"}
WITHOUT_ROUTER: Final = {"qwen": "qwen-8xh100-2x7b", "llama": "llama-8xh100-2x3b", "mixed": "mixed-8xh100-2x8b"}
FOUR_GPUS: Final = "qwen-4xh100"


@dataclass(frozen=True)
class Setting:
    """A policy on a cluster."""

    policy: str
    cluster: str
    texts: str = ""
    """Embedder that queries' features tell as much as; empty: as n-grams do."""


@dataclass(frozen=True)
class Size:
    """How much is run. Every number in the tables comes with it."""

    name: str
    fractions: tuple[float, ...]
    """Arrival rates of the main sweep, as shares of `bound_rps`; the last is the "highest rate"."""
    top_fractions: tuple[float, ...]
    """Rates of ablations: around the ceiling and beyond."""
    seeds: int
    fillings: float
    """An episode at the highest rate has so many times the requests that are in flight when every server is saturated: with
    fewer, servers would hardly fill up before the episode ends, and the ceiling would not be reached. Arrivals last equally
    long at all rates."""
    least_requests: int
    workflows: tuple[str, ...] = tuple(WORKFLOWS)
    families: tuple[str, ...] = tuple(FAMILIES)
    ablated: tuple[str, ...] = ABLATED
    viable: str = "router"
    """Where Aragog's viable sets come from; the learned router's time is charged to the clock."""
    snapshots: int = 0
    """Rounds on which searches are compared, per polling period."""
    embedder: str = "minilm"
    """Another embedder than n-grams, to compare it; empty: none. See `embedders.told_by`."""

    def aragog(self, **options: object) -> str:
        """Return Aragog's policy name with these options."""
        return named("aragog", self.viable, charge_routing="true", **options)


def named(policy: str, viable: str, **options: object) -> str:
    """Return the name of a policy with these arguments."""
    return f"{policy}:{','.join([viable, *(f'{key}={value}' for key, value in options.items())])}"


FULL: Final = Size("full", (0.2, 0.6, 0.9, 1.3), (1.3,), 3, 4.0, 300, snapshots=1000)
QUICK: Final = Size(
    "quick", (0.2, 1.3), (1.3,), 1, 1.5, 150, families=("qwen",), ablated=("self_refine_humaneval",), snapshots=90
)


@dataclass(frozen=True)
class Pair:
    """A workflow with its data set, on a family of models."""

    workflow: str
    family: str

    @property
    def scenario(self) -> str:
        """Name of the scenario preset."""
        return f"aragog-{self.workflow}-{self.family}"

    def on(self, cluster: str, texts: str = "") -> Scenario:
        """Return the scenario on a cluster; another cluster or embedder than its own shows in the name."""
        return _scenario_on(self.scenario, cluster, texts)


@lru_cache(maxsize=128)
def _scenario_on(name: str, cluster: str, texts: str) -> Scenario:
    scenario = load_scenario(name)
    if texts:
        scenario = replace(override(scenario, outcomes=[told_by(texts, scenario)]), name=f"{name}+{texts}")
    if cluster == scenario.cluster.name:
        return scenario
    return replace(override(scenario, cluster=cluster), name=f"{scenario.name}@{cluster}")


def main_settings(pair: Pair, size: Size) -> dict[str, Setting]:
    """Return the three strategies that the paper's evaluation compares."""
    other = WITHOUT_ROUTER[pair.family]
    return {
        "aragog": Setting(size.aragog(), WITH_ROUTER[pair.family]),
        "per_input": Setting("per_input:oracle", other),
        "per_workflow": Setting("per_workflow:oracle", other),
    }


def knowledge_settings(pair: Pair, size: Size) -> dict[str, Setting]:
    """Return what separates late binding from what is known: Aragog as an oracle, and per-input with the learned router.

    Both also on all eight GPUs, since the built-in router runs on a CPU and leaves the eighth GPU free.
    """
    own, other = WITH_ROUTER[pair.family], WITHOUT_ROUTER[pair.family]
    per_input = named("per_input", size.viable, charge_routing="true")
    return {
        "aragog_oracle": Setting("aragog:oracle", own),
        "aragog_oracle_8_gpus": Setting("aragog:oracle", other),
        "aragog_8_gpus": Setting(size.aragog(), other),
        "per_input_router": Setting(per_input, own),
        "per_input_router_8_gpus": Setting(per_input, other),
    }


def binding_settings(pair: Pair) -> dict[str, Setting]:
    """Return Fig. 4's strategies that the main comparison lacks; all four run on the same cluster with oracles."""
    other = WITHOUT_ROUTER[pair.family]
    return {
        "per_input_plus": Setting("per_input_plus:oracle", other),
        "per_input_plus_plus": Setting("per_input_plus_plus:oracle", other),
    }


def ablation_settings(pair: Pair, size: Size) -> dict[str, dict[str, Setting]]:
    """Return the ablations of section 5.3 and ours; each has an `aragog`, or baselines of its own where those change."""
    own, other = WITH_ROUTER[pair.family], WITHOUT_ROUTER[pair.family]
    variants = {f"beam_{b}": size.aragog(beam=b) for b in (1, 2, 8)}
    variants |= {
        "oracle": "aragog:oracle",
        "free_routing": named("aragog", size.viable),
        "no_tie_break": size.aragog(tie_break="false"),
        "no_look_ahead": size.aragog(look_ahead="false"),
        "lifo": size.aragog(order="lifo"),
    }
    for rule in ("viable_shortest_queue", "viable_power_of_two", "viable_random"):
        variants[rule] = named(rule, size.viable, charge_routing="true")
    result = {name: {"aragog": Setting(policy, own)} for name, policy in variants.items()}
    result["same_cluster"] = {"aragog": Setting("aragog:oracle", other)}
    usual, tied = main_settings(pair, size), TIED_STAGES[pair.workflow]
    result["constrained"] = {name: replace(s, policy=f"{s.policy},same={tied}") for name, s in usual.items()}
    if size.embedder:
        result["embedder"] = {name: replace(s, texts=size.embedder) for name, s in usual.items()}
    result["4_gpus"] = {name: replace(s, cluster=FOUR_GPUS) for name, s in usual.items()}
    result["no_second_replica"] = {name: replace(s, cluster=own) for name, s in usual.items() if name != "aragog"}
    result["per_workflow_2_points"] = {"per_workflow": Setting("per_workflow:oracle,tolerance=0.02", other)}
    return result


@lru_cache(maxsize=64)
def bound_rps(scenario: Scenario) -> float:
    """Return requests per second if every server ran saturated on an equal mix of stages: an upper bound, about.

    From offline profiles alone, so that the sweep's rates depend on no policy.
    """
    calls_per_s = sum(p.curve_rps()[-1] * len(p.names) for p in profile_scenario(scenario).replicas)
    compiled = compile_scenario(scenario)
    (table,) = compiled.outcomes
    llm = list(table.llm_nodes)
    calls_per_request = float((~table.skipped[:, llm]).mean(axis=(0, 2)).sum())
    return float(calls_per_s / calls_per_request)


@lru_cache(maxsize=64)
def saturated_requests(scenario: Scenario) -> float:
    """Return how many requests are in flight when every server is at its saturation point.

    A request with parallel stages has several calls in service: its LLM calls over those on its longest path, on average.
    """
    slots = sum(p.saturation() * len(p.names) for p in profile_scenario(scenario).replicas)
    compiled = compile_scenario(scenario)
    (graph,), (table,) = compiled.graphs, compiled.outcomes
    longest = np.zeros(len(graph.nodes))
    for k, node in enumerate(graph.nodes):
        longest[k] = (node.kind == "llm") + max((longest[p] for p in node.parents), default=0.0)
    calls = float((~table.skipped[:, list(table.llm_nodes)]).mean(axis=(0, 2)).sum())
    return float(slots / max(1.0, calls / longest.max()))


def requests_at(pair: Pair, size: Size, rate_rps: float) -> int:
    """Return how many requests an episode of a pair has at a rate."""
    own = pair.on(WITH_ROUTER[pair.family])
    window_s = size.fillings * saturated_requests(own) / (max(size.fractions) * bound_rps(own))
    return max(size.least_requests, ceil(rate_rps * window_s))


@dataclass(frozen=True)
class Runs:
    """One setting on one pair at its rates."""

    pair: Pair
    setting: Setting
    scenario: Scenario
    rates_rps: tuple[float, ...]


def rates_for(pair: Pair, fractions: Sequence[float], cluster: str = "") -> tuple[float, ...]:
    """Return arrival rates as shares of what the pair's cluster (the one with the router) could serve."""
    bound = bound_rps(pair.on(cluster or WITH_ROUTER[pair.family]))
    return tuple(round_rate(bound * f) for f in fractions)


def all_runs(size: Size) -> list[Runs]:
    """Return everything that is run, each (setting, pair) once, with the union of its rates."""
    wanted: dict[tuple[Pair, Setting], set[float]] = {}
    for pair, setting, rates in _wanted(size):
        wanted.setdefault((pair, setting), set()).update(rates)
    return [
        Runs(pair, setting, pair.on(setting.cluster, setting.texts), tuple(sorted(rates)))
        for (pair, setting), rates in sorted(wanted.items(), key=lambda item: (item[0][0].scenario, item[0][1].cluster))
    ]


def pairs(size: Size) -> list[Pair]:
    """Return the pairs of the main comparison."""
    return [Pair(workflow, family) for family in size.families for workflow in size.workflows]


def ablated_pairs(size: Size) -> list[Pair]:
    """Return the pairs of the ablations."""
    return [Pair(workflow, "qwen") for workflow in size.ablated if workflow in size.workflows]


def binding_pairs(size: Size) -> list[Pair]:
    """Return the pairs on which Fig. 4's strategies are compared."""
    return [pair for pair in pairs(size) if pair.family == "qwen"]


def _wanted(size: Size) -> Iterator[tuple[Pair, Setting, tuple[float, ...]]]:
    for pair in pairs(size):
        for setting in main_settings(pair, size).values():
            yield pair, setting, rates_for(pair, size.fractions)
        for setting in knowledge_settings(pair, size).values():
            yield pair, setting, rates_for(pair, size.top_fractions)
    for pair in binding_pairs(size):
        for setting in binding_settings(pair).values():
            yield pair, setting, rates_for(pair, size.top_fractions)
    for pair in ablated_pairs(size):
        for name, settings in ablation_settings(pair, size).items():
            for setting in settings.values():
                cluster = FOUR_GPUS if name == "4_gpus" else ""
                yield pair, setting, rates_for(pair, size.top_fractions, cluster)


def jobs_for(runs: Sequence[Runs], size: Size, folder: str) -> list[Job]:
    """Return one job per episode; those of a pair lie together, so that processes keep their compiled scenario."""
    return [
        Job(
            run.setting.policy,
            override(run.scenario, rate_rps=rate, requests=requests_at(run.pair, size, rate)),
            seed,
            folder,
            rate,
        )
        for run in runs
        for rate in run.rates_rps
        for seed in range(size.seeds)
    ]
