"""What recorded calls say of their server's iterations.

A client sees when each token arrives. While a call generates, its server runs one iteration per token of it, so between the
first and the last token of a call lie as many iterations as it has tokens after the first. What else was in them is known as
well, for every call is ours: a token of another call that arrived meanwhile was another sequence in an iteration, a first
token was a prompt. Such a *span* is one observation; sums over many iterations are hurt less by jitter and by tokens that
arrive in one piece than single gaps are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..recording.reader import Recording

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spans:
    """One server's calls as observations of its iterations, n of them; and their first tokens."""

    seconds: Floats  # (n,) first to last token
    iterations: Floats  # (n,)
    sequences: Floats  # (n,) summed over these iterations: sequences that generate
    prompt_tokens: Floats  # (n,) prompt tokens computed in them, of other calls
    prompts: Floats  # (n,) how many prompts those were
    context: Floats  # (n,) summed over iterations and sequences: tokens of context
    busy: Floats  # (n, R) share of the span in which 0, 1, 2, ... other servers were busy
    first_s: Floats  # (n,) dispatch to first token
    own_tokens: Floats  # (n,) prompt tokens that were not cached
    company: Floats  # (n,) sequences that generated when it was dispatched
    started_busy: Floats  # (n, R) the same as `busy`, between dispatch and first token
    in_flight: Floats  # (n,) other calls at the server when it was dispatched
    close_s: Floats  # (n,) last token to end of call

    def __len__(self) -> int:
        return len(self.seconds)

    def __getitem__(self, which: NDArray[np.bool_]) -> Spans:
        return Spans(**{name: getattr(self, name)[which] for name in Spans.__dataclass_fields__})


@dataclass(frozen=True, eq=False)
class RunObservations:
    """What one recording says."""

    servers: dict[str, Spans]
    """By name of the replica; those that served no call are missing."""
    decision_s: Floats
    """(d,) the client's time per dispatch: since the call was ready, or since the dispatch before if that was later. Calls
    that the policy held back are left out."""
    served_s: float
    """From the first dispatch to the last end."""
    busy_servers: float
    """Servers with at least one call, mean over that time."""
    failed: int
    """Calls that failed: they are no observations."""


@dataclass(frozen=True, eq=False)
class _Call:
    dispatch_s: float
    finish_s: float
    prompt: int
    cached: int
    token_s: Floats
    token_count: NDArray[np.int32]


def observe(recording: Recording) -> RunObservations:
    """Return what a recording says of its servers and its client."""
    names: list[str] = json.loads(recording.run["routes"])
    calls: dict[int, list[_Call]] = {}
    busy: dict[int, list[tuple[float, float]]] = {}
    failed = 0
    for row in recording.rows("calls"):
        if row["finish_s"] is None:
            continue
        busy.setdefault(row["route"], []).append((row["dispatch_s"], row["finish_s"]))
        if row["status"] != "ok" or row["token_s"] is None:
            failed += 1
            continue
        token_s, count = recording.arrays(row)
        if len(token_s):
            cached = row["cached_tokens"] or 0
            call = _Call(row["dispatch_s"], row["finish_s"], row["prompt_tokens"] or 0, cached, token_s, count)
            calls.setdefault(row["route"], []).append(call)
    spans = {r: _merged(intervals) for r, intervals in busy.items()}
    level = _Level(list(spans.values()), len(names))
    begin, end = level.times[0] if len(level.times) else 0.0, level.times[-1] if len(level.times) else 0.0
    return RunObservations(
        servers={names[r]: _spans(mine, busy[r], level) for r, mine in sorted(calls.items())},
        decision_s=_decision_times(recording),
        served_s=float(end - begin),
        busy_servers=sum(b - a for mine in spans.values() for a, b in mine) / (end - begin) if end > begin else 0.0,
        failed=failed,
    )


