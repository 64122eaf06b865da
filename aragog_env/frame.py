"""A picture of a simulated cluster (render mode `rgb_array`): a Gantt chart that slides with virtual time.

Matplotlib is imported when a frame is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from .episode import EpisodeLog
from .latency.compiled import PS_PER_S
from .render import SPAN, status
from .reward import reference_latency_s
from .simulation import Simulation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

_DPI: Final = 110
_WIDTH_IN: Final = 10.0
_LEFT, _RIGHT = 1.35, 2.05  # inches beside the chart: names, gauges
_TOP, _BOTTOM, _LOAD, _GAP = 0.62, 0.5, 0.95, 0.2  # inches: title and legend, time axis, load panel, space
_SIDE: Final = 0.5  # inches: the bands of held calls and of tools
_MOST_LABELS: Final = 150
_LANES_AT_LEAST: Final = 4
_ALARM: Final = "#b8434e"


def window_length_s(simulation: Simulation) -> float:
    """Return the seconds that a frame shows: two or three request latencies at the SLO, as a round number."""
    wanted = 2.5 * reference_latency_s(simulation.compiled)
    power = 10.0 ** np.floor(np.log10(wanted))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= wanted * 0.999))


def render_frame(
    log: EpisodeLog, simulation: Simulation, e: int = 0, *, window_s: float | None = None
) -> NDArray[np.uint8]:
    """Return a picture of the last seconds of environment `e`, (H, W, 3).

    One band per replica. A bar is a call, from its dispatch on, in the colour of its workflow: pale while
    it waits at the server, lighter until its first token, full while it generates; numbers are requests in
    order of arrival. The top band holds the calls that are ready and that the policy has not dispatched.

    Args:
        log: of the episode so far (`backends.sim.episode_log`).
        simulation: the cluster now.
        e: which of its environments.
        window_s: how many seconds to show.
    """
    from .harness.plots import draw

    frame = _Frame(log, simulation, e, window_s or window_length_s(simulation))
    canvas: Any = draw(frame.paint, _WIDTH_IN, frame.height_in).canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()


class _Frame:
    """One frame under construction."""

    def __init__(self, log: EpisodeLog, simulation: Simulation, e: int, window_s: float) -> None:
        self.log = log
        self.status = status(simulation, e)
        self.end_s = max(self.status.now_s, window_s)
        self.begin_s = self.end_s - window_s
        self.tools = _tool_spans(simulation, e)
        self.has_tools = bool(simulation.compiled.workflow.is_tool.any())
        replicas = len(log.replicas)
        self.replica_in = float(np.clip(4.2 / replicas, 0.42, 1.1))
        self.heights = np.array([_SIDE, *([self.replica_in] * replicas), *([_SIDE] * self.has_tools)])
        self.tops = np.cumsum([0.0, *self.heights])  # (bands + 1,) inches from the top of the chart
        self.height_in = round(_TOP + float(self.tops[-1]) + _GAP + _LOAD + _BOTTOM, 1)

    def paint(self, figure: Figure) -> None:
        figure.set_layout_engine("none")
        figure.set_dpi(_DPI)
        width = (_WIDTH_IN - _LEFT - _RIGHT) / _WIDTH_IN
        left, high = _LEFT / _WIDTH_IN, self.height_in
        load = figure.add_axes((left, _BOTTOM / high, width, _LOAD / high))
        low = _BOTTOM + _LOAD + _GAP
        bands = float(self.tops[-1])
        chart = figure.add_axes((left, low / high, width, bands / high))
        gauges = figure.add_axes(
            (left + width + 0.012, low / high, (_RIGHT - 0.3) / _WIDTH_IN, bands / high), sharey=chart
        )
        self.paint_chart(chart)
        self.paint_gauges(gauges)
        self.paint_load(load)
        self.paint_title(figure)

    def paint_chart(self, axes: Axes) -> None:
        calls = self.log.calls
        spans = _call_spans(self.log, self.status.now_s)
        held = spans.copy()
        held["begin_s"], held["end_s"] = calls["ready_s"], calls["dispatch_s"]
        held = np.concatenate([held, self.status.ready])
        held["start_s"] = held["first_s"] = held["end_s"]
        self.band(axes, 0, held[held["end_s"] > held["begin_s"]])
        for r in range(len(self.log.replicas)):
            self.band(axes, 1 + r, spans[calls["route"] == r])
        if self.has_tools:
            self.band(axes, len(self.heights) - 1, self.tools)
        for y in self.tops[1:-1]:
            axes.axhline(y, color="#bbbbbb", lw=0.7)
        names = ["held by\npolicy", *self.replica_labels(), *(["tools"] if self.has_tools else [])]
        axes.set_yticks(self.tops[:-1] + self.heights / 2, names)
        axes.set(ylim=(self.tops[-1], 0))
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelbottom=False, length=0)
        axes.grid(axis="y", visible=False)
        self.time_axis(axes)

    def replica_labels(self) -> list[str]:
        log = self.log
        result = []
        for name, m in zip(log.replicas, log.replica_models, strict=True):
            model = log.models[m]
            result.append(name if name in model or model in name else f"{name}\n{model}")
        return result

    def time_axis(self, axes: Axes) -> None:
        margin = 0.015 * (self.end_s - self.begin_s)
        axes.set_xlim(self.begin_s, self.end_s + margin)
        axes.axvline(self.status.now_s, color=_ALARM, lw=1.1, zorder=5)

    def band(self, axes: Axes, k: int, spans: NDArray[np.void]) -> None:
        """Draw the bars of one band, each on a lane of its own for as long as it lasts."""
        from matplotlib.collections import PolyCollection

        from .harness.series import lanes

        spans = spans[np.argsort(spans["begin_s"], kind="stable")]
        lane = lanes(spans["begin_s"], spans["end_s"])
        seen = spans["end_s"] > self.begin_s
        spans, lane = spans[seen], lane[seen]
        fewest = _LANES_AT_LEAST if self.heights[k] > _SIDE else 2
        used = max(int(lane.max(initial=0)) + 1, fewest)
        pitch = (self.heights[k] - 0.08) / used  # inches
        low = self.tops[k] + 0.04 + lane * pitch
        # Many thin bars are a texture: gaps and outlines would only be noise.
        thick, line = (0.88 * pitch, 0.5) if pitch > 0.05 else (pitch, 0.2 if pitch > 0.028 else 0.0)
        boxes, shades, edges = [], [], []
        for span, y in zip(spans, low, strict=True):
            base = self.shade(span)
            pieces = (("begin_s", "start_s", 0.78), ("start_s", "first_s", 0.5), ("first_s", "end_s", 0.0))
            for begin, end, pale in pieces:
                x0, x1 = max(span[begin], self.begin_s), span[end]
                if x1 > x0:
                    boxes.append([(x0, y), (x1, y), (x1, y + thick), (x0, y + thick)])
                    shades.append(base + (1 - base) * pale)
                    edges.append(base if pale > 0.7 else (1.0, 1.0, 1.0))
        axes.add_collection(
            PolyCollection(boxes, facecolors=shades, edgecolors=edges if line else "face", linewidths=line)
        )
        self.numbers(axes, spans, low, pitch)

    def numbers(self, axes: Axes, spans: NDArray[np.void], low: Floats, pitch: float) -> None:
        """Write the request's number into bars that are large enough."""
        per_s = (_WIDTH_IN - _LEFT - _RIGHT) / (self.end_s - self.begin_s)
        size = min(7.5, pitch * 72 * 0.7)
        if size < 4.5 or len(spans) > _MOST_LABELS:
            return
        begin = np.maximum(spans["begin_s"], self.begin_s)
        for span, x, y in zip(spans, begin, low, strict=True):
            text = str(span["request"])
            if (span["end_s"] - x) * per_s * 72 > size * (0.65 * len(text) + 0.6):
                mostly_pale = span["first_s"] - x > 0.5 * (span["end_s"] - x)
                axes.text(
                    (x + span["end_s"]) / 2,
                    y + 0.44 * pitch,
                    text,
                    size=size,
                    color="#222222" if mostly_pale else "white",
                    ha="center",
                    va="center_baseline",
                    clip_on=True,
                )

    def shade(self, span: np.void) -> Floats:
        """Return the colour of a call: its workflow's, darker for later stages."""
        depth = span["node"] / max(1, len(self.log.node_names[span["workflow"]]) - 1)
        base = _colour(int(span["workflow"]))
        return np.asarray(base * (1 - 0.28 * depth))

    def paint_gauges(self, axes: Axes) -> None:
        """Beside each replica: requests running and waiting, and KV cache in use."""
        axes.set(xlim=(0, 1))
        axes.axis("off")
        ready, size = len(self.status.ready), 7 if self.replica_in < 0.6 else 8
        middle = _SIDE / 2
        axes.text(0, middle, f"{ready} ready", va="center", size=size, weight="bold" if ready else "normal")
        for k, g in enumerate(self.status.gauges, start=1):
            rows = [
                (f"run {g.running}/{g.max_seqs}", g.running / g.max_seqs, "#2f6690"),
                (f"KV {g.kv_used:.0%}", g.kv_used, "#7a7f87"),
            ]
            third = self.replica_in * 0.28
            for i, (text, share, colour) in enumerate(rows):
                y = self.tops[k] + 0.22 * self.replica_in + i * third
                bar = 0.55 * third
                axes.barh(y, 0.42, bar, color="#ececec")
                filled = float(np.clip(share, 0.012 * (share > 0), 1.0))
                axes.barh(y, 0.42 * filled, bar, color=_ALARM if share > 0.95 else colour)
                axes.text(0.46, y, text, va="center_baseline", size=size)
            if g.waiting:
                y = self.tops[k] + 0.22 * self.replica_in + 2 * third
                axes.text(0.46, y, f"{g.waiting} waiting", va="center_baseline", size=size, color=_ALARM)

    def paint_load(self, axes: Axes) -> None:
        """Calls at the servers over time by workflow, and requests in flight."""
        from .harness.series import in_flight

        log, calls = self.log, self.log.calls
        t = np.linspace(self.begin_s, self.status.now_s, 400)
        workflow = log.requests["workflow"][calls["request"]]
        below = np.zeros(len(t))
        for w in range(len(log.workflows)):
            mine = calls[workflow == w]
            # nan (not ended) sorts last
            began, ended = np.sort(mine["dispatch_s"]), np.sort(mine["finish_s"])
            count = np.searchsorted(began, t, "right") - np.searchsorted(ended, t, "right")
            axes.fill_between(t, below, below + count, color=_colour(w), lw=0, step="post")
            below = below + count
        requests = in_flight(log, t)
        axes.step(t, requests, where="post", color="#222222", lw=1.1)
        top = max(float(below.max(initial=0)), float(requests.max(initial=0)), 4.0)
        axes.set(ylim=(0, 1.12 * top), xlabel="virtual time (s)")
        axes.locator_params(axis="y", nbins=4, integer=True)
        axes.text(
            1.016,
            0.98,
            "line: requests in flight\nareas: calls at servers",
            va="top",
            size=7.5,
            transform=axes.transAxes,
        )
        self.time_axis(axes)

    def paint_title(self, figure: Figure) -> None:
        now, high = self.status, self.height_in
        left = _LEFT / _WIDTH_IN
        figure.text(left, 1 - 0.17 / high, now.scenario, weight="bold", size=10, va="center")
        figure.text(
            1 - 0.25 / _WIDTH_IN,
            1 - 0.17 / high,
            f"t = {now.now_s:.2f} s   in flight {now.in_flight}   completed {now.completed}/{now.requests}",
            size=9.5,
            va="center",
            ha="right",
        )
        handles: list[Any] = [_patch(_colour(w), name) for w, name in enumerate(self.log.workflows)]
        grey = np.array([0.35, 0.38, 0.42])
        for pale, label in ((0.78, "waiting"), (0.5, "prefill"), (0.0, "decoding")):
            handles.append(_patch(grey + (1 - grey) * pale, label, grey if pale > 0.7 else None))
        figure.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=(left - 0.01, 1 - 0.43 / high),
            ncols=len(handles),
            handlelength=1.1,
            handletextpad=0.4,
            columnspacing=1.2,
            fontsize=7.5,
        )


