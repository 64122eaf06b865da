"""The report of a comparison, in Markdown: differences to Aragog are paired by seed, with 95% bootstrap intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.harness.results import Results, RunResult
from aragog_env.harness.statistics import Estimate, bootstrap

from .decisions import CHARGED, LOAD, Times, charged
from .plan import (
    COMPARED,
    LEARNED,
    OTHERS,
    PRICED,
    REFERENCE,
    RULE,
    Case,
    Ceilings,
    Size,
    at_load,
    cases,
    unseen_scenarios,
)

_HEADER: Final = (
    "policy", "seeds", "JCT mean, s", "P50", "P95", "JCT mean against Aragog, %", "req/s", "right, %",
    "against Aragog, points", "decision, ms",
)  # fmt: skip
_RIGHT: Final = "accuracy"
_EXPECTED: Final = "accuracy_expected"
Runs = dict[str, dict[int, RunResult]]
"""Runs of a scenario by policy and seed."""


def report(results: Results, size: Size, data: Path, ceilings: Ceilings, out: Path, models: Path) -> str:
    """Return all tables."""
    times: dict[str, Times] = json.loads((out / "decisions.json").read_text())
    terms = ", ".join(f"{pair} {price:g} ({most:g})" for pair, (price, most) in size.prices.items())
    lines = [
        "# Learned schedulers against Aragog",
        "",
        f"Size `{size.name}`: {size.requests} requests per episode, seeds 0 to {size.seeds - 1} (other policies "
        f"0 to {size.other_seeds - 1}), trained at load {size.train_load:g} on other traffic. Load is relative to Aragog's "
        "throughput ceiling with the same viable sets. Every request counts: episodes run until all are served. Brackets: 95% "
        "intervals of the mean over seeds, paired; bold: they leave out zero.",
        "",
        "## Mean JCT against Aragog's",
        "",
        *_overview(results, size, ceilings, models, json.loads((out / "limits.json").read_text())),
        "",
        "*Least*: what the fluid model allows at best inside Aragog's viable sets where a request has one call at a time "
        "(`scripts/learning/limits.py`), for a steady stream that never ends; episodes end, so that close to the "
        "ceiling they can be below it; where nothing is said, it cannot be served for ever, or requests have parallel calls. "
        "*Right*: share of right answers against Aragog's; *expected*: the mean "
        "probability of one, without the luck of grading. What the policies do is described in docs/learning.md; "
        "*priced*, like the two learned ones: with a price on accuracy instead of viable sets, in seconds per point (and the "
        f"highest loss considered, in points): {terms}.",
        "",
        "## Families that no training saw",
        "",
    ]
    for case, scenario in unseen_scenarios(size, ceilings, data):
        lines += [f"### {scenario.name}", "", *_cell(results, case, scenario.name, models), ""]
    lines += ["## Time of decisions", "", *_decisions(results, size, ceilings, times, models), ""]
    for case in cases(size):
        for load in size.loads:
            name = at_load(case, size, load, ceilings).name
            title = f"## {name} of {ceilings[case, '']:.3g} req/s"
            lines += [title, "", *_cell(results, case, name, models), ""]
    return "\n".join(lines) + "\n"


def _overview(
    results: Results, size: Size, ceilings: Ceilings, models: Path, limits: dict[str, float | None]
) -> list[str]:
    rows = []
    for case in cases(size):
        for load in size.loads:
            name = at_load(case, size, load, ceilings).name
            runs, least = _runs(results, case, name, models), limits[name]
            if REFERENCE not in runs:
                continue
            row = [str(case), f"{load:g}", f"{_mean(runs[REFERENCE], 'jct_mean_s'):.2f}"]
            row.append("" if least is None else f"{least:.2f}")
            shown = (RULE, PRICED, *LEARNED)
            row += [_percent(jct_change(runs, policy)) if policy in runs else "" for policy in shown]
            for policy in LEARNED:
                row.append(_points(runs, policy, _RIGHT) if policy in runs else "")
                row.append(_points(runs, policy, _EXPECTED) if policy in runs else "")
            rows.append(row)
    header = (
        "case", "load", "Aragog, s", "least, s", *(f"{name}, %" for name in (RULE, PRICED, *LEARNED)),
        *(f"{name}: {what}, points" for name in LEARNED for what in ("right", "expected")),
    )  # fmt: skip
    return _table(header, rows)


def _points(runs: Runs, policy: str, metric: str) -> str:
    """Return by how many points an accuracy differs from Aragog's, paired by seed."""
    found = bootstrap(100 * _difference(runs, policy, metric))
    text = f"{found.value:+.2f}"
    return text + (f" [{found.low:+.2f}, {found.high:+.2f}]" if np.isfinite(found.low) else "")


