"""The log of a live episode, in the form that all backends share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...compiled_scenario import CompiledScenario
from ...episode import CALL_DTYPE, REQUEST_DTYPE, EpisodeLog
from ...latency.compiled import PS_PER_S
from ...servers.client import Completion

if TYPE_CHECKING:
    from .episode import LiveEpisode


@dataclass
class CallTrace:
    """One attempt at a call."""

    request: int
    node: int
    model: int
    route: int
    ready_s: float
    dispatch_s: float
    prompt_tokens: int
    output_tokens: int = 0
    cached_tokens: int = 0
    first_token_s: float = float("nan")
    finish_s: float = float("nan")
    failed: bool = False

    def end(self, result: Completion, at: Callable[[float], float]) -> None:
        """The server has answered; `at` turns its clock's time into that of the episode."""
        self.prompt_tokens = result.prompt_tokens or self.prompt_tokens
        self.output_tokens, self.cached_tokens = result.output_tokens, result.cached_tokens
        self.first_token_s, self.finish_s = at(result.first_token_s), at(result.finish_s)


def live_log(episode: LiveEpisode) -> EpisodeLog:
    """Return the log of an episode, without policy name and decision times.

    A failed request never finishes: metrics count it among the unfinished. Attempts that failed are not among the calls; the
    recording has them. When the engine first scheduled a call cannot be seen from outside: `start_s` is nan.
    """
    compiled = episode.compiled
    traces = [trace for trace in episode.traces.values() if not trace.failed]
    traces.sort(key=lambda trace: trace.dispatch_s)
    replicas = len(compiled.replicas)
    return EpisodeLog(
        **compiled.log_header,
        policy="",
        seed=-1,
        requests=_requests(episode),
        calls=_calls(traces),
        decision_s=np.array(episode.decided_s, np.float64),
        busy_s=np.array([_busy_s(traces, r, episode.now_s) for r in range(replicas)]),
        iterations=np.zeros(replicas, np.int64),
        duration_s=episode.duration_s if episode.done else episode.now_s,
        truncated=episode.truncated,
        outcome_kinds=tuple("live" for _ in compiled.graphs),
        notes={
            "backend": "live",
            "recording": str(episode.record.path),
            "retries": episode.retries,
            "failed_requests": {r.rank: r.reason for r in episode.requests if r.status == "failed"},
            "standalone_s": "of the outcome table"
            if all(episode.queries.measured)
            else "mean of the simulated queries",
        },
    )


def _requests(episode: LiveEpisode) -> NDArray[np.void]:
    compiled = episode.compiled
    rows = np.zeros(len(episode.requests), REQUEST_DTYPE)
    for row, request in zip(rows, episode.requests, strict=True):
        done = request.status == "done"
        configuration = request.configuration(len(compiled.models)) if done else -1
        row["workflow"], row["query"], row["arrival_s"] = request.workflow, request.query, request.arrival_s
        row["finish_s"], row["configuration"], row["correct"] = request.finish_s, configuration, request.correct
        row["p_correct"], row["p_largest"] = _expected(
            compiled, episode, request.workflow, request.query, configuration
        )
        row["standalone_s"] = _standalone_s(compiled, episode, request.workflow, request.query)
    return rows


def _expected(
    compiled: CompiledScenario, episode: LiveEpisode, workflow: int, query: int, configuration: int
) -> tuple[float, float]:
    """Return what the measured table says of the query, nan where there is none."""
    if not episode.queries.measured[workflow]:
        return float("nan"), float("nan")
    p = compiled.outcomes[workflow].p_correct[query]
    return (float(p[configuration]) if configuration >= 0 else float("nan")), float(p[-1])


def _standalone_s(compiled: CompiledScenario, episode: LiveEpisode, workflow: int, query: int) -> float:
    """Return the time a query takes alone, as the simulator says; the mean of its queries for one that it does not know."""
    first, n = int(compiled.workflow.first_row[workflow]), compiled.outcomes[workflow].queries
    rows = compiled.standalone_ps[first : first + n] / PS_PER_S
    return float(rows[query] if episode.queries.measured[workflow] else rows.mean())


def _calls(traces: Sequence[CallTrace]) -> NDArray[np.void]:
    rows = np.zeros(len(traces), CALL_DTYPE)
    for row, trace in zip(rows, traces, strict=True):
        for name in CALL_DTYPE.names or ():
            if name not in ("preemptions", "start_s"):
                row[name] = getattr(trace, name)
    rows["start_s"] = np.nan
    return rows


def _busy_s(traces: Sequence[CallTrace], route: int, now_s: float) -> float:
    """Return how long a server had at least one of our calls."""
    spans = sorted((t.dispatch_s, t.finish_s if np.isfinite(t.finish_s) else now_s) for t in traces if t.route == route)
    total, end = 0.0, -np.inf
    for begin_s, finish_s in spans:
        total += max(0.0, finish_s - max(begin_s, end))
        end = max(end, finish_s)
    return float(total)
