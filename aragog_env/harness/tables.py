"""The tables of a report, as data that becomes HTML or Markdown."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..episode import EpisodeLog
from ..specs.scenario import Scenario
from .capacity import PolicyCapacity
from .metrics import METRICS
from .results import Results
from .series import ScenarioSeries
from .statistics import Estimate
from .summary import Row, Summary, format_interval, format_value, heading, short_names

CALLS = (
    "ttft_mean_s", "ttft_p95_s", "ttft_p99_s", "tpot_mean_s", "tpot_p95_s", "hold_mean_s", "queue_mean_s",
    "prefill_mean_s", "decode_mean_s",
)  # fmt: skip
RESOURCES = (
    "goodput_rps", "unfinished", "failed", "usd_per_request", "usd_rental_per_request", "utilisation", "batch_mean",
    "prefix_hit_rate", "preemptions", "decision_p50_ms", "decision_p99_ms",
)  # fmt: skip
COMPARED = (
    "jct_mean_s",
    "jct_p95_s",
    "throughput_rps",
    "slo_attainment",
    "req95",
    "accuracy",
    "gpu_seconds_per_request",
)


@dataclass(frozen=True)
class Entry:
    """A table cell: text, a smaller second line, and whether it stands out."""

    text: str
    small: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first column and those in `text_columns` are left-aligned."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    text_columns: frozenset[int] = frozenset()

    def to_html(self, number: int) -> str:
        """Return an HTML figure element."""
        classes = [" class='text'" if i in self.text_columns else "" for i in range(len(self.header))]
        head = "".join(f"<th{c}>{html.escape(h)}</th>" for h, c in zip(self.header, classes, strict=True))
        lines = ("".join(_html_cell(e, c) for e, c in zip(row, classes, strict=True)) for row in self.rows)
        body = "".join(f"<tr>{line}</tr>\n" for line in lines)
        notes = "".join(f"<p class='note'>{html.escape(n)}</p>" for n in self.notes)
        caption = f"<b>Table {number}.</b> {html.escape(self.caption)}"
        return (
            f"<figure class='table'><figcaption>{caption}</figcaption><div class='scroll'><table>"
            f"<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>{notes}</figure>\n"
        )

    def to_markdown(self, number: int) -> str:
        """Return a Markdown table."""
        align = [":--" if i == 0 or i in self.text_columns else "--:" for i in range(len(self.header))]
        lines = [f"**Table {number}.** {self.caption}", "", _markdown_row(self.header), _markdown_row(align)]
        lines += [_markdown_row([_markdown_cell(e) for e in row]) for row in self.rows]
        return "\n".join([*lines, "", *(f"*{note}*\n" for note in self.notes)]) + "\n"


def _html_cell(entry: Entry, attribute: str) -> str:
    text = html.escape(entry.text)
    small = f"<small>{html.escape(entry.small)}</small>" if entry.small else ""
    return f"<td{attribute}>{f'<b>{text}</b>' if entry.strong else text}{small}</td>"


def _markdown_cell(entry: Entry) -> str:
    text = f"**{entry.text}**" if entry.strong and entry.text else entry.text
    return f"{text} {entry.small}".strip().replace("|", "\\|").replace("\n", " ")


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def metrics_table(table: Summary, metrics: Sequence[str], caption: str) -> Table:
    """Return policies x metrics with intervals; the best mean of each column is bold."""
    shown = [name for name in metrics if name in table.metrics]
    best = {name: _best(table, name) for name in shown}
    rows, names = [], short_names(row.policy for row in table.rows)
    for row in table.rows:
        cells = [Entry(names[row.policy], _row_note(row, table, names))]
        for name in shown:
            estimate = row.cells[name].estimate
            text = format_value(name, estimate.value)
            cells.append(Entry(text, format_interval(name, estimate), strong=text == best[name]))
        rows.append(tuple(cells))
    notes = ["Mean over seeds, 95% bootstrap interval in brackets; bold: best mean of the column."]
    if any("\N{EN DASH}" == e.text for row in rows for e in row):
        notes.append("\N{EN DASH}: no data (for Req95/Req99: too many requests never finished).")
    return Table(caption, ("Policy", *map(heading, shown)), tuple(rows), tuple(notes))


def differences_table(table: Summary) -> Table | None:
    """Return paired differences to the baseline; None when there is nothing to compare."""
    shown = [name for name in COMPARED if name in table.metrics]
    rows, names = [], short_names(row.policy for row in table.rows)
    for row in table.rows:
        if any(row.cells[name].difference is not None for name in shown):
            rows.append((Entry(names[row.policy]), *(_difference(name, row) for name in shown)))
    if not rows:
        return None
    caption = f"Differences to {table.baseline}, paired by seed."
    notes = ("Mean of the paired differences, 95% bootstrap interval; bold: the interval leaves out zero.",)
    return Table(caption, ("Policy", *map(heading, shown)), tuple(rows), notes)


def capacity_table(found: Sequence[PolicyCapacity], seeds: int, slo: str) -> Table:
    """Return ceilings and capacities of a rate sweep."""
    rows = []
    best = {
        "ceiling": max((p.ceiling_rps.value for p in found if p.error is None), default=math.nan),
        "capacity": max((p.capacity_rps for p in found if p.error is None), default=math.nan),
    }
    for p in found:
        if p.error is not None:
            rows.append((Entry(p.policy), Entry("failed", p.error), Entry(""), Entry(""), Entry("")))
            continue
        interval = format_interval("throughput_rps", p.ceiling_rps)
        bracket = (
            f"[{p.capacity_rps:.3g}, {p.infeasible_rps:.3g})" if math.isfinite(p.infeasible_rps) else "not reached"
        )
        rows.append(
            (
                Entry(p.policy),
                Entry(f"{p.ceiling_rps.value:.3f}", interval, strong=p.ceiling_rps.value == best["ceiling"]),
                Entry(f"{p.ceiling_rate_rps:.3g}"),
                Entry(f"{p.capacity_rps:.3g}", bracket, strong=p.capacity_rps == best["capacity"] > 0),
                Entry(str(len(p.rates_rps))),
            )
        )
    header = ("Policy", "Ceiling (req/s)", "at rate (req/s)", "Capacity (req/s)", "rates tried")
    notes = (
        f"Ceiling: highest throughput over the sweep, {seeds} seeds per rate. Capacity: largest rate at "
        f"which P95 JCT is within the SLO ({slo}) and the backlog does not grow; the true value lies in the "
        "bracket.",
    )
    return Table("Throughput ceiling and capacity under the SLO.", header, tuple(rows), notes)


def tokens_table(series: ScenarioSeries) -> Table:
    """Return calls, tokens and prefix-cache hits per policy and model."""
    rows: list[tuple[Entry, ...]] = []
    names = short_names(policy.policy for policy in series.policies)
    for policy in series.policies:
        t = policy.tokens
        served = [m for m in range(len(policy.example.models)) if t["calls"][m] > 0]
        for m in served:
            model = policy.example.models[m]
            rows.append(
                (
                    Entry(names[policy.policy] if m == served[0] else ""),
                    Entry(model),
                    Entry(f"{t['calls'][m]:.0f}"),
                    Entry(f"{100 * policy.model_share[m]:.1f}"),
                    Entry(f"{t['prompt'][m] / t['calls'][m]:.0f}"),
                    Entry(f"{100 * t['cached'][m] / max(t['prompt'][m], 1):.1f}"),
                    Entry(f"{t['output'][m] / t['calls'][m]:.0f}"),
                    Entry(f"{t['preemptions'][m]:.0f}"),
                )
            )
    header = (
        "Policy", "Model", "Calls", "Share (%)", "Prompt tok/call", "Prefix hits (%)", "Output tok/call",
        "Preemptions",
    )  # fmt: skip
    return Table(
        "Calls, tokens and prefix-cache hits by model, all seeds.",
        header,
        tuple(rows),
        text_columns=frozenset({1}),
    )


def stages_table(series: ScenarioSeries) -> Table:
    """Return which models served each stage, per policy."""
    models = series.policies[0].example.models
    rows: list[tuple[Entry, ...]] = []
    stages = list(dict.fromkeys(key for p in series.policies for key in p.stage_models))
    for workflow, stage in sorted(stages, key=lambda key: key[0]):
        cells = [Entry(stage, workflow)]
        for p in series.policies:
            share = p.stage_models.get((workflow, stage))
            cells.append(Entry("\N{EN DASH}" if share is None else " / ".join(f"{100 * s:.0f}" for s in share)))
        rows.append(tuple(cells))
    caption = f"Share (%) of each stage's calls served by {' / '.join(models)}."
    names = short_names(p.policy for p in series.policies)
    return Table(caption, ("Stage", *names.values()), tuple(rows))


def cluster_table(scenario: Scenario, log: EpisodeLog) -> Table:
    """Return the replicas, and whether their KV blocks were given or estimated."""
    blocks, given = log.notes.get("num_gpu_blocks"), log.notes.get("num_gpu_blocks_given")
    latency = log.notes.get("latency")
    specs = {replica.name: replica for replica in scenario.cluster.replicas}
    rows = []
    for i, name in enumerate(log.replicas):
        # Copies of a replica are named name-0, name-1, ... after the one spec they come from.
        spec = specs.get(name) or specs.get(name.rpartition("-")[0])
        kv = "\N{EN DASH}"
        if isinstance(blocks, list | tuple) and isinstance(given, list | tuple):
            kv = f"{blocks[i]:,} ({'given' if given[i] else 'estimated'})"
        rows.append(
            (
                Entry(name),
                Entry(log.models[log.replica_models[i]]),
                Entry(f"{log.replica_gpus[i]}x {spec.gpu}" if spec else str(log.replica_gpus[i])),
                Entry(kv),
                Entry(str(latency[i]) if isinstance(latency, list | tuple) else "\N{EN DASH}"),
                Entry(f"{log.replica_usd_per_hour[i]:.2f}"),
            )
        )
    header = ("Replica", "Model", "GPUs", "KV blocks of 16 tokens", "Iteration times", "USD/h")
    caption = f"Cluster {scenario.cluster.name}."
    return Table(caption, header, tuple(rows), text_columns=frozenset({1, 2, 4}))


def failures_table(results: Results) -> Table | None:
    """Return the runs that failed."""
    if not results.failed:
        return None
    rows = tuple((Entry(r.policy), Entry(r.scenario), Entry(str(r.seed)), Entry(r.error or "")) for r in results.failed)
    header = ("Policy", "Scenario", "Seed", "Error")
    return Table("Runs that failed; they count in no figure.", header, rows, text_columns=frozenset({1, 3}))


def _row_note(row: Row, table: Summary, names: Mapping[str, str]) -> str:
    note = f"{row.failed} of {row.seeds + row.failed} runs failed" if row.failed else ""
    note = note or ("baseline" if row.policy == table.baseline else "")
    return note or (row.policy if names[row.policy] != row.policy else "")


def _best(table: Summary, name: str) -> str | None:
    """Return the best value of a column as it is printed, unless all are equal or no direction is better."""
    values = [v for row in table.rows if math.isfinite(v := row.cells[name].estimate.value)]
    better = METRICS[name].better
    if better == "neither" or len({format_value(name, v) for v in values}) < 2:
        return None
    return format_value(name, max(values) if better == "higher" else min(values))


def _difference(name: str, row: Row) -> Entry:
    difference: Estimate | None = row.cells[name].difference
    if difference is None:
        return Entry("\N{EN DASH}")
    text = format_value(name, difference.value)
    sign = "+" if difference.value > 0 and text.strip("0.") else ""
    return Entry(sign + text, format_interval(name, difference), strong=row.cells[name].significant)
