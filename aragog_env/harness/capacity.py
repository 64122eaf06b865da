"""Rate sweeps: throughput-latency curve, throughput ceiling, and capacity under an SLO, per policy.

* *Ceiling*: the highest throughput over the sweep, which includes rates far beyond what can be served
  (Aragog's serving capacity, a completion rate without a latency limit).
* *Capacity*: the largest arrival rate at which P95 of the JCT is within the SLO (at least 95% of the
  requests meet theirs) and the backlog does not grow. Found by bisection.

All policies advance round by round, so that the processes stay busy although each search is sequential.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, floor, isfinite, log10
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import SpecError
from ..files import write_atomically
from ..specs.override import override
from ..specs.scenario import Scenario
from .backends import Runner
from .defaults import CAPACITY_SEEDS, DEFAULT_POLICIES
from .evaluate import Policies, check_policies, default_folder, load_scenarios, policy_maker, run_jobs
from .executor import Executor, ExecutorName
from .jobs import BackendMaker, Episodes, Job, simulated
from .progress import Progress, Silent
from .results import Results, finite, open_for_writing
from .statistics import Estimate, bootstrap

CAPACITY_FILE: Final = "capacity.json"
_SATURATED_GROWTH = 0.2
_STABLE_GROWTH = 0.05
_SLO_SHARE = 0.95
_MAX_DOUBLINGS = 14


@dataclass(frozen=True)
class SweepSettings:
    """How finely to look."""

    rates: tuple[float, ...] = ()
    """Rates of the curve; empty: `fractions` of the ceiling, which is looked for first."""
    window_s: float = 120.0
    """Every rate is offered for at least this long: a burst shorter than a few completion times shows
    neither a steady state nor a ceiling. Episodes at high rates have more requests than the scenario says."""
    fractions: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.2)
    precision: float = 0.05
    """Bisection ends when the bracket around the capacity is this narrow, relatively."""
    max_bisections: int = 6


@dataclass(frozen=True)
class PolicyCapacity:
    """What the sweep found for one policy."""

    policy: str
    ceiling_rps: Estimate
    ceiling_rate_rps: float
    """The arrival rate at which the ceiling was reached."""
    capacity_rps: float
    """0 when even the lowest rate tried misses the SLO."""
    infeasible_rps: float
    """The lowest rate tried that is not sustained: the capacity lies between the two. nan if all were."""
    rates_rps: tuple[float, ...]
    error: str | None = None


@dataclass
class Point:
    """The runs of one policy at one rate."""

    rate_rps: float
    metrics: list[dict[str, float]] = field(default_factory=list)

    def mean(self, name: str) -> float:
        """Return the mean of a metric over seeds."""
        return float(np.mean([m[name] for m in self.metrics]))

    @property
    def saturated(self) -> bool:
        """Whether the rate is far beyond what can be served."""
        return self.mean("backlog_growth") > _SATURATED_GROWTH or self.mean("unfinished") > 0.5 * self.mean("requests")

    @property
    def sustained(self) -> bool:
        """Whether P95 JCT is within the SLO and the backlog does not grow; False where that is unknown.

        The requests in flight fluctuate by their square root, which in a short episode looks like growth;
        only when the latencies also grow with the time of arrival is it taken for that.
        """
        if self.saturated or not self.mean("slo_attainment") >= _SLO_SHARE:
            return False
        growths = [self.mean("backlog_growth"), self.mean("latency_trend")]
        return min((g for g in growths if isfinite(g)), default=1.0) <= _STABLE_GROWTH


Search = Generator[list[float], Mapping[float, Point], PolicyCapacity]


def search(policy: str, first_rate_rps: float, settings: SweepSettings) -> Search:
    """Look for ceiling and capacity: yields rates, is sent all points so far, returns what it found."""
    if settings.rates:
        curve = [round_rate(rate) for rate in settings.rates]
        points = yield curve
    else:
        rate = round_rate(first_rate_rps)
        points = yield [rate]
        for _ in range(_MAX_DOUBLINGS):
            if points[rate].saturated:
                break
            rate = round_rate(2 * rate)
            points = yield [rate]
        ceiling = max(_throughput(p) for p in points.values())
        curve = [round_rate(ceiling * f) for f in settings.fractions]
        points = yield [rate for rate in curve if rate not in points]
    for _ in range(settings.max_bisections):
        low, high = _bracket(points)
        if not isfinite(high) or (low > 0 and high / low <= 1 + settings.precision):
            break
        middle = round_rate((low * high) ** 0.5 if low > 0 else high / 2)
        if middle in points:
            break
        points = yield [middle]
    low, high = _bracket(points)
    best = max(points.values(), key=_throughput)
    ceiling_rps = bootstrap([m["bulk_throughput_rps"] for m in best.metrics])
    return PolicyCapacity(policy, ceiling_rps, best.rate_rps, low, high, tuple(sorted(points)))


def capacity(
    policies: Policies = DEFAULT_POLICIES,
    scenario: str | Scenario = "default",
    seeds: int | Sequence[int] = CAPACITY_SEEDS,
    *,
    settings: SweepSettings | None = None,
    out: str | Path | None = None,
    workers: int | None = None,
    executor: Executor | ExecutorName = "local",
    progress: Progress | None = None,
    resume: bool = False,
    make_backend: BackendMaker = simulated,
    command: Sequence[str] | None = None,
) -> tuple[Results, list[PolicyCapacity]]:
    """Sweep the arrival rate for every policy; see the module's text for what is looked for.

    The arguments are those of `evaluate`. A resumed sweep repeats the same search and finds its runs on disk.
    """
    (base,) = load_scenarios(scenario, check=make_backend is simulated)
    if base.workload.arrivals.kind == "closed":
        raise SpecError("a closed loop has no arrival rate to sweep; use open arrivals, or 'aragog evaluate'")
    names = check_policies(policies)
    settings = settings or SweepSettings()
    seed_list = list(range(seeds)) if isinstance(seeds, int) else [int(s) for s in seeds]
    folder = Path(out) if out is not None else default_folder(f"capacity-{base.name}")
    first = base.workload.arrivals.rate_rps or 1.0
    recorded = {"policies": names, "seeds": seed_list, "sweep": asdict(settings)}
    progress = progress or Silent()
    with open_for_writing(
        folder, [base], kind="capacity", resume=resume, command=command, settings=recorded
    ) as results:
        searches = {name: search(name, first, settings) for name in names}
        where = executor if isinstance(executor, Executor) else Executor(executor, workers)
        with where.pool(Episodes(policy_maker(policies), make_backend)) as pool:
            try:
                found = _advance(searches, base, settings, seed_list, results, pool, progress)
            except SpecError:
                results.discard_if_empty()
                raise
            finally:
                progress.end()
        data = {"seeds": len(seed_list), "policies": [asdict(found[name]) for name in names]}
        write_atomically(folder / CAPACITY_FILE, json.dumps(finite(data), indent=2).encode() + b"\n")
    return results, [found[name] for name in names]


def load_capacity(folder: Path) -> list[PolicyCapacity]:
    """Read what `capacity` found; empty when `folder` holds no finished sweep."""
    path = folder / CAPACITY_FILE
    if not path.exists():
        return []
    found = []
    for data in json.loads(path.read_text())["policies"]:
        estimate = Estimate(**{k: _nan(v) for k, v in data.pop("ceiling_rps").items()})
        data["rates_rps"] = tuple(data["rates_rps"])
        data = {k: _nan(v) if k not in ("error", "policy") else v for k, v in data.items()}
        found.append(PolicyCapacity(ceiling_rps=estimate, **data))
    return found


def points_of(results: Results, policy: str) -> dict[float, Point]:
    """Return the points of the sweep of one policy, by rate."""
    points: dict[float, Point] = {}
    for run in results.ok:
        if run.policy == policy and run.rate_rps is not None:
            points.setdefault(run.rate_rps, Point(run.rate_rps)).metrics.append(run.metrics)
    return dict(sorted(points.items()))


def round_rate(rate_rps: float) -> float:
    """Round to three significant digits, so that a rate is one number wherever it is computed or read."""
    return round(rate_rps, 2 - floor(log10(rate_rps)))


def at_rate(base: Scenario, rate_rps: float, settings: SweepSettings) -> Scenario:
    """Return the scenario at another arrival rate, long enough to say something about it."""
    requests = max(base.horizon.requests, ceil(rate_rps * settings.window_s))
    return override(base, rate_rps=rate_rps, requests=requests)


def _advance(
    searches: dict[str, Search],
    base: Scenario,
    settings: SweepSettings,
    seeds: list[int],
    results: Results,
    pool: Runner,
    progress: Progress,
) -> dict[str, PolicyCapacity]:
    """Run all searches, round by round, to their ends."""
    found: dict[str, PolicyCapacity] = {}
    points: dict[str, dict[float, Point]] = {name: {} for name in searches}
    wanted = {name: next(s) for name, s in searches.items()}
    while wanted:
        jobs = [
            Job(name, at_rate(base, rate, settings), seed, str(results.folder), rate)
            for name, rates in wanted.items()
            for rate in rates
            for seed in seeds
        ]
        run_jobs(results, jobs, pool, progress)
        for name, rates in list(wanted.items()):
            failure = _collect(results, base, name, rates, seeds, points[name])
            if failure is not None:
                nan = float("nan")
                found[name] = PolicyCapacity(name, Estimate(nan, nan, nan, 0), nan, nan, nan, (), failure)
                del wanted[name]
                continue
            try:
                wanted[name] = searches[name].send(points[name])
            except StopIteration as end:
                found[name] = end.value
                del wanted[name]
    return found


def _collect(
    results: Results,
    base: Scenario,
    policy: str,
    rates: list[float],
    seeds: list[int],
    into: dict[float, Point],
) -> str | None:
    """Put the runs of a round into points; return the error of a policy that failed."""
    for rate in rates:
        runs = [results.get((policy, base.name, seed, rate)) for seed in seeds]
        ok = [run for run in runs if run is not None]
        if len(ok) < len(runs):
            errors = [run.error for run in results.failed if run.policy == policy and run.error]
            return errors[-1] if errors else "a run is missing"
        into[rate] = Point(rate, [run.metrics for run in ok])
    return None


def _throughput(point: Point) -> float:
    value = point.mean("bulk_throughput_rps")
    return value if isfinite(value) else point.mean("throughput_rps")


def _bracket(points: Mapping[float, Point]) -> tuple[float, float]:
    """Return the largest rate up to which all are sustained (0: none), and the lowest that is not (nan)."""
    low = 0.0
    for rate in sorted(points):
        if not points[rate].sustained:
            return low, rate
        low = rate
    return low, float("nan")


def _nan(value: Any) -> Any:
    return float("nan") if value is None else value
