"""The numerical half of a calibration: iteration times, submit times and slowdowns from observations.

One engine iteration takes (see `aragog_env.latency.roofline.linear_table`)

    slowdown[others busy] * (overhead + per_token * tokens + per_decode * sequences + per_kv_token * context
                             + per_prompt * prompts)

and a call on top of its iterations `outside[others busy] * submit` before and `close` after them. Every call is seen three
times (`observations`): as a whole, to its first token, and from there on; each kind weighs as much as it is predicted well.
Iteration times per server and the slowdowns of all are fitted in turns, each by non-negative least squares, until neither
changes.

A coefficient that the recordings do not tell apart from others, or that explains nothing, stays 0 and its time is in the
others: per sequence, where no two calls ever ran at once; slowdowns, where the same servers were always busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .least_squares import non_negative
from .observations import Calls, Floats, Window

TERMS: Final = ("overhead_ms", "per_token_ms", "per_decode_ms", "per_prompt_ms", "per_kv_token_ms")
"""Coefficients of the iteration time, in the order of the features."""
LEAST_CALLS: Final = 20
"""Calls that a server needs to be fitted."""
_ROUNDS: Final = 80
_CHOOSING: Final = 24
"""Rounds in which terms are chosen; later ones only settle the numbers."""
_SETTLED: Final = 7
"""Rounds that suffice where there are no slowdowns."""
_LEAP: Final = 4
_STILL: Final = 3e-4
_MOST_SHARE: Final = 0.97
_REWEIGHTINGS: Final = 6
_FAR: Final = 2.0
_LEAST_SPREAD: Final = 0.5
"""However well it is predicted, no kind of observation counts as less spread than this share of whole calls' spread."""
_MOST_SLOWDOWN: Final = 10.0
"""Per further busy server; what would be more is no sharing of a processor."""
_IN_ORDER: Final = ("per_decode_ms", "per_prompt_ms", "per_token_ms", "per_kv_token_ms")
_OUTLIER: Final = 4.0
"""A call that took this many times longer or shorter than predicted is left out: something else had the machine."""
_STALL: Final = 10.0
"""The same before anything is fitted, against the median time per iteration."""
_LEAST_SHARE: Final = 0.01
"""Share of all busy time that a number of busy servers must have to get a factor of its own."""
_NOTEWORTHY: Final = 0.02
"""Slowdowns of iterations all below this count as none; a term beside the overhead must explain this share of the error."""
_NOTEWORTHY_OUTSIDE: Final = 0.3
"""The same for what lies outside the engines, which is known far worse."""


@dataclass(frozen=True, eq=False)
class Steps:
    """By how much each further busy server slows the others down. L = most other busy servers."""

    inside: Floats  # (L,) iterations
    outside: Floats  # (L,) what lies outside the engines

    @classmethod
    def of(cls, values: Floats) -> Steps:
        """Return (2L,) values as steps."""
        levels = len(values) // 2
        return cls(values[:levels], values[levels:])

    @property
    def values(self) -> Floats:
        """All of them, (2L,)."""
        return np.concatenate([self.inside, self.outside])


@dataclass
class Group:
    """The observations of one replica while they are fitted: calls that found no queue."""

    name: str
    calls: Calls
    terms: Floats
    submit_s: float = 0.0
    outliers: int = 0
    used: list[int] = field(default_factory=list)
    """Columns that are worth their places."""

    def whole(self, steps: Steps) -> Window:
        """Return the calls as a whole, as they would have been had they taken as long as is predicted.

        While a call is on its way to the engine, others get iterations that it knows nothing of. And whatever makes a call
        slow lets more prompts arrive meanwhile: taken as they are, these would seem to be the cause.
        """
        calls, before_s = self.calls, self.before_s(steps)
        inside = np.clip(1.0 - before_s / np.maximum(calls.whole.seconds, 1e-9), 0.0, 1.0)
        own = {"sequences": calls.decode.iterations, "prompt_tokens": calls.start.prompt_tokens, "prompts": 1.0}
        scaled = {name: mine + inside * (getattr(calls.whole, name) - mine) for name, mine in own.items()}
        window = replace(calls.whole, **scaled)
        pace = self._pace(window, steps, before_s)
        return replace(
            window, **{name: own[name] + pace * (scaled[name] - own[name]) for name in ("prompt_tokens", "prompts")}
        )

    def decode(self, steps: Steps) -> Window:
        """Return what follows first tokens, likewise, of calls whose first token was not late."""
        window = self.calls.decode[(self.calls.decode.iterations > 0) & (self.calls.smooth > 0)]
        pace = self._pace(window, steps, 0.0)
        return replace(window, prompt_tokens=pace * window.prompt_tokens, prompts=pace * window.prompts)

    def _pace(self, window: Window, steps: Steps, before_s: Floats | float) -> Floats:
        """Return (n,) predicted over measured seconds; 1 before anything is predicted."""
        if not self.terms.any():
            return np.ones(len(window))
        predicted_s = self.slowed_s(window, steps) + before_s
        return np.asarray(np.clip(predicted_s / np.maximum(window.seconds, 1e-9), 1.0 / _OUTLIER, _OUTLIER))

    def before_s(self, steps: Steps) -> Floats:
        """Return (n,) predicted seconds before the engine has a call."""
        return self.submit_s * factors(self.calls.others, steps.outside)

    def engine_s(self, window: Window) -> Floats:
        """Return (n,) predicted seconds of iterations when nobody else is busy."""
        return np.asarray(_features(window) @ self.terms)

    def slowed_s(self, window: Window, steps: Steps) -> Floats:
        """Return (n,) predicted seconds of iterations."""
        return self.engine_s(window) * factors(window.busy, steps.inside)


