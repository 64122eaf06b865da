"""Figures that compare policies. Matplotlib is imported inside, with the Agg canvas and no global state.

Every figure is an object that can be saved as SVG (for the HTML report) or PNG (for papers and pull
requests). A policy has the same colour in all figures of a report.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .capacity import Point, PolicyCapacity
from .metrics import METRICS, UTILISATION_PREFIX
from .results import RunResult
from .series import ScenarioSeries, cdf, in_flight
from .summary import Summary, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POLICY_COLOURS: Final = (
    "#3b6fb6", "#d1662b", "#3a9464", "#b8434e", "#7b5aa6",
    "#8a6d4f", "#cf7fb0", "#6b6f76", "#a8a032", "#3aa3b8",
)  # fmt: skip
MODEL_COLOURS: Final = ("#c6dbe8", "#7fa8c9", "#2f6690", "#16324f", "#e3c16f", "#b07d2b")
_INK: Final = "#222222"
_STYLE: Final[Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "svg.hashsalt": "aragog",
}


def draw(paint: Callable[[Figure], None], width_in: float, height_in: float) -> Figure:
    """Make a figure of the given size in the style of the report and let `paint` fill it."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
    return figure


def to_png(figure: Figure, dpi: int = 170) -> bytes:
    """Return the figure as PNG."""
    return _save(figure, "png", dpi=dpi)


def to_svg(figure: Figure) -> str:
    """Return the figure as an SVG element."""
    text = _save(figure, "svg", metadata={"Date": None, "Creator": None}).decode()
    return text[text.index("<svg") :]


def _save(figure: Figure, kind: str, **options: Any) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format=kind, facecolor="white", **options)
    return buffer.getvalue()


def colours(policies: Sequence[str]) -> dict[str, str]:
    """Give each policy its colour."""
    return {name: POLICY_COLOURS[i % len(POLICY_COLOURS)] for i, name in enumerate(dict.fromkeys(policies))}


def jct_cdf(series: ScenarioSeries, colour: Mapping[str, str], slo_s: float | None) -> Figure:
    """Distribution of the workflow completion time, all seeds together."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        highest = 0.0
        for i, policy in enumerate(series.policies):
            x, y = cdf(policy.jct_s)
            style = "-" if i < len(POLICY_COLOURS) else "--"
            axes.plot(x, y, style, color=colour[policy.policy], label=policy.policy)
            highest = max(highest, float(x[-1]) if len(x) else 0.0)
        if slo_s is not None:
            axes.axvline(slo_s, color=_INK, lw=0.8, ls=":")
            axes.annotate("SLO", (slo_s, 0.02), xytext=(3, 0), textcoords="offset points", fontsize=8)
        _latency_scale(axes.set_xscale, [p.jct_s for p in series.policies])
        _plain_ticks(axes.xaxis)
        axes.set(xlabel="Workflow completion time (s)", ylabel="Share of requests", ylim=(0, 1.005))
        figure_legend(figure, axes)

    return draw(paint, 7.0, 3.1)


def accuracy_latency(table: Summary, colour: Mapping[str, str], latency: str = "jct_mean_s") -> Figure | None:
    """Accuracy against latency with 95% intervals; None when nothing was graded."""
    rows = [r for r in table.rows if np.isfinite(r.cells["accuracy"].estimate.value)]
    if not rows:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row in rows:
            x, y = row.cells[latency].estimate, row.cells["accuracy"].estimate
            xerr, yerr = _error(x.value, x.low, x.high), _error(100 * y.value, 100 * y.low, 100 * y.high)
            axes.errorbar(
                x.value, 100 * y.value, yerr, xerr, "o", color=colour[row.policy], ms=5.5, lw=1.1, capsize=2,
                label=row.policy,
            )  # fmt: skip
        _latency_scale(axes.set_xscale, [np.array([r.cells[latency].estimate.value for r in rows])])
        _plain_ticks(axes.xaxis)
        axes.set(xlabel="Mean workflow completion time (s)", ylabel="Accuracy (%)")
        axes.margins(0.08, 0.15)
        figure_legend(figure, axes)

    return draw(paint, 7.0, 3.1)


def policy_lines(table: Summary, colour: Mapping[str, str]) -> Figure:
    """Mean completion time and accuracy, a line per policy, with 95% intervals."""

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 2, sharey=True)
        names = list(short_names(row.policy for row in table.rows).values())
        shown = (("jct_mean_s", 1.0, "Mean workflow completion time (s)"), ("accuracy", 100.0, "Accuracy (%)"))
        for axes, (metric, scale, label) in zip(panels, shown, strict=True):
            for i, row in enumerate(table.rows):
                e = row.cells[metric].estimate
                error = _error(scale * e.value, scale * e.low, scale * e.high)
                axes.errorbar(scale * e.value, i, None, error, "o", color=colour[row.policy], ms=5.5, lw=1.1, capsize=2)
            axes.set(xlabel=label)
        panels[0].set_yticks(range(len(names)), names)
        _rows(panels[0])
        panels[1].grid(axis="y", visible=False)
        panels[1].tick_params(axis="y", length=0)

    return draw(paint, 7.6, 0.9 + 0.27 * len(table.rows))


def time_breakdown(table: Summary) -> Figure:
    """Where a call spends its time: held by the policy, queued, prefill, decode."""
    parts = (
        ("hold_mean_s", "held by policy", "#d9c7a5"),
        ("queue_mean_s", "queued at server", "#cf8a6b"),
        ("prefill_mean_s", "prefill", "#7fa8c9"),
        ("decode_mean_s", "decode", "#2f6690"),
    )

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        names = list(short_names(row.policy for row in table.rows).values())
        left = np.zeros(len(names))
        for metric, label, shade in parts:
            values = np.nan_to_num([row.cells[metric].estimate.value for row in table.rows])
            axes.barh(names, values, left=left, color=shade, label=label, height=0.66)
            left += values
        _rows(axes)
        axes.set(xlabel="Mean seconds per LLM call")
        figure_legend(figure, axes)

    return draw(paint, 7.0, 0.9 + 0.27 * len(table.rows))


def model_shares(series: ScenarioSeries) -> Figure:
    """Which models served the calls."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        names = list(short_names(p.policy for p in series.policies).values())
        left = np.zeros(len(names))
        for m, model in enumerate(series.policies[0].example.models):
            values = 100 * np.array([p.model_share[m] for p in series.policies])
            axes.barh(
                names,
                values,
                left=left,
                color=MODEL_COLOURS[m % len(MODEL_COLOURS)],
                label=model,
                height=0.66,
            )
            left += values
        _rows(axes)
        axes.set(xlabel="Share of LLM calls (%)", xlim=(0, 100))
        figure_legend(figure, axes)

    return draw(paint, 7.0, 0.9 + 0.27 * len(series.policies))


