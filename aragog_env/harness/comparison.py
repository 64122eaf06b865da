"""Compare results folders and training runs: comparison.html, comparison.md and figures, from files alone; and in W&B.

Runs of the same scenario in several folders stand in one table, and are paired by seed: learned schedulers beside rules,
whenever they were evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import SpecError
from ..files import write_atomically
from . import plots, tracking
from .mirror import mirror, pages, policy_charts
from .page import Page
from .results import SCHEMA_VERSION, Results, RunResult, read
from .summary import HEADLINE, Summary, summarise
from .tables import Table, differences_table, metrics_table
from .training_curves import (
    SHOWN,
    TrainingCurve,
    curves_figure,
    is_training,
    mirror_training,
    read_training,
    training_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEM: Final = "comparison"
_SHOWN: Final = tuple(name for name in HEADLINE if name not in ("jct_p50_s", "jct_p99_s"))


@dataclass
class Comparison:
    """What is compared, and where it is written."""

    out: Path
    results: list[Results]
    curves: list[TrainingCurve]
    tables: list[Summary]
    """One per scenario."""
    figures: list[Path] = field(default_factory=list)

    @property
    def html(self) -> Path:
        """The page."""
        return self.out / f"{STEM}.html"


def default_out() -> Path:
    """Return ``results/comparison-<date>-<time>``."""
    return Path("results") / f"{STEM}-{datetime.now():%Y%m%d-%H%M%S}"


def compare(folders: Sequence[str | Path], out: str | Path | None = None, baseline: str | None = None) -> Comparison:
    """Write the comparison.

    Args:
        folders: of results, of training runs, or of grids of these.
        out: where; by default ``results/comparison-<date>-<time>``.
        baseline: policy that differences are taken to, where it was run.

    Raises:
        SpecError: a folder holds neither, or nothing that is finished.
    """
    paths = [Path(folder) for folder in folders]
    curves = [curve for path in paths if is_training(path) for curve in read_training(path)]
    results = [read(path) for path in paths if not is_training(path)]
    merged = merge(results)
    if not merged.runs and not curves:
        raise SpecError("these folders hold no finished runs", where=", ".join(map(str, paths)))
    tables = []
    for scenario in dict.fromkeys(run.scenario for run in merged.runs):
        runs = [run for run in merged.runs if run.scenario == scenario]
        known = {run.policy for run in runs}
        one = Results(merged.folder, merged.manifest, runs)
        tables += summarise(one, HEADLINE, baseline if baseline in known else None)
    comparison = Comparison(Path(out) if out is not None else default_out(), results, curves, tables)
    _Writer(comparison).write()
    return comparison


def merge(results: Sequence[Results]) -> Results:
    """Return the runs of several folders as one; of a run that several have, that of the last.

    Scenarios of equal name and other content are told apart by their folder.
    """
    scenarios: dict[str, Any] = {}
    runs: dict[Any, RunResult] = {}
    for its in results:
        names = {}
        for name, described in its.manifest["scenarios"].items():
            same = name not in scenarios or scenarios[name]["hash"] == described["hash"]
            names[name] = name if same else f"{name} ({its.folder.resolve().name})"
            scenarios[names[name]] = described
        for run in its.runs:
            if run.rate_rps is None:
                moved = replace(run, scenario=names[run.scenario], session=0)
                runs[moved.key] = moved
    sessions = [session for its in results for session in its.manifest["sessions"]]
    manifest = {"schema": SCHEMA_VERSION, "kind": "evaluate", "scenarios": scenarios, "sessions": sessions}
    return Results(Path(), manifest, runs.values())


class _Writer:
    """Adds everything to the page and, in parallel, to the Markdown text."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.page, self.markdown = Page(), list[str]()
        self.colours = plots.colours([row.policy for table in comparison.tables for row in table.rows])

    def write(self) -> None:
        """Write all files."""
        its = self.comparison
        folders = ", ".join(
            str(path) for path in dict.fromkeys((*(r.folder for r in its.results), *_places(its.curves)))
        )
        for table in its.tables:
            self._section(f"Scenario {table.scenario}")
            seeds = max((row.seeds for row in table.rows), default=0)
            caption = f"Policies: up to {seeds} seeds each, {table.requests:,} counted requests in all."
            self._table(metrics_table(table, _SHOWN, caption))
            differences = differences_table(table)
            if differences is not None:
                self._table(differences)
            lines = "Mean completion time and accuracy with 95% bootstrap intervals over seeds."
            self._figure(plots.policy_lines(table, self.colours), f"policies-{table.scenario}", lines)
            frontier = plots.accuracy_latency(table, self.colours)
            if frontier is not None:
                self._figure(frontier, f"frontier-{table.scenario}", "Accuracy against mean completion time.")
        if its.curves:
            self._section("Training")
            self._table(training_table(its.curves))
            names = [curve.name for curve in its.curves]
            figure = curves_figure(its.curves, plots.colours(names))
            if figure is not None:
                caption = "Evaluations on the way: greedy episodes of the same traffic each time."
                self._figure(figure, "training", caption)
        title = "Comparison"
        write_atomically(its.html, self.page.render(title, folders).encode())
        text = "\n".join([f"# {title}\n", f"{folders}\n", *self.markdown])
        write_atomically(its.html.with_suffix(".md"), text.encode())

    def _section(self, title: str) -> None:
        self.page.section(title)
        self.markdown.append(f"## {title}\n")

    def _table(self, table: Table) -> None:
        self.page.tables += 1
        self.page.add(table.to_html(self.page.tables))
        self.markdown.append(table.to_markdown(self.page.tables))

    def _figure(self, figure: Figure, name: str, caption: str) -> None:
        safe = "".join(c if c.isalnum() or c in "-_=." else "-" for c in name)
        path = self.comparison.out / "figures" / f"{safe}.png"
        write_atomically(path, plots.to_png(figure))
        self.comparison.figures.append(path)
        number = self.page.figure(plots.to_svg(figure), caption)
        self.markdown.append(f"![Figure {number}](figures/{path.name})\n\n**Figure {number}.** {caption}\n")


