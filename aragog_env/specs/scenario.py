"""The unit of benchmarking: cluster x workload x objective x horizon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .bounds import Count, NonNegative, NonNegativeInt, Positive
from .cluster import ClusterSpec
from .workload import WorkloadSpec


@dataclass(frozen=True)
class HorizonSpec:
    """How long an episode lasts: `requests` arrivals, drained, or cut (truncated) at `duration_s`."""

    requests: Count = 500
    duration_s: Positive | None = None
    warmup_requests: NonNegativeInt = 0
    """The first requests of an episode count for no metric."""


@dataclass(frozen=True)
class ObjectiveSpec:
    """What the reward and the SLO metrics are made of."""

    slo_s: Positive | None = None
    """Absolute workflow latency limit; None means `slo_scale` times each request's standalone latency."""
    slo_scale: Positive = 5.0
    accuracy_weight: NonNegative = 1.0
    """Weight of the accuracy term, paid when a request completes."""
    beta_per_s: NonNegative = 0.01
    """Discount rate: `info["discount"] = exp(-beta_per_s * dt)`."""


@dataclass(frozen=True)
class ObservationSpec:
    """Sizes of the observation arrays."""

    ready_slots: Count = 8
    """K: how many ready calls the action can choose from."""


@dataclass(frozen=True)
class Scenario:
    """A benchmark scenario, complete: two equal scenarios and equal seeds give equal bytes."""

    name: str
    cluster: ClusterSpec
    workload: WorkloadSpec
    horizon: HorizonSpec = field(default_factory=HorizonSpec)
    objective: ObjectiveSpec = field(default_factory=ObjectiveSpec)
    observation: ObservationSpec = field(default_factory=ObservationSpec)
    description: str = ""
    locations: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each key stands in its file, for error messages."""
