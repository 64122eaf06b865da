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

from .decisions import LOAD, Times
from .plan import LEARNED, OTHERS, REFERENCE, RULE, Size, at_load, charged, unseen_scenarios

_SHOWN: Final = (REFERENCE, RULE, *LEARNED, *OTHERS)
_HEADER: Final = (
    "policy", "seeds", "JCT mean, s", "P50", "P95", "JCT mean against Aragog, %", "req/s", "right, %",
    "against Aragog, points", "decision, ms",
)  # fmt: skip


def report(results: Results, size: Size, data: Path, ceilings: dict[str, float], out: Path) -> str:
    """Return all tables."""
    times: dict[str, Times] = json.loads((out / "decisions.json").read_text())
    lines = [
        "# Learned schedulers against Aragog",
        "",
        f"Size `{size.name}`: {size.requests} requests per episode, seeds 0 to {size.seeds - 1} (other policies "
        f"0 to {size.other_seeds - 1}), trained at load {size.train_load:g} on other traffic. Load is relative to Aragog's "
        "throughput ceiling with the learned router; all policies choose inside the same router's viable sets but "
        "`least_loaded`. Every request counts: episodes run until all are served. Accuracy is the mean probability that "
        "what was served is right. Brackets: 95% intervals of the mean over seeds, paired.",
        "",
        "## Mean JCT of the learned schedulers against Aragog's",
        "",
        *_overview(results, size, ceilings),
        "",
        "## Families that no training saw",
        "",
    ]
    for scenario in unseen_scenarios(size, ceilings, data):
        lines += [f"### {scenario.name}", "", *_cell(results, scenario.name), ""]
    lines += ["## Time of decisions", "", *_decisions(results, size, ceilings, times), ""]
    for pair in size.pairs:
        for load in size.loads:
            name = at_load(pair, size, load, ceilings[pair]).name
            lines += [f"## {name} of {ceilings[pair]:.3g} req/s", "", *_cell(results, name), ""]
    return "\n".join(lines) + "\n"


def _overview(results: Results, size: Size, ceilings: dict[str, float]) -> list[str]:
    rows = []
    for pair in size.pairs:
        for load in size.loads:
            name = at_load(pair, size, load, ceilings[pair]).name
            runs = _runs(results, name)
            row = [pair, f"{load:g}", f"{_mean(runs[REFERENCE], 'jct_mean_s'):.2f}"]
            for policy in (RULE, *LEARNED):
                row.append(_percent(jct_change(runs, policy)))
            change = 100 * _difference(runs, "ppo", "accuracy_expected")
            rows.append([*row, f"{change.mean():+.2f}"])
    header = ("pair", "load", "Aragog, s", *(f"{name}, %" for name in (RULE, *LEARNED)), "accuracy of ppo, points")
    return _table(header, rows)


def jct_change(runs: dict[str, dict[int, RunResult]], policy: str) -> Estimate:
    """Return by what share a policy's mean JCT differs from Aragog's, paired by seed: the mean over seeds of ratios - 1."""
    both = sorted(runs[policy].keys() & runs[REFERENCE].keys())
    ours, reference = (np.array([runs[p][s].metrics["jct_mean_s"] for s in both]) for p in (policy, REFERENCE))
    return bootstrap(ours / reference - 1)


def _difference(runs: dict[str, dict[int, RunResult]], policy: str, metric: str) -> NDArray[np.float64]:
    both = sorted(runs[policy].keys() & runs[REFERENCE].keys())
    return np.array([runs[policy][s].metrics[metric] - runs[REFERENCE][s].metrics[metric] for s in both])


def _cell(results: Results, scenario: str) -> list[str]:
    runs, rows = _runs(results, scenario), []
    for policy in (name for name in _SHOWN if name in runs):
        mine = runs[policy]
        jct = [f"{_mean(mine, f'jct_{part}_s'):.2f}" for part in ("mean", "p50", "p95")]
        change = _percent(jct_change(runs, policy)) if policy != REFERENCE else ""
        accuracy = "" if policy == REFERENCE else f"{100 * _difference(runs, policy, 'accuracy_expected').mean():+.2f}"
        rows.append([
            policy, str(len(mine)), *jct, change, f"{_mean(mine, 'bulk_throughput_rps'):.3g}",
            f"{100 * _mean(mine, 'accuracy_expected'):.1f}", accuracy, f"{_mean(mine, 'decision_p50_ms'):.3f}",
        ])  # fmt: skip
    return _table(_HEADER, rows)


def _decisions(results: Results, size: Size, ceilings: dict[str, float], times: dict[str, Times]) -> list[str]:
    rows = []
    for pair in size.pairs:
        scenario = at_load(pair, size, LOAD, ceilings[pair])
        free, row = _runs(results, scenario.name), [pair, *(f"{ms:.3f}" for ms in times[pair].values())]
        for policy in (REFERENCE, "ppo"):
            paid = _runs(results, charged(scenario, times[pair][policy]).name)[policy]
            if not free:
                row.append("")
                continue
            ratios = [run.metrics["jct_mean_s"] / free[policy][s].metrics["jct_mean_s"] - 1 for s, run in paid.items()]
            row.append(f"{100 * float(np.mean(ratios)):+.1f}")
        rows.append(row)
    first = next(iter(times.values()))
    header = ("pair", *(f"{name}, ms" for name in first), *(f"JCT when charged, {p}, %" for p in (REFERENCE, "ppo")))
    return [
        f"Milliseconds per dispatch at load {LOAD:g} (all time in `act`, waiting included, over the dispatches); *batched*: "
        "the network alone, per decision of 64 at once. Then by how much the mean JCT changes when every dispatch takes its "
        "policy's time.",
        "",
        *_table(header, rows),
    ]


def _runs(results: Results, scenario: str) -> dict[str, dict[int, RunResult]]:
    """Return the runs of a scenario by policy and seed."""
    found: dict[str, dict[int, RunResult]] = {}
    for run in results.ok:
        if run.scenario == scenario:
            found.setdefault(run.policy, {})[run.seed] = run
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
