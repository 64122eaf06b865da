"""From episodes to numbers: throughput in the steady part, latencies, accuracy, and gains paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from aragog_env.episode import EpisodeLog
from aragog_env.errors import AragogError
from aragog_env.harness.results import Results, RunResult
from aragog_env.harness.statistics import Estimate, bootstrap

from .plan import Pair, Setting

STEADY = (0.2, 0.8)
"""Throughput is taken between these shares of an episode's completions: neither while servers fill up nor while they drain."""
LATENCIES = ("jct_mean_s", "jct_p25_s", "jct_p50_s", "jct_p95_s")


def steady_throughput_rps(log: EpisodeLog) -> float:
    """Return completions per second between 20% and 80% of all completions; nan where fewer than ten are left."""
    finish_s = np.sort(log.requests["finish_s"][np.isfinite(log.requests["finish_s"])])
    first, last = (int(share * (len(finish_s) - 1)) for share in STEADY)
    if last - first < 10 or finish_s[last] <= finish_s[first]:
        return float("nan")
    return float((last - first) / (finish_s[last] - finish_s[first]))


@dataclass(frozen=True)
class Point:
    """One setting at one rate: a value per seed for each measure."""

    rate_rps: float
    values: dict[str, NDArray[np.float64]]  # each (seeds,)

    def mean(self, name: str) -> float:
        """Return the mean over seeds."""
        return float(self.values[name].mean())

    def estimate(self, name: str) -> Estimate:
        """Return the mean with its 95% bootstrap interval over seeds."""
        return bootstrap(self.values[name])


@dataclass(frozen=True)
class Curve:
    """One setting over its rates, ascending."""

    setting: Setting
    points: tuple[Point, ...]

    @cached_property
    def best(self) -> Point:
        """The rate with the highest throughput: the paper's serving capacity (section 5.1) is its throughput."""
        return max(self.points, key=lambda p: p.mean("throughput_rps"))

    @property
    def top(self) -> Point:
        """The highest rate."""
        return self.points[-1]

    @property
    def ceiling(self) -> NDArray[np.float64]:
        """Highest throughput, (seeds,)."""
        return self.best.values["throughput_rps"]


@dataclass
class Measured:
    """All curves, read from a results folder once."""

    results: Results
    seeds: int
    _throughput: dict[str, float] = field(default_factory=dict)

    def curve(self, pair: Pair, setting: Setting, rates_rps: Sequence[float]) -> Curve:
        """Return a setting's curve.

        Raises:
            AragogError: a run is missing or failed.
        """
        scenario = pair.on(setting.cluster, setting.texts).name
        points = []
        for rate in sorted(rates_rps):
            runs = [self._run(setting.policy, scenario, seed, rate) for seed in range(self.seeds)]
            names = (*LATENCIES, "accuracy", "accuracy_expected", "accuracy_relative", "utilisation", "decision_p50_ms")
            values = {name: np.array([run.metrics[name] for run in runs]) for name in names}
            values["throughput_rps"] = np.array([self._steady(run) for run in runs])
            points.append(Point(rate, values))
        return Curve(setting, tuple(points))

    def _run(self, policy: str, scenario: str, seed: int, rate: float) -> RunResult:
        run = self.results.get((policy, scenario, seed, rate))
        if run is None:
            failed = [r.error for r in self.results.failed if r.policy == policy and r.scenario == scenario]
            reason = f"; it failed: {failed[-1]}" if failed else ""
            raise AragogError(f"there is no result of {policy} on {scenario} at {rate:g} req/s, seed {seed}{reason}")
        return run

    def _steady(self, run: RunResult) -> float:
        assert run.episode is not None
        if run.episode not in self._throughput:
            self._throughput[run.episode] = steady_throughput_rps(self.results.log(run))
        return self._throughput[run.episode]


def gain(ours: NDArray[np.float64], baseline: NDArray[np.float64]) -> Estimate:
    """Return ours / baseline - 1, paired by seed."""
    return bootstrap(ours / baseline - 1)


def cut(ours: NDArray[np.float64], baseline: NDArray[np.float64]) -> Estimate:
    """Return 1 - ours / baseline, paired by seed."""
    return bootstrap(1 - ours / baseline)
