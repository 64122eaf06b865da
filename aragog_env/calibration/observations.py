"""What recorded calls say of their server's iterations.

While a call generates, its server runs one iteration per token of it, so a call of n tokens took n iterations, plus half a one
on average where it found the server at work. What else was in them is known as well, for every call is ours: a token of
another call that arrived meanwhile was another sequence in an iteration, a first token was a prompt. Each call gives three
observations (`Window`): the whole of it, the time to its first token, and the time from its first to its last.

The whole is the one to trust. On a busy machine tokens wait on their way to the client and arrive in clumps, which makes the
first late and the rest seem fast; the sum hardly minds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..recording.reader import Recording

Floats = NDArray[np.float64]
_CLUMPED = 0.3
"""Two tokens closer than this share of a call's mean pace were written apart and sent together."""


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of time of each of n calls, and what its server did in it."""

    seconds: Floats  # (n,)
    iterations: Floats  # (n,)
    sequences: Floats  # (n,) summed over these iterations: sequences that generate
    prompt_tokens: Floats  # (n,) prompt tokens computed in them, the cached ones left out
    prompts: Floats  # (n,) how many prompts those were
    context: Floats  # (n,) summed over iterations and sequences: tokens of context
    busy: Floats  # (n, R) share of the time in which 0, 1, 2, ... other servers were busy

    def __len__(self) -> int:
        return len(self.seconds)

    def __getitem__(self, which: NDArray[np.bool_]) -> Window:
        return Window(**{name: getattr(self, name)[which] for name in Window.__dataclass_fields__})


@dataclass(frozen=True, eq=False)
class Calls:
    """One server's finished calls as observations, n of them."""

    whole: Window
    """Dispatch to last token."""
    start: Window
    """Dispatch to first token."""
    decode: Window
    """First to last token; no iterations where there was but one token."""
    in_flight: Floats  # (n,) other calls at the server when it was dispatched
    others: Floats  # (n, R) one-hot: how many other servers were busy when it was dispatched
    alone: Floats  # (n,) 1 where none of these still waited for its first token, else 0
    smooth: (
        Floats  # (n,) 1 where the second token did not come on the heels of the first, which must have been late then
    )
    close_s: Floats  # (n,) last token to end of call

    def __len__(self) -> int:
        return len(self.close_s)

    def __getitem__(self, which: NDArray[np.bool_]) -> Calls:
        return Calls(**{name: getattr(self, name)[which] for name in Calls.__dataclass_fields__})

    @classmethod
    def joined(cls, parts: Sequence[Calls]) -> Calls:
        """Return the observations of several recordings or servers as one."""

        def join(name: str) -> Window:
            windows = [getattr(part, name) for part in parts]
            columns = Window.__dataclass_fields__
            return Window(**{column: np.concatenate([getattr(w, column) for w in windows]) for column in columns})

        names = ("in_flight", "others", "alone", "smooth", "close_s")
        rest = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(join("whole"), join("start"), join("decode"), **rest)