def _places(curves: Sequence[TrainingCurve]) -> list[Path]:
    return [curve.folder for curve in curves]


def mirror_comparison(comparison: Comparison, *, mode: str, project: str | None = None) -> list[Path]:
    """Copy everything that is compared to W&B, and the comparison as a run of job type `comparison`.

    Returns:
        The directories of the W&B runs.
    """
    if not tracking.check_mode(mode):
        return []
    common: dict[str, Any] = {"mode": mode, "project": project}
    directories = [path for results in comparison.results for path in mirror(results, **common)]
    # Runs that were tracked while they trained are there, with all their settings.
    for curve in comparison.curves:
        directories += curve.tracked or [mirror_training(curve, **common)]
    out = comparison.out
    parts = [str(path) for path in (*(r.folder for r in comparison.results), *_places(comparison.curves))]
    with tracking.start(
        out,
        key=("comparison", *parts),
        name=out.resolve().name,
        group=out.resolve().name,
        job_type="comparison",
        tags=[table.scenario or "" for table in comparison.tables],
        config={"folders": parts},
        **common,
    ) as run:
        found = policy_charts(comparison.tables) | _curve_charts(comparison.curves) | pages(out, STEM)
        run.log(found)
        files = {path.relative_to(out).as_posix(): path for path in (comparison.html, *comparison.figures)}
        tracking.log_files(run, f"comparison-{run.id}", "comparison", files)
        directories.append(tracking.directory(run))
    return directories


def _curve_charts(curves: Sequence[TrainingCurve]) -> dict[str, Any]:
    """Return the learning curves side by side, and a table of the training runs."""
    wandb, found = tracking.client(), dict[str, Any]()
    for name, label in SHOWN:
        lines = [(curve.name, *curve.column(name)) for curve in curves if curve.column(name)[0]]
        if lines:
            xs, ys, keys = [line[1] for line in lines], [line[2] for line in lines], [line[0] for line in lines]
            found[f"training/{name.removeprefix('eval/')}"] = wandb.plot.line_series(
                xs, ys, keys=keys, title=label, xname="decisions"
            )
    if curves:
        columns = [
            "run",
            "learner",
            "scenario",
            "steps",
            "minutes",
            "best_step",
            *(n for n, _ in SHOWN),
            "eval/accuracy",
        ]
        rows = [
            [
                c.name,
                c.learner,
                c.scenario,
                c.steps,
                c.minutes,
                c.best.get("steps"),
                *(c.best.get(n) for n in columns[6:]),
            ]
            for c in curves
        ]
        found["training_runs"] = wandb.Table(columns=columns, data=rows)
    return found
