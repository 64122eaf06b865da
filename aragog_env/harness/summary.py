"""Tables of results: one row per policy, 95% intervals over seeds, paired differences to a baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..errors import SpecError, did_you_mean
from .metrics import METRICS, MetricInfo
from .results import Results, RunResult
from .statistics import Estimate, bootstrap, iqm, mean, paired

HEADLINE: Final = (
    "throughput_rps",
    "jct_mean_s",
    "jct_p50_s",
    "jct_p95_s",
    "jct_p99_s",
    "slo_attainment",
    "req95",
    "accuracy",
    "accuracy_relative",
    "gpu_seconds_per_request",
)
TERMINAL: Final = (
    "jct_mean_s",
    "jct_p95_s",
    "slo_attainment",
    "throughput_rps",
    "accuracy",
    "gpu_seconds_per_request",
)
COMPARABLE: Final = ("slo_attainment", "req95", "accuracy", "accuracy_relative", "utilisation")
"""Metrics whose mean over different scenarios means something."""


@dataclass(frozen=True)
class Cell:
    """One metric of one policy."""

    estimate: Estimate
    iqm: float
    difference: Estimate | None = None
    """To the baseline, on the same seeds; None for the baseline itself."""

    @property
    def significant(self) -> bool:
        """Whether the interval of the difference leaves out zero."""
        return self.difference is not None and (self.difference.low > 0 or self.difference.high < 0)


@dataclass(frozen=True)
class Row:
    """One policy."""

    policy: str
    seeds: int
    failed: int
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Summary:
    """A table; `scenario` is None when it is over all scenarios."""

    scenario: str | None
    baseline: str | None
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    requests: int
    """Counted requests of all runs together."""


def summarise(results: Results, metrics: Sequence[str] = tuple(METRICS), baseline: str | None = None) -> list[Summary]:
    """Return one table per scenario and, for several scenarios, one over all with the comparable metrics."""
    scenarios = list(dict.fromkeys(run.scenario for run in results.runs))
    base = choose_baseline([run.policy for run in results.runs], baseline)
    runs = [run for run in results.runs if run.rate_rps is None]
    tables = [_table(s, [run for run in runs if run.scenario == s], metrics, base) for s in scenarios]
    if len(scenarios) > 1:
        tables.append(_table(None, runs, [m for m in metrics if m in COMPARABLE], base))
    return tables


USUAL_BASELINES = ("round_robin", "least_loaded")


def choose_baseline(policies: Iterable[str], wanted: str | None = None) -> str | None:
    """Return the policy that differences are taken to: the wanted one, else the first of `USUAL_BASELINES`, else the first."""
    names = list(dict.fromkeys(policies))
    if wanted is not None:
        if wanted not in names:
            hint = did_you_mean(wanted, names)
            raise SpecError(f"baseline '{wanted}' is not among the policies of these results.{hint}")
        return wanted
    return next((name for name in (*USUAL_BASELINES, *names) if name in names), None)


def short_names(policies: Iterable[str]) -> dict[str, str]:
    """Return the names to show: of a model's path its last part, unless two policies would look the same."""
    names = list(dict.fromkeys(policies))
    short = {}
    for name in names:
        kind, colon, rest = name.partition(":")
        path, comma, arguments = rest.partition(",")
        last = path if "=" in path else path.rstrip("/").rpartition("/")[2]
        short[name] = f"{kind}{colon}{last}{comma}{arguments}"
    return {name: short[name] if list(short.values()).count(short[name]) == 1 else name for name in names}


def format_value(name: str, value: float) -> str:
    """Return a value as it is shown in tables: per cent scaled, fixed decimals, an en dash for nan."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    info = METRICS[name]
    text = f"{value * 100 if info.unit == '%' else value:.{info.decimals}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text  # no minus zero


def format_interval(name: str, estimate: Estimate) -> str:
    """Return the interval in brackets, or nothing when there is none."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    return f"[{format_value(name, estimate.low)}, {format_value(name, estimate.high)}]"


def heading(name: str) -> str:
    """Return the label of a metric with its unit."""
    info: MetricInfo = METRICS[name]
    return f"{info.label} ({info.unit})" if info.unit else info.label


def as_data(tables: Sequence[Summary]) -> list[dict[str, Any]]:
    """Return tables as plain data, for JSON."""
    return [
        {
            "scenario": table.scenario,
            "baseline": table.baseline,
            "requests": table.requests,
            "policies": [
                {
                    "policy": row.policy,
                    "seeds": row.seeds,
                    "failed": row.failed,
                    "metrics": {name: _cell_data(cell) for name, cell in row.cells.items()},
                }
                for row in table.rows
            ],
        }
        for table in tables
    ]


def _cell_data(cell: Cell) -> dict[str, Any]:
    e = cell.estimate
    data: dict[str, Any] = {"mean": e.value, "ci95": [e.low, e.high], "iqm": cell.iqm}
    if cell.difference is not None:
        data["difference"] = {
            "mean": cell.difference.value,
            "ci95": [cell.difference.low, cell.difference.high],
        }
    return data


def _table(scenario: str | None, runs: list[RunResult], metrics: Sequence[str], baseline: str | None) -> Summary:
    by_policy: dict[str, list[RunResult]] = {}
    for run in runs:
        by_policy.setdefault(run.policy, []).append(run)
    base = {(r.scenario, r.seed): r for r in by_policy.get(baseline or "", []) if r.status == "ok"}
    rows = tuple(_row(policy, its, metrics, base if policy != baseline else {}) for policy, its in by_policy.items())
    counted = sum(int(run.metrics["requests"]) for run in runs if run.status == "ok")
    return Summary(scenario, baseline, tuple(metrics), rows, counted)


def _row(policy: str, runs: list[RunResult], metrics: Sequence[str], base: Mapping[tuple[str, int], RunResult]) -> Row:
    ok = sorted((run for run in runs if run.status == "ok"), key=lambda run: (run.scenario, run.seed))
    cells = {}
    for name in metrics:
        if not ok:
            nan = float("nan")
            cells[name] = Cell(Estimate(nan, nan, nan, 0), nan)
            continue
        values = _by_scenario(ok, name)
        pairs = [(run, base[key]) for run in ok if (key := (run.scenario, run.seed)) in base]
        difference = None
        if pairs:
            difference = paired(_by_scenario([a for a, _ in pairs], name), _by_scenario([b for _, b in pairs], name))
        cells[name] = Cell(bootstrap(values, mean), float(iqm(np.concatenate(values))), difference)
    return Row(policy, len(ok), len(runs) - len(ok), cells)


def _by_scenario(runs: Sequence[RunResult], name: str) -> list[list[float]]:
    groups: dict[str, list[float]] = {}
    for run in runs:
        groups.setdefault(run.scenario, []).append(run.metrics[name])
    return list(groups.values())
