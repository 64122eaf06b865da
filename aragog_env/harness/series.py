"""What figures are drawn from: small arrays computed from the episode logs of a results folder."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..episode import EpisodeLog
from .metrics import counted
from .results import Results

Floats = NDArray[np.float64]


@dataclass
class PolicySeries:
    """What is known about one policy on one scenario."""

    policy: str
    jct_s: Floats
    """(n,) completion times of the counted requests of all seeds, sorted; inf for unfinished ones."""
    model_share: Floats
    """(M,) share of LLM calls served by each model."""
    stage_models: dict[tuple[str, str], Floats]
    """(workflow, stage) -> (M,) share of its calls served by each model."""
    tokens: dict[str, Floats]
    """Per model (M,): calls, prompt, cached, output tokens, preemptions."""
    example: EpisodeLog
    """The log of the first seed."""


@dataclass
class ScenarioSeries:
    """Everything that the figures of one scenario need."""

    scenario: str
    policies: list[PolicySeries] = field(default_factory=list)


def collect(results: Results) -> list[ScenarioSeries]:
    """Read the logs of all finished runs outside rate sweeps."""
    groups: dict[tuple[str, str], list[EpisodeLog]] = {}
    for run in sorted(results.ok, key=lambda run: run.seed):
        if run.rate_rps is None and run.episode is not None:
            groups.setdefault((run.scenario, run.policy), []).append(results.log(run))
    found: dict[str, ScenarioSeries] = {}
    for run in results.ok:  # keep the order in which policies were given
        logs = groups.pop((run.scenario, run.policy), None)
        if logs:
            found.setdefault(run.scenario, ScenarioSeries(run.scenario)).policies.append(_series(run.policy, logs))
    return list(found.values())


def cdf(jct_s: Floats, points: int = 240) -> tuple[Floats, Floats]:
    """Return (x, y) of an empirical distribution function, thinned; unfinished requests never appear."""
    n = len(jct_s)
    finished = jct_s[np.isfinite(jct_s)]
    if not len(finished):
        return np.zeros(0), np.zeros(0)
    picks = np.unique(np.linspace(0, len(finished) - 1, points).round().astype(int))
    return finished[picks], (picks + 1) / n


def in_flight(log: EpisodeLog, times_s: Floats) -> NDArray[np.int64]:
    """Return how many requests are in the system at each time."""
    finishes = np.sort(log.requests["finish_s"][np.isfinite(log.requests["finish_s"])])
    arrived = np.searchsorted(np.sort(log.requests["arrival_s"]), times_s, side="right")
    return np.asarray(arrived - np.searchsorted(finishes, times_s, side="right"), dtype=np.int64)


def service_start_s(log: EpisodeLog) -> Floats:
    """Return when each call was first scheduled, (calls,); nan: not yet.

    Nobody outside a real server sees that; of a live run it is when calls were sent.
    """
    start_s: Floats = log.calls["start_s"]
    return start_s if np.isfinite(start_s).any() else log.calls["dispatch_s"]


def occupancy(log: EpisodeLog, replica: int, times_s: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (running, waiting) calls of a replica at each time; waiting: dispatched, never scheduled yet."""
    mine = log.calls["route"] == replica

    def passed(moments_s: Floats) -> NDArray[np.int64]:
        moments_s = moments_s[mine & np.isfinite(moments_s)]
        return np.asarray(np.searchsorted(np.sort(moments_s), times_s, side="right"), dtype=np.int64)

    dispatched, started = passed(log.calls["dispatch_s"]), passed(service_start_s(log))
    return started - passed(log.calls["finish_s"]), dispatched - started


def lanes(begin_s: Floats, end_s: Floats) -> NDArray[np.int64]:
    """Put intervals (sorted by begin) on as few lanes as possible; return (n,) lane numbers."""
    import heapq

    result = np.zeros(len(begin_s), dtype=np.int64)
    busy: list[tuple[float, int]] = []
    free: list[int] = []
    used = 0
    for i, (begin, end) in enumerate(zip(begin_s, end_s, strict=True)):
        while busy and busy[0][0] <= begin:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, used = used, used + 1
        result[i] = lane
        heapq.heappush(busy, (float(end), lane))
    return result


def gantt_window(log: EpisodeLog, calls: int = 350) -> tuple[float, float]:
    """Return a stretch in the middle in which about `calls` calls start: more cannot be read."""
    started = service_start_s(log)
    started = started[np.isfinite(started)]
    if len(started) <= calls:
        return 0.0, float(log.duration_s)
    ordered = np.sort(started)
    middle = int(np.searchsorted(ordered, np.median(log.requests["arrival_s"])))
    low = int(np.clip(middle - calls // 2, 0, len(ordered) - calls))
    return float(ordered[low]), float(ordered[low + calls - 1])


def _series(policy: str, logs: list[EpisodeLog]) -> PolicySeries:
    jct = []
    for log in logs:
        requests = counted(log)
        latency = requests["finish_s"] - requests["arrival_s"]
        jct.append(np.where(np.isfinite(latency), latency, np.inf))
    first = logs[0]
    m = len(first.models)
    stages: dict[tuple[str, str], Floats] = {}
    tokens = {name: np.zeros(m) for name in ("calls", "prompt", "cached", "output", "preemptions")}
    for log in logs:
        calls = log.calls[log.calls["request"] >= log.warmup_requests]
        workflow = log.requests["workflow"][calls["request"]]
        for w, name in enumerate(log.workflows):
            for node, stage in enumerate(log.node_names[w]):
                mine = calls["model"][(workflow == w) & (calls["node"] == node)]
                if len(mine):
                    # Copies of a fan-out stage are named stage[0], stage[1], ...: one row for all of them.
                    key = (name, stage.split("[")[0])
                    stages[key] = stages.get(key, np.zeros(m)) + np.bincount(mine, minlength=m)
        tokens["calls"] += np.bincount(calls["model"], minlength=m)
        for short, column in _TOKEN_COLUMNS:
            tokens[short] += np.bincount(calls["model"], weights=calls[column], minlength=m)
    total = max(tokens["calls"].sum(), 1.0)
    return PolicySeries(
        policy,
        np.sort(np.concatenate(jct)),
        tokens["calls"] / total,
        {key: counts / counts.sum() for key, counts in stages.items()},
        tokens,
        first,
    )


_TOKEN_COLUMNS = (
    ("prompt", "prompt_tokens"),
    ("cached", "cached_tokens"),
    ("output", "output_tokens"),
    ("preemptions", "preemptions"),
)
