"""The Gantt figure of one episode: every call on its replica, and the load of the replicas over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..episode import EpisodeLog
from .plots import MODEL_COLOURS, draw
from .series import gantt_window, lanes, occupancy, service_start_s

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORKFLOW_COLOURS: Final = (
    "#4f86b5",
    "#e0934a",
    "#6aa973",
    "#c4626a",
    "#9a7fc0",
    "#b0905f",
    "#d79ac0",
    "#88898c",
)
_BAND = 0.86


def gantt(log: EpisodeLog) -> Figure:
    """Draw the calls of a stretch of `log`, one band per replica, then the load over the whole episode."""
    window = gantt_window(log)
    times_s = np.linspace(*window, 200)
    busiest = max(int(occupancy(log, r, times_s)[0].max()) for r in range(len(log.replicas)))
    bands_in = float(np.clip(0.045 * busiest, 0.62, 1.3)) * len(log.replicas)  # a bar stays a bar

    def paint(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, height_ratios=(bands_in + 0.5, 1.5))
        _bands(top, log, window)
        _load(bottom, log, window)
        handles, labels = top.get_legend_handles_labels()
        columns = 5 if sum(len(label) for label in labels) < 60 else 3
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)

    return draw(paint, 7.6, 2.6 + bands_in)


def _bands(axes: Axes, log: EpisodeLog, window: tuple[float, float]) -> None:
    begin, end = window
    labels, all_starts = [], service_start_s(log)
    for replica, name in enumerate(log.replicas):
        mine = np.flatnonzero((log.calls["route"] == replica) & np.isfinite(all_starts))
        mine = mine[np.argsort(all_starts[mine], kind="stable")]
        calls, start = log.calls[mine], all_starts[mine]
        finish = np.where(np.isfinite(calls["finish_s"]), calls["finish_s"], log.duration_s)
        lane = lanes(start, finish)
        seen = (finish > begin) & (start < end)
        used = max(int(lane[seen].max(initial=0)) + 1, 3)
        low = replica - _BAND / 2 + lane[seen] * _BAND / used
        _calls(axes, log, calls[seen], start[seen], finish[seen], low, _BAND / used)
        model = log.models[log.replica_models[replica]]
        labels.append(name if name == model else f"{name}\n{model}")
        if replica:
            axes.axhline(replica - 0.5, color="#cccccc", lw=0.6)
    for w, workflow in enumerate(log.workflows):
        axes.barh([0], [0], color=WORKFLOW_COLOURS[w % len(WORKFLOW_COLOURS)], label=workflow)
    axes.set_yticks(range(len(log.replicas)), labels)
    axes.set(xlim=window, ylim=(len(log.replicas) - 0.45, -0.55), xlabel="Time (s)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def _calls(axes: Axes, log: EpisodeLog, calls: Any, start: Any, finish: Any, y: Any, height: float) -> None:
    """One bar per call in its workflow's colour: darker for later stages, pale until the first token."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgb

    boxes, shades = [], []
    for call, begin, stop, low in zip(calls, start, finish, y, strict=True):
        workflow = int(log.requests["workflow"][call["request"]])
        depth = int(call["node"]) / max(1, len(log.node_names[workflow]) - 1)
        base = np.array(to_rgb(WORKFLOW_COLOURS[workflow % len(WORKFLOW_COLOURS)]))
        shade = base + (1 - base) * 0.42 * (1 - depth)
        first = call["first_token_s"] if np.isfinite(call["first_token_s"]) else stop
        for left, right, tint in ((begin, first, shade + (1 - shade) * 0.6), (first, stop, shade)):
            boxes.append([(left, low), (right, low), (right, low + 0.9 * height), (left, low + 0.9 * height)])
            shades.append(tint)
    axes.add_collection(PolyCollection(boxes, facecolors=shades, edgecolors="white", linewidths=0.2))


def _load(axes: Axes, log: EpisodeLog, window: tuple[float, float]) -> None:
    t = np.linspace(0, log.duration_s, 600)
    below = np.zeros(len(t))
    waiting = np.zeros(len(t))
    for replica, name in enumerate(log.replicas):
        running, queued = occupancy(log, replica, t)
        colour = MODEL_COLOURS[log.replica_models[replica] % len(MODEL_COLOURS)]
        axes.fill_between(t, below, below + running, color=colour, lw=0.4, ec="white", step="mid", label=name)
        below = below + running
        waiting += queued
    axes.plot(t, below + waiting, color="#b8434e", lw=0.9, label="+ waiting at servers")
    if window != (0.0, float(log.duration_s)):
        axes.axvspan(*window, color="#000000", alpha=0.06, lw=0)
    highest = float((below + waiting).max(initial=1.0))
    axes.set(xlabel="Time (s)", ylabel="Calls running", xlim=(0, log.duration_s), ylim=(0, 1.3 * highest))
    axes.legend(loc="upper right", ncols=len(log.replicas) + 1, fontsize=7)
