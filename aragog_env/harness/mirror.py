"""Mirror a results folder to Weights & Biases.

One W&B run per (policy, scenario, seed) with job type `eval`, and one with job type `report`: tables of all runs and of all
policies by scenario, charts, the report with its figures, and the folder's files as an artifact. All are in one group, which
is the folder's name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from . import tracking
from .metrics import METRICS
from .results import Results, RunResult
from .summary import HEADLINE, Summary, heading, summarise

_COLUMNS: Final = ("scenario", "policy", "seeds", "failed", "baseline")
CHARTS: Final = ("jct_mean_s", "jct_p95_s", "accuracy")
_PATTERNS: Final = ("*.json*", "report.*", "episodes/*.npz", "figures/*.png")


def mirror(results: Results, *, mode: str, project: str | None = None) -> list[Path]:
    """Copy results to W&B.

    Args:
        results: the folder.
        mode: ``offline`` writes below the folder, to be sent later with ``wandb sync``; ``online`` sends.
        project: W&B project.

    Returns:
        The directories of the W&B runs.

    Raises:
        SpecError: unknown mode, wandb is not installed, or `online` without an account.
    """
    if not tracking.check_mode(mode):
        return []
    common: dict[str, Any] = {"mode": mode, "project": project, "group": results.folder.resolve().name}
    directories = [_mirror_run(results, run, common) for run in results.runs]
    return [*directories, _mirror_report(results, common)]


def _mirror_run(results: Results, run: RunResult, common: dict[str, Any]) -> Path:
    scenario = results.manifest["scenarios"][run.scenario]
    session = results.manifest["sessions"][run.session]
    rate = "" if run.rate_rps is None else f"-{run.rate_rps:g}rps"
    commit = f"git-{session['git']['commit'][:8]}" if session["git"] else ""
    config = {
        "policy": run.policy,
        "scenario": run.scenario,
        "scenario_hash": scenario["hash"],
        "seed": run.seed,
        **run.config,
        "versions": session["versions"],
    }
    with tracking.start(
        results.folder,
        key=(*_key(results), run.key),
        name=f"{run.policy}-{run.seed}{rate}",
        job_type="eval",
        tags=(run.policy, run.scenario, commit),
        config=config,
        **common,
    ) as tracked:
        tracked.summary.update({"status": run.status, "error": run.error, "wall_s": run.wall_s, **run.metrics})
        return tracking.directory(tracked)


def _mirror_report(results: Results, common: dict[str, Any]) -> Path:
    folder = results.folder
    columns = ["policy", "scenario", "seed", "rate_rps", "status", *METRICS]
    rows = [
        [run.policy, run.scenario, run.seed, run.rate_rps, run.status, *(run.metrics.get(name) for name in METRICS)]
        for run in results.runs
    ]
    with tracking.start(
        folder,
        key=(*_key(results), "report"),
        name=f"report-{folder.resolve().name}",
        job_type="report",
        tags=sorted(results.manifest["scenarios"]),
        config={"sessions": results.manifest["sessions"]},
        **common,
    ) as tracked:
        table = tracking.client().Table(columns=columns, data=rows)
        tracked.log({"runs": table, **policy_charts(summarise(results)), **pages(folder, "report")})
        files = {
            path.relative_to(folder).as_posix(): path for pattern in _PATTERNS for path in sorted(folder.glob(pattern))
        }
        tracking.log_files(tracked, f"results-{tracking.run_id(*_key(results), 'artifact')}", "results", files)
        return tracking.directory(tracked)


def policy_charts(tables: Sequence[Summary]) -> dict[str, Any]:
    """Return what W&B shows of policies: a table by scenario and policy, and charts of its rows for each scenario."""
    wandb = tracking.client()
    rows = [row for table in tables for row in _policy_rows(table)]
    if not rows:
        return {}
    columns = list(_COLUMNS)
    for name in HEADLINE:
        label = heading(name)
        columns += [label, f"{label} low", f"{label} high", f"{label} difference"]
    found: dict[str, Any] = {"policies": wandb.Table(columns=columns, data=rows)}
    for scenario in dict.fromkeys(row[0] for row in rows):
        for name in CHARTS:
            label = heading(name)
            points = [[row[1], row[columns.index(label)]] for row in rows if row[0] == scenario]
            shown = wandb.Table(columns=["policy", label], data=points)
            found[f"{name}/{scenario}"] = wandb.plot.bar(shown, "policy", label, title=f"{label}: {scenario}")
    return found


def _policy_rows(table: Summary) -> Iterator[list[Any]]:
    """Yield a row per policy; per cent as in reports, None where there is no number."""
    if table.scenario is None:
        return
    for row in table.rows:
        values: list[Any] = [table.scenario, row.policy, row.seeds, row.failed, table.baseline]
        for name in HEADLINE:
            scale = 100.0 if METRICS[name].unit == "%" else 1.0
            e, difference = row.cells[name].estimate, row.cells[name].difference
            numbers = [e.value, e.low, e.high, difference.value if difference else math.nan]
            values += [scale * number if math.isfinite(number) else None for number in numbers]
        yield values


def pages(folder: Path, stem: str) -> dict[str, Any]:
    """Return the page ``<stem>.html`` of a folder and its figures, as far as they are there."""
    wandb, found = tracking.client(), {}
    for path in sorted(folder.glob("figures/*.png")):
        found[f"figures/{path.stem}"] = wandb.Image(str(path))
    page = folder / f"{stem}.html"
    if page.exists():
        found[stem] = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    return found


def _key(results: Results) -> tuple[object, ...]:
    """Return what a folder is recognised by: its scenarios, when it was begun, and with which policies."""
    hashes = sorted(described["hash"] for described in results.manifest["scenarios"].values())
    first = results.manifest["sessions"][0]
    return tuple(hashes), first["started"], tuple(first["settings"].get("policies", ()))