def load_over_time(series: ScenarioSeries, colour: Mapping[str, str]) -> Figure:
    """Requests in the system over time, first seed."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for policy in series.policies:
            t = np.linspace(0, policy.example.duration_s, 500)
            axes.plot(t, in_flight(policy.example, t), color=colour[policy.policy], label=policy.policy, lw=1.2)
        last = max(float(p.example.requests["arrival_s"].max(initial=0.0)) for p in series.policies)
        axes.axvline(last, color=_INK, lw=0.8, ls=":")
        axes.annotate(
            "last arrival", (last, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -8),
            textcoords="offset points", fontsize=7.5,
        )  # fmt: skip
        axes.set(xlabel="Time (s)", ylabel="Requests in the system", ylim=(0, None))
        axes.set_xlim(left=0)
        figure_legend(figure, axes)

    return draw(paint, 7.0, 2.8)


def utilisation_map(runs: Sequence[RunResult], replicas: Sequence[str], policies: Sequence[str]) -> Figure:
    """Busy share of each replica under each policy, mean over seeds."""
    share = np.full((len(policies), len(replicas)), np.nan)
    for i, policy in enumerate(policies):
        mine = [run.metrics for run in runs if run.policy == policy]
        for j, replica in enumerate(replicas):
            share[i, j] = 100 * np.mean([m[UTILISATION_PREFIX + replica] for m in mine])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        image = axes.imshow(share, aspect="auto", cmap="Blues", vmin=0, vmax=100)
        axes.set_xticks(range(len(replicas)), replicas, rotation=0 if len(replicas) <= 6 else 35, ha="center")
        axes.set_yticks(range(len(policies)), list(short_names(policies).values()))
        axes.grid(False)
        axes.tick_params(length=0)
        for i in range(len(policies)):
            for j in range(len(replicas)):
                shade = "white" if share[i, j] > 60 else _INK
                axes.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", color=shade, fontsize=8)
        figure.colorbar(image, ax=axes, label="Busy time (%)", pad=0.02, fraction=0.04)

    return draw(paint, 7.0, 0.9 + 0.27 * len(policies))


def throughput_latency(
    points: Mapping[str, Mapping[float, Point]],
    found: Mapping[str, PolicyCapacity],
    colour: Mapping[str, str],
    latency: str = "jct_mean_s",
) -> Figure:
    """Latency against achieved throughput over a rate sweep; the open ring is the capacity under the SLO."""

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for policy, at in points.items():
            rates = sorted(at)
            y = [at[rate].mean(latency) for rate in rates]
            x = [at[rate].mean("bulk_throughput_rps") for rate in rates]
            left.plot(rates, y, "o-", ms=3, color=colour[policy], label=policy, lw=1.2)
            right.plot(x, y, "o-", ms=3, color=colour[policy], lw=1.2)
            best = found.get(policy)
            if best is not None and best.capacity_rps in at:
                p = at[best.capacity_rps]
                for axes, where in ((left, best.capacity_rps), (right, p.mean("bulk_throughput_rps"))):
                    axes.plot(where, p.mean(latency), "o", ms=9, mfc="none", mec=colour[policy], mew=1.3)
        left.set_yscale("log")
        left.set_xscale("log")
        for axis in (left.yaxis, left.xaxis):
            _plain_ticks(axis)
        left.set(xlabel="Arrival rate (requests/s)", ylabel=f"{METRICS[latency].label} (s)")
        right.set(xlabel="Achieved throughput (requests/s)")
        right.set_xlim(left=0)
        figure_legend(figure, left)

    return draw(paint, 7.6, 3.2)


def _latency_scale(set_scale: Callable[[str], None], values: Sequence[Any]) -> None:
    """Use a logarithmic axis when the values span more than a factor of 15."""
    pooled = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.zeros(0)
    pooled = pooled[pooled > 0]
    if len(pooled) and np.percentile(pooled, 99) > 15 * np.percentile(pooled, 5):
        set_scale("log")


def _plain_ticks(axis: Any) -> None:
    """Write 1, 2, 5, 10 on logarithmic axes rather than powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _rows(axes: Axes) -> None:
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def figure_legend(figure: Figure, axes: Axes) -> None:
    """Put the legend of some axes to the right of all."""
    handles, labels = axes.get_legend_handles_labels()
    names = short_names(labels)
    figure.legend(handles, [names[label] for label in labels], loc="outside right center")


def _error(value: float, low: float, high: float) -> list[list[float]] | None:
    if not (np.isfinite(low) and np.isfinite(high)):
        return None
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]