def _merged(intervals: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the union of intervals as disjoint ones."""
    result: list[tuple[float, float]] = []
    for begin, end in sorted(intervals):
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        else:
            result.append((begin, end))
    return result


class _Level:
    """How many servers were busy when: integrals over time of "exactly k are"."""

    def __init__(self, servers: Sequence[Sequence[tuple[float, float]]], most: int) -> None:
        edges = sorted([(a, 1) for mine in servers for a, _ in mine] + [(b, -1) for mine in servers for _, b in mine])
        self.times = np.array([time for time, _ in edges])
        steps = np.cumsum([step for _, step in edges])
        lengths = np.diff(self.times)
        # integral[k, i]: seconds until times[i] in which k servers were busy
        self._integral = np.zeros((most + 1, len(edges)))
        for k in range(most + 1):
            self._integral[k, 1:] = np.cumsum(np.where(steps[:-1] == k, lengths, 0.0))

    def shares_of_others(self, begin_s: Floats, end_s: Floats) -> Floats:
        """Return (n, R) shares of intervals, in all of which one server is busy, with 0, 1, ... others busy."""
        parts = [np.interp(end_s, self.times, row) - np.interp(begin_s, self.times, row) for row in self._integral[1:]]
        seconds = np.maximum(np.stack(parts, axis=1), 0.0)
        total = seconds.sum(axis=1, keepdims=True)
        shares = np.divide(seconds, total, out=np.zeros_like(seconds), where=total > 0)
        shares[total[:, 0] <= 0, 0] = 1.0
        return np.asarray(shares)


def _spans(calls: Sequence[_Call], held: Sequence[tuple[float, float]], level: _Level) -> Spans:
    """Turn one server's calls into observations."""
    first = np.array([call.token_s[0] for call in calls])
    last = np.array([call.token_s[-1] for call in calls])
    dispatch = np.array([call.dispatch_s for call in calls])
    own = np.array([float(call.prompt - call.cached) for call in calls])
    iterations = np.array([float(call.token_count[-1] - call.token_count[0]) for call in calls])
    # Every later token of every call: when, how many at once, and the context that its sequence had then.
    later_s = np.concatenate([call.token_s[1:] for call in calls])
    tokens = np.concatenate([np.diff(call.token_count) for call in calls]).astype(np.float64)
    context = np.concatenate([call.prompt + call.token_count[1:] for call in calls]) * tokens
    # Tokens of one iteration arrive together, give or take some jitter: count from half an iteration after the first token.
    half = 0.5 * np.divide(last - first, iterations, out=np.zeros(len(calls)), where=iterations > 0)
    window = (first + half, last + half)
    begins, ends = (np.sort(np.array(side)) for side in zip(*held, strict=True))
    in_flight = np.searchsorted(begins, dispatch, "left") - np.searchsorted(ends, dispatch, "right")
    return Spans(
        seconds=last - first,
        iterations=iterations,
        sequences=_within(later_s, tokens, *window),
        prompt_tokens=_within(first, own, *window),
        prompts=_within(first, np.ones(len(calls)), *window),
        context=_within(later_s, context, *window),
        busy=level.shares_of_others(first, last),
        first_s=first - dispatch,
        own_tokens=own,
        company=(np.searchsorted(np.sort(first), dispatch) - np.searchsorted(np.sort(last), dispatch)).astype(float),
        started_busy=level.shares_of_others(dispatch, first),
        in_flight=in_flight.astype(float),
        close_s=np.array([call.finish_s - call.token_s[-1] for call in calls]),
    )


def _within(times: Floats, amounts: Floats, begin_s: Floats, end_s: Floats) -> Floats:
    """Return (n,) the sum of `amounts` at times in (begin, end] of each interval."""
    order = np.argsort(times, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(amounts[order])])
    ordered = times[order]
    return np.asarray(
        total[np.searchsorted(ordered, end_s, "right")] - total[np.searchsorted(ordered, begin_s, "right")]
    )


def _decision_times(recording: Recording) -> Floats:
    """Return what each dispatch took the client, where no policy chose to wait."""
    waited: set[tuple[int, int]] = set()
    dispatched: dict[int, tuple[int, int]] = {}
    for row in recording.rows("decisions"):
        if row["action"] == "dispatch":
            dispatched[row["decision"]] = (row["request"], row["node"])
        elif row["ready"]:
            seen = recording.view(row["decision"]).calls
            waited.update(zip(seen["request"].tolist(), seen["node"].tolist(), strict=True))
    times, free_s = [], -np.inf
    rows = sorted(recording.rows("calls"), key=lambda row: float(row["dispatch_s"]))
    for row in rows:
        held = dispatched.get(row["decision"]) in waited or row["attempt"] > 1
        if row["decision"] is not None and not held:
            times.append(row["dispatch_s"] - max(row["ready_s"], free_s))
        free_s = row["dispatch_s"]
    return np.maximum(np.array(times, np.float64), 0.0)
