"""What traffic is: an arrival process times a mix of workflows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .bounds import NonNegative, NonNegativeInt, Positive

ArrivalKind = Literal["poisson", "gamma", "mmpp", "schedule", "closed", "trace"]
TraceFormat = Literal["auto", "azure2023", "azure2024", "burstgpt", "mooncake"]


@dataclass(frozen=True)
class RateStep:
    """From `start_s` on, the arrival rate is `rate_rps`."""

    start_s: NonNegative
    rate_rps: NonNegative


@dataclass(frozen=True)
class ArrivalSpec:
    """When requests arrive. Which fields count depends on `kind`; `rate_rps` is always the mean rate.

    * ``poisson``: exponential gaps.
    * ``gamma``: gamma gaps with coefficient of variation `cv`.
    * ``mmpp``: Poisson whose rate jumps between `mmpp_rates` (relative to the mean) after exponential
      sojourns of mean `mmpp_sojourn_s`.
    * ``schedule``: Poisson with the piecewise constant rate `steps`, repeated every `period_s` if that is
      set, and scaled so that the mean over one period (or over the steps) is `rate_rps` when that is set.
    * ``closed``: `users` users, each with one request in flight and an exponential think time `think_s`
      between.
    * ``trace``: the arrival times of a public trace file, rescaled to `rate_rps` when that is set.
    """

    kind: ArrivalKind = "poisson"
    rate_rps: Positive | None = None
    cv: Positive = 1.0
    mmpp_rates: tuple[NonNegative, ...] = ()
    mmpp_sojourn_s: tuple[Positive, ...] = ()
    steps: tuple[RateStep, ...] = ()
    period_s: Positive | None = None
    users: NonNegativeInt = 0
    think_s: NonNegative = 0.0
    path: str | None = None
    format: TraceFormat = "auto"
    start_s: NonNegative = 0.0
    """Trace: skip this much of the file. Every seed then starts at a random offset unless `random_offset` is
    off."""
    random_offset: bool = True
    preset: str | None = None
    """In a scenario file: take the arrivals of this name or file, changed by the keys given beside it."""
    source: str = ""


@dataclass(frozen=True)
class MixEntry:
    """A workflow and its share of the requests."""

    workflow: str
    weight: Positive = 1.0
    outcomes: str | None = None
    """Outcome table: an npz file, or `synthetic` for the generator. None: the table in the workflow's own folder that
    was made with exactly the cluster's models, else the generator."""


@dataclass(frozen=True)
class WorkloadSpec:
    """Arrivals times a mix of workflows."""

    arrivals: ArrivalSpec
    mix: tuple[MixEntry, ...]