def no_stall(calls: Calls) -> NDArray[np.bool_]:
    """Return which calls took no absurd time per iteration: one stall of seconds would bend everything that is fitted."""
    pace_s = calls.whole.seconds / calls.whole.iterations
    return np.asarray(pace_s < _STALL * np.median(pace_s)) if len(calls) else np.zeros(0, np.bool_)


def _features(window: Window) -> Floats:
    """Return (n, 5) what the terms of `TERMS` are multiplied by."""
    tokens = window.sequences + window.prompt_tokens
    return np.stack([window.iterations, tokens, window.sequences, window.prompts, window.context], axis=1)


def _above(busy: Floats) -> Floats:
    """Return (n, R) shares of time with at least 0, 1, 2, ... others busy."""
    return np.asarray(np.cumsum(busy[:, ::-1], axis=1)[:, ::-1])


def factors(busy: Floats, steps: Floats) -> Floats:
    """Return (n,) mean slowdown: 1 plus the steps of all levels that are reached."""
    return np.asarray(1.0 + _above(busy)[:, 1 : 1 + len(steps)] @ steps)


def fit_groups(groups: Sequence[Group], *, shared: bool) -> Steps:
    """Fit terms and slowdowns in turns; return the rise of slowdowns from each number of busy servers to the next."""
    levels = _levels(groups) if shared else 0
    steps = before = np.zeros(2 * levels)
    for round_ in range(_ROUNDS):
        for group in groups:
            _fit_terms(group, Steps.of(steps), choose=round_ < _CHOOSING)
        if not levels:
            if round_ == _SETTLED:
                break
            continue
        moved = _fit_steps(groups, Steps.of(steps)) - steps
        steps = steps + moved
        if np.abs(moved).max() < _STILL and round_ >= _CHOOSING:
            break
        if round_ % _LEAP == _LEAP - 1:
            # The two fits creep towards each other, each round by a like share: leap to where that leads (Aitken).
            share = float(np.linalg.norm(moved) / max(float(np.linalg.norm(before)), 1e-12))
            if share < _MOST_SHARE:
                steps = np.clip(steps + moved * share / (1.0 - share), 0.0, _MOST_SLOWDOWN)
        before = moved
    found = Steps.of(steps)
    if not levels or found.inside.sum() >= _NOTEWORTHY or found.outside.sum() >= _NOTEWORTHY_OUTSIDE:
        return found
    none = Steps.of(np.zeros(0))
    for group in groups:
        _fit_terms(group, none, choose=True)
    return none


def _levels(groups: Sequence[Group]) -> int:
    """Return up to how many other busy servers the recordings say something about."""
    seconds = seconds_by_level(groups)
    enough = np.flatnonzero(seconds >= _LEAST_SHARE * seconds.sum())
    return int(enough[-1]) if len(enough) else 0


def seconds_by_level(groups: Sequence[Group]) -> Floats:
    """Return (R,) seconds of calls in which 0, 1, 2, ... other servers were busy."""
    return np.asarray(sum(group.calls.whole.seconds @ group.calls.whole.busy for group in groups))