def jct_change(runs: Runs, policy: str) -> Estimate:
    """Return by what share a policy's mean JCT differs from Aragog's, paired by seed: the mean over seeds of ratios - 1."""
    both = sorted(runs[policy].keys() & runs[REFERENCE].keys())
    ours, reference = (np.array([runs[p][s].metrics["jct_mean_s"] for s in both]) for p in (policy, REFERENCE))
    return bootstrap(ours / reference - 1)


def _difference(runs: Runs, policy: str, metric: str) -> NDArray[np.float64]:
    both = sorted(runs[policy].keys() & runs[REFERENCE].keys())
    return np.array([runs[policy][s].metrics[metric] - runs[REFERENCE][s].metrics[metric] for s in both])


def _cell(results: Results, case: Case, scenario: str, models: Path) -> list[str]:
    runs, rows = _runs(results, case, scenario, models), []
    for policy, mine in runs.items():
        jct = [f"{_mean(mine, f'jct_{part}_s'):.2f}" for part in ("mean", "p50", "p95")]
        change = _percent(jct_change(runs, policy)) if policy != REFERENCE else ""
        right = "" if policy == REFERENCE else f"{100 * _difference(runs, policy, _RIGHT).mean():+.2f}"
        rows.append([
            policy, str(len(mine)), *jct, change, f"{_mean(mine, 'bulk_throughput_rps'):.3g}",
            f"{100 * _mean(mine, _RIGHT):.1f}", right, f"{_mean(mine, 'decision_p50_ms'):.3f}",
        ])  # fmt: skip
    return _table(_HEADER, rows)


def _decisions(results: Results, size: Size, ceilings: Ceilings, times: dict[str, Times], models: Path) -> list[str]:
    rows = []
    for case in cases(size):
        scenario, mine = at_load(case, size, LOAD, ceilings), times[str(case)]
        free, row = _runs(results, case, scenario.name, models), [str(case), *(f"{ms:.3f}" for ms in mine.values())]
        for measured in CHARGED:
            name, policy = charged(case, measured, models, times), measured.partition(",")[0]
            paid = {run.seed: run for run in results.ok if (run.scenario, run.policy) == (scenario.name, name)}
            both = sorted(paid.keys() & free.get(policy, {}).keys())
            ratios = [paid[s].metrics["jct_mean_s"] / free[policy][s].metrics["jct_mean_s"] - 1 for s in both]
            row.append(_percent(bootstrap(np.array(ratios))) if ratios else "")
        rows.append(row)
    header = (
        "case",
        *(f"{name}, ms" for name in next(iter(times.values()))),
        *(f"JCT when charged, {p}, %" for p in CHARGED),
    )
    return [
        f"Milliseconds per dispatch at load {LOAD:g} (all time in `act`, waiting included, over the dispatches); *batched*: "
        "the network alone, per decision of 64 at once. Then by how much the mean JCT changes when every dispatch takes that "
        "time, one after the other (`charged@MS:POLICY`).",
        "",
        *_table(header, rows),
    ]


def _runs(results: Results, case: Case, scenario: str, models: Path) -> Runs:
    """Return the runs of a scenario by policy, under its short name, and by seed."""
    short = {case.policy(name, models): name for name in (*COMPARED, *OTHERS)}
    found: Runs = {}
    for run in results.ok:
        if run.scenario == scenario and run.policy in short:
            found.setdefault(short[run.policy], {})[run.seed] = run
    return found


def _mean(runs: dict[int, RunResult], metric: str) -> float:
    return float(np.mean([run.metrics[metric] for run in runs.values()]))


def _percent(estimate: Estimate) -> str:
    text = f"{100 * estimate.value:+.1f}"
    if np.isfinite(estimate.low):
        text += f" [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
    return f"**{text}**" if estimate.high < 0 or estimate.low > 0 else text


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
