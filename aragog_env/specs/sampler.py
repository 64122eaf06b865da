"""Scenarios drawn at random, for training that is to work on more than one: loads, bursts, clusters, speeds, workloads.

A file names what may come; everything that it does not name stays as in the scenario that is drawn:

```yaml
name: wide
scenarios:
  - {scenario: aragog-text_to_sql_bird-qwen, capacity_rps: 24}
  - {scenario: aragog-text_to_sql_bird-qwen, cluster: qwen-8xa100, capacity_rps: 11}
load: [0.5, 1.2]
arrivals: [{kind: poisson}, {kind: gamma, cv: 2.5}, azure-code-mmpp]
latency_scale: [0.9, 1.1]
```
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import SpecError
from .bounds import Count, Positive
from .load import anchored, load_arrivals, load_cluster, load_scenario
from .override import override
from .scenario import Scenario
from .strict import Reference, Source, load_file, loads, location
from .workload import ArrivalSpec

_MACHINE, _TRAFFIC = 0, 1
"""Streams of a seed, so that what is drawn of one does not depend on the other."""


@dataclass(frozen=True)
class SampledScenario:
    """One of the scenarios that may come: a workload on a cluster."""

    scenario: str
    """Name or file."""
    cluster: str | None = None
    """Name or file of another cluster than the scenario's."""
    capacity_rps: Positive | None = None
    """The rate that `load` is a share of."""
    weight: Positive = 1.0
    """How often it comes, relative to the others."""


@dataclass(frozen=True)
class ScenarioSampler:
    """What scenarios are drawn from. Ranges are two numbers, or one; between them all ratios are equally likely."""

    name: str
    scenarios: tuple[SampledScenario, ...]
    rate_rps: tuple[Positive, ...] = ()
    """Range of the arrival rate."""
    load: tuple[Positive, ...] = ()
    """Range of the arrival rate as a share of `capacity_rps`."""
    arrivals: tuple[ArrivalSpec, ...] = ()
    """Arrival processes, equally likely; their own rates do not count."""
    latency_scale: tuple[Positive, ...] = ()
    """Range of a factor on the iteration times of each server."""
    requests: Count | None = None
    """Requests per episode."""
    description: str = ""
    locations: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def sample(self, seed: int) -> Scenario:
        """Return a scenario: equal seeds give equal ones."""
        return self.scenario(self.choose(seed), seed)

    def scenario(self, which: int, seed: int) -> Scenario:
        """Return a draw of entry `which` of `scenarios`."""
        return self.with_traffic(self.machine(which, seed), which, seed)

    def choose(self, seed: int) -> int:
        """Return which of `scenarios` comes."""
        weights = np.array([entry.weight for entry in self.scenarios])
        return int(_stream(seed, _MACHINE).choice(len(weights), p=weights / weights.sum()))

    def spread(self, groups: int, seed: int) -> list[int]:
        """Return which of `scenarios` come in each of some groups: as often as their weights say, as nearly as it goes."""
        weights = np.cumsum([entry.weight for entry in self.scenarios])
        positions = (np.arange(groups) + _stream(seed, _MACHINE).random()) / groups
        return [int(i) for i in np.searchsorted(weights / weights[-1], positions, side="right")]

    def machine(self, which: int, seed: int) -> Scenario:
        """Return entry `which` with drawn speeds of its servers: what stays the same while traffic is drawn again."""
        entry = self.scenarios[which]
        base = override(load_scenario(entry.scenario), requests=self.requests, cluster=entry.cluster)
        if not self.latency_scale:
            return replace(base, name=f"{base.name}~{self.name}")
        rng = _stream(seed, _MACHINE, 1)
        replicas = tuple(
            replace(server, latency_scale=server.latency_scale * _between(self.latency_scale, rng))
            for server in base.cluster.expand()
        )
        return replace(base, name=f"{base.name}~{self.name}", cluster=replace(base.cluster, replicas=replicas))

    def with_traffic(self, scenario: Scenario, which: int, seed: int) -> Scenario:
        """Return the scenario with a drawn rate and arrival process; the shapes of all arrays stay as they are."""
        rng = _stream(seed, _TRAFFIC)
        process = scenario.workload.arrivals
        rate = process.rate_rps
        if self.arrivals:
            process = self.arrivals[int(rng.integers(len(self.arrivals)))]
        if self.rate_rps:
            rate = _between(self.rate_rps, rng)
        elif self.load:
            capacity = self.scenarios[which].capacity_rps
            assert capacity is not None  # `check` has seen to that
            rate = _between(self.load, rng) * capacity
        return replace(scenario, workload=replace(scenario.workload, arrivals=replace(process, rate_rps=rate)))


