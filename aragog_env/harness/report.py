"""Write the report of a results folder, from files alone: report.html, report.md and figures/*.png."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SpecError
from ..files import write_atomically
from ..specs.scenario import Scenario
from . import plots
from .capacity import PolicyCapacity, load_capacity, points_of
from .gantt import gantt
from .metrics import METRICS
from .page import Page
from .replay import unrecorded_sentences
from .results import Results, read
from .series import ScenarioSeries, collect
from .summary import COMPARABLE, HEADLINE, Summary, summarise
from .tables import (
    CALLS,
    RESOURCES,
    Table,
    capacity_table,
    cluster_table,
    differences_table,
    failures_table,
    metrics_table,
    stages_table,
    tokens_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class ReportFiles:
    """What was written."""

    html: Path
    markdown: Path
    figures: list[Path] = field(default_factory=list)


def write_report(
    folder: str | Path, *, capacity: Sequence[str | Path] = (), baseline: str | None = None
) -> ReportFiles:
    """Write the report of `folder` into it.

    Args:
        folder: results of `evaluate` or `capacity`.
        capacity: folders of rate sweeps whose curves are to be shown too.
        baseline: policy that differences are taken to; round robin by default.

    Raises:
        SpecError: no finished run, or an unknown baseline.
    """
    results = read(folder)
    if not results.runs:
        raise SpecError("this folder holds no finished runs", where=str(folder))
    sweeps = [read(path) for path in capacity]
    if results.kind == "capacity":
        sweeps.insert(0, results)
    return _Report(results, sweeps, baseline).write()


class _Report:
    """Adds everything to the page and, in parallel, to the Markdown text."""

    def __init__(self, results: Results, sweeps: list[Results], baseline: str | None) -> None:
        self.results, self.sweeps, self.baseline = results, sweeps, baseline
        self.page, self.markdown = Page(), list[str]()
        self.files = ReportFiles(results.folder / "report.html", results.folder / "report.md")
        self.colours = plots.colours([run.policy for r in (results, *sweeps) for run in r.runs])

    def write(self) -> ReportFiles:
        """Write all files."""
        title = ("Rate sweep: " if self.results.kind == "capacity" else "Evaluation: ") + ", ".join(
            self.results.manifest["scenarios"]
        )
        self._overview()
        series = {s.scenario: s for s in collect(self.results)}
        if self.results.kind == "evaluate":
            for table in summarise(self.results, tuple(METRICS), self.baseline):
                self._scenario(table, series.get(table.scenario or ""))
        for sweep in self.sweeps:
            self._sweep(sweep)
        self._failures()
        self._manifest()
        session = self.results.manifest["sessions"][-1]
        subtitle = f"{session['started']} \N{MIDDLE DOT} {session['command']}"
        write_atomically(self.files.html, self.page.render(title, subtitle).encode())
        text = "\n".join([f"# {title}\n", f"`{session['command']}`, {session['started']}\n", *self.markdown])
        write_atomically(self.files.markdown, text.encode())
        return self.files

    def _overview(self) -> None:
        results = self.results
        seeds = sorted({run.seed for run in results.runs})
        policies = list(dict.fromkeys(run.policy for run in results.runs))
        counted = sum(int(run.metrics["requests"]) for run in results.ok)
        unfinished = sum(int(run.metrics["unfinished"]) for run in results.ok)
        machine = results.manifest["sessions"][-1]["machine"]
        self._paragraph(
            f"{len(policies)} policies, {len(seeds)} seeds ({_ranges(seeds)}), {len(results.ok)} finished "
            f"runs, {counted:,} counted requests. Computed on {machine['cpu']} ({machine['cores']} cores, "
            f"{machine['system']})."
        )
        if unfinished:
            self._paragraph(
                f"{unfinished:,} requests were unfinished when an episode was cut. They count as SLO misses; "
                "JCT percentiles are over completed requests only.",
                "warn",
            )
        self._live(results)
        self._replay(results)
        if results.failed:
            names = ", ".join(dict.fromkeys(run.policy for run in results.failed))
            self._paragraph(f"{len(results.failed)} runs failed ({names}); see the section on failures.", "warn")

    def _live(self, results: Results) -> None:
        """Say that servers were real, which ones, and what they could not do."""
        runs = [run for run in results.runs if run.recording is not None]
        if not runs:
            return
        settings = [s["settings"] for s in results.manifest["sessions"] if s["settings"].get("backend") == "live"]
        servers = dict.fromkeys(f"{s['name']} ({s['model']}) at {s['url']}" for one in settings for s in one["servers"])
        resumed = sum(bool(run.details.get("resumed")) for run in runs)
        self._paragraph(
            f"Measured live, on real servers: {', '.join(servers)}. Answers were graded; latencies are those that a client "
            f"saw, the policy's time included. {len(runs)} recordings are in recordings/"
            + (f"; {resumed} runs were interrupted and resumed." if resumed else ".")
        )
        failed = sum(int(run.metrics["failed"]) for run in results.ok)
        retries = sum(int(run.details.get("retries", 0)) for run in runs)
        if failed or retries:
            self._paragraph(
                f"{failed} counted requests failed: they count as wrong answers and as SLO misses. {retries} calls were tried "
                "again after a server failed them.",
                "warn",
            )
        for note in dict.fromkeys(note for run in runs for note in run.details.get("before", ())):
            self._paragraph(f"Before a run: {note}.", "warn")

    def _replay(self, results: Results) -> None:
        """Say that runs were replayed, from what, and how much was not recorded."""
        settings = [s["settings"] for s in results.manifest["sessions"] if s["settings"].get("backend") == "replay"]
        if not settings:
            return
        names = ", ".join(dict.fromkeys(Path(path).name for one in settings for path in one["recordings"]))
        itself = (
            " It was calibrated on these very recordings." if any(one["calibrated_here"] for one in settings) else ""
        )
        shares = "; ".join(unrecorded_sentences(results))
        self._paragraph(
            f"Replayed from recordings of live runs ({names}): their arrivals, prompts, outputs and answers, with the "
            f"iteration times of a calibrated cluster.{itself} {shares}."
        )

    def _scenario(self, table: Summary, series: ScenarioSeries | None) -> None:
        if table.scenario is None:
            self._section("All scenarios")
            self._table(metrics_table(table, COMPARABLE, "All scenarios together; intervals stratified by scenario."))
            return
        self._section(f"Scenario {table.scenario}")
        scenario = self.results.scenario(table.scenario)
        self._paragraph(_describe_scenario(scenario, series))
        seeds = max((row.seeds for row in table.rows), default=0)
        caption = f"Main results: {seeds} seeds per policy, {table.requests:,} counted requests in all."
        self._table(metrics_table(table, HEADLINE, caption))
        differences = differences_table(table)
        if differences is not None:
            self._table(differences)
        if series is None:
            return
        self._comparisons(table, series, scenario)
        self._table(metrics_table(table, CALLS, "LLM calls in detail."))
        self._table(metrics_table(table, RESOURCES, "Cost, load, caches, and the wall time of decisions."))
        self._table(stages_table(series))
        self._table(tokens_table(series))
        self._table(cluster_table(scenario, series.policies[0].example))
        self._episodes(series)

    def _comparisons(self, table: Summary, series: ScenarioSeries, scenario: Scenario) -> None:
        name, colour = series.scenario, self.colours
        slo_s = scenario.objective.slo_s
        self._figure(
            plots.jct_cdf(series, colour, slo_s),
            f"jct-cdf-{name}",
            "Distribution of the workflow completion time over the counted requests of all seeds.",
        )
        scatter = plots.accuracy_latency(table, colour)
        if scatter is not None:
            caption = "Accuracy against mean completion time; bars are 95% bootstrap intervals over seeds."
            self._figure(scatter, f"accuracy-latency-{name}", caption + _synthetic(series))
        self._figure(plots.time_breakdown(table), f"time-{name}", "Where an LLM call spends its time, mean over calls.")
        self._figure(plots.model_shares(series), f"models-{name}", "Models that served the LLM calls.")
        seed = series.policies[0].example.seed
        self._figure(
            plots.load_over_time(series, colour),
            f"load-{name}",
            f"Requests in the system over time (seed {seed}).",
        )
        policies = [p.policy for p in series.policies]
        runs = [run for run in self.results.ok if run.scenario == name and run.rate_rps is None]
        self._figure(
            plots.utilisation_map(runs, series.policies[0].example.replicas, policies),
            f"utilisation-{name}",
            "Busy time of each replica, mean over seeds.",
        )

    def _episodes(self, series: ScenarioSeries) -> None:
        self.page.add("<h3>Episodes</h3>")
        for policy in series.policies:
            caption = (
                f"{policy.policy}, seed {policy.example.seed}. Top: LLM calls on their replicas in the "
                "shaded stretch of the episode, coloured by workflow (pale until the first token, darker for "
                "later stages). Bottom: calls running on each replica over the whole episode."
            )
            self._figure(gantt(policy.example), f"gantt-{series.scenario}-{policy.policy}", caption, vector=False)

    def _sweep(self, sweep: Results) -> None:
        found = load_capacity(sweep.folder)
        (name,) = sweep.manifest["scenarios"]
        self._section(f"Throughput and latency: {name}")
        self._paragraph(_describe_scenario(sweep.scenario(name), None))
        window_s = sweep.manifest["sessions"][-1]["settings"]["sweep"]["window_s"]
        self._paragraph(f"Rates other than the scenario's are offered for at least {window_s:g} s each.")
        if not found:
            self._paragraph("The sweep is not finished; its curves are those of the runs so far.", "warn")
        by_name: dict[str, PolicyCapacity] = {p.policy: p for p in found if p.error is None}
        policies = list(dict.fromkeys(run.policy for run in sweep.ok))
        points = {policy: points_of(sweep, policy) for policy in policies}
        for latency in ("jct_mean_s", "jct_p95_s"):
            self._figure(
                plots.throughput_latency(points, by_name, self.colours, latency),
                f"throughput-{latency}-{name}",
                f"{METRICS[latency].label} against arrival rate (left) and achieved throughput (right), mean "
                "over seeds. A ring marks the capacity under the SLO.",
            )
        if found:
            objective = sweep.scenario(name).objective
            slo = f"{objective.slo_s:g} s" if objective.slo_s else f"{objective.slo_scale:g}x the standalone latency"
            seeds = len({run.seed for run in sweep.ok})
            self._table(capacity_table(found, seeds, slo))

    def _failures(self) -> None:
        table = failures_table(self.results)
        if table is None:
            return
        self._section("Failures")
        self._table(table)
        for run in self.results.failed:
            if run.traceback:
                self.page.folded(f"Traceback: {run.policy}, seed {run.seed}", f"<pre>{escape(run.traceback)}</pre>")

    def _manifest(self) -> None:
        self._section("Manifest")
        for i, session in enumerate(self.results.manifest["sessions"], 1):
            git = session["git"]
            commit = f"{git['commit']}{' (with local changes)' if git['dirty'] else ''}" if git else "no repository"
            pairs = [
                (f"Session {i}", session["started"]),
                ("Command", session["command"]),
                ("Versions", ", ".join(f"{k} {v}" for k, v in session["versions"].items())),
                ("Commit", commit),
                ("Machine", "{cpu}, {cores} cores, {system}".format(**session["machine"])),
            ]
            self.page.definitions(pairs)
            self.markdown += [f"* {name}: {value}" for name, value in pairs]
        for name, described in self.results.manifest["scenarios"].items():
            self.page.folded(f"Scenario {name} ({described['hash'][:12]})", f"<pre>{escape(described['yaml'])}</pre>")
            extra = {k: v for k, v in described.items() if k != "yaml"}
            self.markdown.append(f"* Scenario {name}: `{json.dumps(extra)}`")
        self.page.paragraph("Meaning of the metrics:")
        self.page.definitions([(info.label, info.meaning) for info in METRICS.values()])

    def _section(self, title: str) -> None:
        self.page.section(title)
        self.markdown.append(f"## {title}\n")

    def _paragraph(self, text: str, css: str = "") -> None:
        self.page.paragraph(text, css)
        self.markdown.append(text + "\n")

    def _table(self, table: Table) -> None:
        self.page.tables += 1
        self.page.add(table.to_html(self.page.tables))
        self.markdown.append(table.to_markdown(self.page.tables))

    def _figure(self, figure: Figure, name: str, caption: str, *, vector: bool = True) -> None:
        png = plots.to_png(figure)
        safe = "".join(c if c.isalnum() or c in "-_=." else "-" for c in name)
        path = self.results.folder / "figures" / f"{safe}.png"
        write_atomically(path, png)
        self.files.figures.append(path)
        if vector:
            element = plots.to_svg(figure)
        else:
            element = f"<img alt='' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
        number = self.page.figure(element, caption)
        self.markdown.append(f"![Figure {number}](figures/{path.name})\n\n**Figure {number}.** {caption}\n")


def _describe_scenario(scenario: Scenario, series: ScenarioSeries | None) -> str:
    arrivals, horizon, objective = scenario.workload.arrivals, scenario.horizon, scenario.objective
    rate = f" at {arrivals.rate_rps:g} requests/s" if arrivals.rate_rps else ""
    trace = f" from {Path(arrivals.path).name}" if arrivals.path else ""
    total = sum(entry.weight for entry in scenario.workload.mix)
    mix = ", ".join(f"{_workflow_name(e.workflow)} {100 * e.weight / total:.0f}%" for e in scenario.workload.mix)
    slo = f"{objective.slo_s:g} s" if objective.slo_s else f"{objective.slo_scale:g} times the standalone latency"
    warmup = f", the first {horizon.warmup_requests} as warm-up" if horizon.warmup_requests else ""
    text = (
        f"{scenario.description} Arrivals: {arrivals.kind}{trace}{rate}; {horizon.requests} requests per "
        f"episode{warmup}. Workflows: {mix}. SLO: {slo}."
    ).strip()
    return text + (_synthetic(series) if series else "")


def _workflow_name(name_or_path: str) -> str:
    path = Path(name_or_path)
    return path.parent.name if path.name == "workflow.yaml" else path.name


def _synthetic(series: ScenarioSeries) -> str:
    """Say so when right and wrong are generated rather than measured."""
    log = series.policies[0].example
    names = [name for name, kind in zip(log.workflows, log.outcome_kinds, strict=False) if kind == "synthetic"]
    if not names:
        return ""
    which = "" if len(names) == len(log.workflows) else f" of {', '.join(names)}"
    return f" Answers{which} come from synthetic outcome tables: accuracies are illustrative, not measured."


def _ranges(numbers: Sequence[int]) -> str:
    """Write 0, 1, 2, 5 as 0-2, 5."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(f"{p[0]}\N{EN DASH}{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