def _fit_terms(group: Group, steps: Steps, *, choose: bool) -> None:
    """Fit one server's terms and its submit time at given slowdowns; find out which are worth their places, or keep these."""
    windows = _kinds(group, steps)
    features = np.concatenate(
        [np.column_stack([_features(w) * factors(w.busy, steps.inside)[:, None], outside]) for w, outside in windows]
    )
    target, base, kind = _targets(windows)
    used = [0, len(TERMS)] if choose else group.used
    found, weights = _robust(features[:, used], target, base, kind)
    for term in _IN_ORDER if choose else ():
        trial = [*used, TERMS.index(term)]
        better = non_negative(features[:, trial], target, weights)
        errors = (_error(features[:, c], b, target, weights) for c, b in ((used, found), (trial, better)))
        before, after = errors
        if after < (1.0 - _NOTEWORTHY) * before:
            used = trial
            found, weights = _robust(features[:, used], target, base, kind)
    everything = np.zeros(len(TERMS) + 1)
    everything[used] = found
    group.used = used
    group.terms, group.submit_s = everything[:-1], float(everything[-1])


def _kinds(group: Group, steps: Steps) -> list[tuple[Window, Floats]]:
    """Return the three kinds of observations, each with how many submit times are in them (`Steps.outside`)."""
    calls = group.calls
    outside = factors(calls.others, steps.outside)
    clean = _clean(calls)
    decode = group.decode(steps)
    return [(group.whole(steps), outside), (calls.start[clean], outside[clean]), (decode, np.zeros(len(decode)))]


def _clean(calls: Calls) -> NDArray[np.bool_]:
    """Return which first tokens tell something.

    Where another call still waits for its own, nobody knows what the iteration of this one's prompt holds.
    """
    return np.asarray((calls.alone > 0) & (calls.smooth > 0))


def _targets(windows: Sequence[tuple[Window, Floats]]) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return seconds, weights and kind of all observations; the variance of a sum grows with the iterations in it."""
    target = np.concatenate([w.seconds for w, _ in windows])
    base = 1.0 / np.concatenate([w.iterations for w, _ in windows])
    return target, base, np.repeat(np.arange(len(windows)), [len(w) for w, _ in windows])


def _error(features: Floats, found: Floats, target: Floats, weights: Floats) -> float:
    return float(weights @ (features @ found - target) ** 2)


def _robust(features: Floats, target: Floats, base: Floats, kind: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Fit, weighing each kind of observation by how well it is predicted, and far ones down; return also the weights.

    Huber's weights: what is more than twice the usual deviation off counts with its distance, not with the square of it. A
    machine that stands still now and then would otherwise pull everything towards its worst moments.
    """
    weights = base
    for _ in range(_REWEIGHTINGS):
        found = non_negative(features, target, weights)
        off = np.abs(features @ found - target) * np.sqrt(base)
        usual = np.ones(int(kind.max()) + 1)
        for k in range(len(usual)):
            if (kind == k).any():
                usual[k] = 1.4826 * np.median(off[kind == k])
        # Kind 0, whole calls, always has its say: without it nothing tells what lies before the engine.
        usual = np.maximum(usual, _LEAST_SPREAD * usual[0])
        if not (usual > 0).all():
            break
        scaled = off / usual[kind]
        weights = base / usual[kind] ** 2 * np.minimum(1.0, _FAR / np.maximum(scaled, 1e-12))
    return found, weights


def _fit_steps(groups: Sequence[Group], steps: Steps) -> Floats:
    """Fit the slowdowns at given terms, over the observations of all servers."""
    levels = len(steps.inside)
    features, targets, bases, kinds = [], [], [], []
    for group in groups:
        windows = _kinds(group, steps)
        clean = _clean(group.calls)
        starts = [group.calls.others, group.calls.others[clean], np.zeros_like(windows[2][0].busy)]
        target, base, kind = _targets(windows)
        alone = []
        for (window, outside), start_busy in zip(windows, starts, strict=True):
            engine_s, submit_s = group.engine_s(window), group.submit_s * (outside > 0)
            alone.append(engine_s + submit_s)
            risen = engine_s[:, None] * _above(window.busy)[:, 1 : levels + 1]
            features.append(np.hstack([risen, submit_s[:, None] * _above(start_busy)[:, 1 : levels + 1]]))
        targets.append(target - np.concatenate(alone))
        # What matters is the share of its time that a server is slowed down by, whichever it is.
        bases.append(base / max(float(group.terms[0]), 1e-6))
        kinds.append(kind)
    joined = (np.concatenate(parts) for parts in (features, targets, bases, kinds))
    return np.minimum(_robust(*joined)[0], _MOST_SLOWDOWN)


def drop_outliers(group: Group, steps: Steps) -> None:
    """Leave out calls that are far from what is predicted, if enough remain."""
    whole = group.whole(steps)
    ratio = whole.seconds / np.maximum(group.slowed_s(whole, steps) + group.before_s(steps), 1e-9)
    kept = (ratio < _OUTLIER) & (ratio > 1.0 / _OUTLIER)
    if kept.sum() >= LEAST_CALLS:
        group.outliers += int((~kept).sum())
        group.calls = group.calls[kept]