def load_sampler(path: str | Path) -> ScenarioSampler:
    """Read a sampler's file and check it.

    Raises:
        SpecError: it is no valid sampler.
    """
    path = Path(path)
    sampler = load_file(ScenarioSampler, path, _references(path.parent))
    anchor = partial(_anchored, folder=path.parent)
    return checked(replace(sampler, scenarios=tuple(map(anchor, sampler.scenarios))))


def read_sampler(text: str, label: str) -> ScenarioSampler:
    """Return a sampler from the text that `dump_yaml` made of one; `label` says where it stands."""
    return checked(loads(ScenarioSampler, text, Source(label, references=_references(Path()))))


def _references(folder: Path) -> dict[type, Reference]:
    return {
        ArrivalSpec: lambda name, where: load_arrivals(anchored(name, folder), where=where),
        SampledScenario: lambda name, _: SampledScenario(name),
    }


def _anchored(entry: SampledScenario, folder: Path) -> SampledScenario:
    cluster = anchored(entry.cluster, folder) if entry.cluster else None
    return replace(entry, scenario=anchored(entry.scenario, folder), cluster=cluster)


def checked(sampler: ScenarioSampler) -> ScenarioSampler:
    """Return the sampler if scenarios can be drawn from it.

    Raises:
        SpecError: it contradicts itself, or names a scenario or cluster that does not exist.
    """
    if not sampler.scenarios:
        raise SpecError("a sampler needs at least one scenario", where=location(sampler, "scenarios"))
    for key in ("rate_rps", "load", "latency_scale"):
        ends = getattr(sampler, key)
        if len(ends) > 2 or list(ends) != sorted(ends):
            raise SpecError(f"a range is [lowest, highest] or [value], got {list(ends)}", where=location(sampler, key))
    if sampler.rate_rps and sampler.load:
        raise SpecError("give 'rate_rps' or 'load', not both", where=location(sampler, "load"))
    for i, process in enumerate(sampler.arrivals):
        if process.kind == "closed":
            raise SpecError("a closed loop has no arrival rate to draw", where=location(sampler, f"arrivals[{i}]"))
        if process.preset is not None:
            message = f"write the name '{process.preset}' alone, in place of this mapping"
            raise SpecError(message, where=location(sampler, f"arrivals[{i}]"))
    for i, entry in enumerate(sampler.scenarios):
        where = location(sampler, f"scenarios[{i}]")
        if sampler.load and entry.capacity_rps is None:
            raise SpecError("'load' is a share of 'capacity_rps', which this scenario lacks", where=where)
        try:
            kind = load_scenario(entry.scenario).workload.arrivals.kind
            if entry.cluster:
                load_cluster(entry.cluster)
        except SpecError as error:
            raise SpecError(error.message, where=where) from error
        if kind == "closed" and not sampler.arrivals and (sampler.rate_rps or sampler.load):
            raise SpecError("a closed loop has no arrival rate to draw; give 'arrivals'", where=where)
    return sampler


def _between(ends: tuple[float, ...], rng: np.random.Generator) -> float:
    """Return a number between the ends of a range, uniform in its logarithm."""
    low, high = math.log(ends[0]), math.log(ends[-1])
    return math.exp(low + (high - low) * float(rng.random()))


def _stream(seed: int, *which: int) -> np.random.Generator:
    return np.random.default_rng([seed, 0x5CE7A510, *which])