def _patch(colour: Any, label: str, edge: Any = None) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor=edge, linewidth=0.5, label=label)


def _colour(workflow: int) -> Floats:
    from matplotlib.colors import to_rgb

    from .harness.gantt import WORKFLOW_COLOURS

    return np.array(to_rgb(WORKFLOW_COLOURS[workflow % len(WORKFLOW_COLOURS)]))


def _call_spans(log: EpisodeLog, now_s: float) -> NDArray[np.void]:
    """Return the dispatched LLM calls, in the order of `log.calls`."""
    calls = log.calls
    spans = np.zeros(len(calls), SPAN)
    spans["request"], spans["node"] = calls["request"], calls["node"]
    spans["workflow"] = log.requests["workflow"][calls["request"]]
    spans["begin_s"] = calls["dispatch_s"]
    spans["end_s"] = np.where(np.isfinite(calls["finish_s"]), calls["finish_s"], now_s)
    for mine, theirs in (("start_s", "start_s"), ("first_s", "first_token_s")):
        spans[mine] = np.where(np.isfinite(calls[theirs]), calls[theirs], spans["end_s"])
    return spans


def _tool_spans(simulation: Simulation, e: int) -> NDArray[np.void]:
    """Return the tool stages that have begun."""
    compiled, width = simulation.compiled, simulation.compiled.max_nodes
    now_s = float(simulation.progress.env[e]["now_ps"]) / PS_PER_S
    requests, raw = simulation.progress.request[e], simulation.state.call[e]
    workflow = np.repeat(requests["workflow"], width)
    node = np.tile(np.arange(width), len(requests))
    begun = (compiled.workflow.is_tool[workflow, node] != 0) & (raw["ready_ps"] >= 0)
    spans = np.zeros(int(begun.sum()), SPAN)
    spans["request"] = np.repeat(requests["rank"], width)[begun]
    spans["workflow"], spans["node"] = workflow[begun], node[begun]
    spans["begin_s"] = spans["start_s"] = spans["first_s"] = raw["ready_ps"][begun] / PS_PER_S
    spans["end_s"] = np.where(raw["finish_ps"][begun] >= 0, raw["finish_ps"][begun] / PS_PER_S, now_s)
    return spans