@dataclass(frozen=True, eq=False)
class RunObservations:
    """What one recording says."""

    servers: dict[str, Calls]
    """By name of the replica; those that served no call are missing."""
    decision_s: Floats
    """(d,) the client's time per dispatch: since the call was ready, or since the dispatch before if that was later. Calls
    that the policy held back are left out."""
    decision_busy: Floats  # (d, R) one-hot: how many servers were busy then, less one where any was
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
    decision_s, when_s = _decision_times(recording)
    return RunObservations(
        servers={names[r]: _observed(mine, busy[r], level) for r, mine in sorted(calls.items())},
        decision_s=decision_s,
        decision_busy=level.at(when_s),
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
        steps = self._busy = np.cumsum([step for _, step in edges])
        lengths = np.diff(self.times)
        # integral[k, i]: seconds until times[i] in which k servers were busy
        self._integral = np.zeros((most + 1, len(edges)))
        for k in range(most + 1):
            self._integral[k, 1:] = np.cumsum(np.where(steps[:-1] == k, lengths, 0.0))

    def at(self, when_s: Floats, own: NDArray[np.bool_] | None = None) -> Floats:
        """Return (n, R) one-hot: how many servers were busy just before moments, without one's own.

        Args:
            when_s: (n,) seconds.
            own: (n,) whether one's own server was busy then; None: one of them is one's own, if any was busy.
        """
        result = np.zeros((len(when_s), len(self._integral) - 1))
        place = np.searchsorted(self.times, when_s, "left") - 1
        busy = np.where(place >= 0, self._busy[np.maximum(place, 0)], 0) if len(self._busy) else 0 * place
        others = busy - (busy > 0 if own is None else own)
        result[np.arange(len(when_s)), np.clip(others, 0, result.shape[1] - 1)] = 1.0
        return result

    def shares_of_others(self, begin_s: Floats, end_s: Floats) -> Floats:
        """Return (n, R) shares of intervals, in all of which one server is busy, with 0, 1, ... others busy."""
        parts = [np.interp(end_s, self.times, row) - np.interp(begin_s, self.times, row) for row in self._integral[1:]]
        seconds = np.maximum(np.stack(parts, axis=1), 0.0)
        total = seconds.sum(axis=1, keepdims=True)
        shares = np.divide(seconds, total, out=np.zeros_like(seconds), where=total > 0)
        shares[total[:, 0] <= 0, 0] = 1.0
        return np.asarray(shares)


def _observed(calls: Sequence[_Call], held: Sequence[tuple[float, float]], level: _Level) -> Calls:
    """Turn one server's calls into observations."""
    first = np.array([call.token_s[0] for call in calls])
    last = np.array([call.token_s[-1] for call in calls])
    dispatch = np.array([call.dispatch_s for call in calls])
    own = np.array([float(call.prompt - call.cached) for call in calls])
    later = np.array([float(call.token_count[-1] - call.token_count[0]) for call in calls])
    tokens = _Tokens(calls, first, own)
    begins, ends = (np.sort(np.array(side)) for side in zip(*held, strict=True))
    in_flight = (np.searchsorted(begins, dispatch, "left") - np.searchsorted(ends, dispatch, "right")).astype(float)
    generating = np.searchsorted(np.sort(first), dispatch, "right") - np.searchsorted(np.sort(last), dispatch, "right")
    unfinished = np.searchsorted(np.sort(dispatch), dispatch, "left") - np.searchsorted(
        np.sort(last), dispatch, "right"
    )
    # The iteration that computes its prompt, and half of the one that a call finds under way.
    start = np.where(in_flight > 0, 1.5, 1.0)
    # Tokens of one iteration arrive together, give or take some jitter: count from half an iteration after the first token.
    half = 0.5 * np.divide(last - first, later, out=np.zeros(len(calls)), where=later > 0)
    decode = tokens.window(first + half, last + half, later)
    return Calls(
        whole=replace(
            tokens.window(dispatch, last, start + later),
            seconds=last - dispatch,
            busy=level.shares_of_others(dispatch, last),
        ),
        start=Window(
            seconds=first - dispatch,
            iterations=start,
            sequences=start * in_flight,
            prompt_tokens=own,
            prompts=np.ones(len(calls)),
            context=np.zeros(len(calls)),
            busy=level.shares_of_others(dispatch, first),
        ),
        decode=replace(decode, seconds=last - first, busy=level.shares_of_others(first, last)),
        in_flight=in_flight,
        others=level.at(dispatch, own=in_flight > 0),
        alone=(unfinished <= generating).astype(float),
        smooth=np.array([_is_smooth(call) for call in calls], np.float64),
        close_s=np.array([call.finish_s - call.token_s[-1] for call in calls]),
    )


def _is_smooth(call: _Call) -> bool:
    if len(call.token_s) < 2:
        return False
    pace_s = (call.token_s[-1] - call.dispatch_s) / call.token_count[-1]
    return bool(call.token_s[1] - call.token_s[0] > _CLUMPED * pace_s)


class _Tokens:
    """When every token of a server's calls arrived: sums over intervals of time."""

    def __init__(self, calls: Sequence[_Call], first: Floats, own: Floats) -> None:
        self._first, self._own = first, own
        # Every later token: when, how many at once, and the context that its sequence had then.
        self._later_s = np.concatenate([call.token_s[1:] for call in calls])
        self._tokens = np.concatenate([np.diff(call.token_count) for call in calls]).astype(np.float64)
        self._context = np.concatenate([call.prompt + call.token_count[1:] for call in calls]) * self._tokens

    def window(self, begin_s: Floats, end_s: Floats, iterations: Floats) -> Window:
        """Return what happened in (begin, end] of each interval; seconds and busy shares are the caller's."""
        bounds = (begin_s, end_s)
        return Window(
            seconds=end_s - begin_s,
            iterations=iterations,
            sequences=_within(self._later_s, self._tokens, *bounds),
            prompt_tokens=_within(self._first, self._own, *bounds),
            prompts=_within(self._first, np.ones(len(self._first)), *bounds),
            context=_within(self._later_s, self._context, *bounds),
            busy=np.zeros((len(begin_s), 0)),
        )


def _within(times: Floats, amounts: Floats, begin_s: Floats, end_s: Floats) -> Floats:
    """Return (n,) the sum of `amounts` at times in (begin, end] of each interval."""
    order = np.argsort(times, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(amounts[order])])
    ordered = times[order]
    return np.asarray(
        total[np.searchsorted(ordered, end_s, "right")] - total[np.searchsorted(ordered, begin_s, "right")]
    )


def _decision_times(recording: Recording) -> tuple[Floats, Floats]:
    """Return what each dispatch took the client, where no policy chose to wait, and when it began."""
    waited: set[tuple[int, int]] = set()
    dispatched: dict[int, tuple[int, int]] = {}
    for row in recording.rows("decisions"):
        if row["action"] == "dispatch":
            dispatched[row["decision"]] = (row["request"], row["node"])
        elif row["ready"]:
            seen = recording.view(row["decision"]).calls
            waited.update(zip(seen["request"].tolist(), seen["node"].tolist(), strict=True))
    times: list[float] = []
    begins: list[float] = []
    free_s = -np.inf
    rows = sorted(recording.rows("calls"), key=lambda row: float(row["dispatch_s"]))
    for row in rows:
        held = dispatched.get(row["decision"]) in waited or row["attempt"] > 1
        if row["decision"] is not None and not held:
            begins.append(max(row["ready_s"], free_s))
            times.append(row["dispatch_s"] - begins[-1])
        free_s = row["dispatch_s"]
    return np.maximum(np.array(times, np.float64), 0.0), np.array(begins, np.float64)
