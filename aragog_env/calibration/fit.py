"""Fit every server's iteration time, what surrounds it, and how servers on one machine slow each other down.

One engine iteration takes (see `aragog_env.latency.roofline.linear_table`)

    slowdown[others busy] * (overhead + per_token * tokens + per_decode * sequences + per_kv_token * context
                             + per_prompt * prompts)

and a call on top of its iterations `submit` before and `close` after them. Every call is seen three times (`observations`): as
a whole, to its first token, and from there on; each kind weighs as much as it is predicted well. Iteration times per server
and the slowdowns of all are fitted in turns, each by non-negative least squares, until neither changes.

A coefficient that the recordings do not tell apart from others stays 0 and its time is in the others: per sequence, where no
two calls ever ran at once; slowdowns, where the same servers were always busy; per token of context, unless it explains a
good part of the error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ..errors import SpecError
from ..recording.reader import Recording
from ..recording.run import recorded_scenario
from ..specs.cluster import ClusterSpec, SharingSpec
from ..specs.limits import engine_limits
from .least_squares import non_negative
from .observations import Calls, Floats, RunObservations, Window, observe

TERMS: Final = ("overhead_ms", "per_token_ms", "per_decode_ms", "per_prompt_ms", "per_kv_token_ms")
"""Coefficients of the iteration time, in the order of the features."""
LEAST_CALLS: Final = 20
"""Calls that a server needs to be fitted."""
_MS: Final = 1e3
_ROUNDS: Final = 200
_REWEIGHTINGS: Final = 4
_OUTLIER: Final = 4.0
"""A call that took this many times longer or shorter than predicted is left out: something else had the machine."""
_LEAST_SHARE: Final = 0.01
"""Share of all busy time that a number of busy servers must have to get a factor of its own."""
_NOTEWORTHY: Final = 0.02
"""Slowdowns all below this count as none; a context term must explain this share of the error, and of the time."""


@dataclass(frozen=True)
class ServerFit:
    """One replica of the cluster file (all servers of it together, where it counts several).

    Attributes:
        calls: that it was fitted to; `outliers` more were left out.
        iterations: of these calls.
        latency_error: median over calls of |predicted - measured| / measured time from dispatch to last token.
        latency_bias: relative error of their sum.
        tpot_error: as `latency_error`, from the first to the last token, and `ttft_error` from dispatch to the first.
    """

    name: str
    terms: tuple[float, ...]
    submit_ms: float
    close_ms: float
    calls: int
    outliers: int
    iterations: int
    latency_error: float
    latency_bias: float
    tpot_error: float
    ttft_error: float

    @property
    def latency(self) -> str:
        """What `ReplicaSpec.latency` says."""
        used = [f"{name}={value:.5g}" for name, value in zip(TERMS, self.terms, strict=True) if value > 0]
        return "linear:" + ",".join(used)


@dataclass(frozen=True)
class Calibration:
    """What recordings say of a cluster."""

    cluster: ClusterSpec
    """As it was recorded, with the fitted numbers."""
    servers: tuple[ServerFit, ...]
    slowdown: tuple[float, ...]
    """By the number of other busy servers; empty where servers do not share a machine or do not mind."""
    shares: tuple[float, ...]
    """Share of the fitted time with that many others busy."""
    typical: float
    decision_ms: float
    decisions: int
    sources: tuple[str, ...]
    busy_servers: tuple[float, ...]
    """Per recording: servers with at least one call, mean over time."""
    notes: tuple[str, ...]


@dataclass
class _Group:
    """The observations of one replica while they are fitted: calls that found no queue."""

    name: str
    calls: Calls
    terms: Floats
    submit_s: float = 0.0
    outliers: int = 0

    def engine_s(self, window: Window) -> Floats:
        """Return (n,) predicted seconds of iterations when nobody else is busy."""
        return np.asarray(_features(window) @ self.terms)

    def predicted_s(self, window: Window, steps: Floats, *, from_dispatch: bool) -> Floats:
        """Return (n,) predicted seconds."""
        return self.engine_s(window) * _factors(window.busy, steps) + (self.submit_s if from_dispatch else 0.0)


def calibrate(recordings: Sequence[str | Path], cluster: ClusterSpec | None = None) -> Calibration:
    """Fit a cluster to recorded runs.

    Args:
        recordings: files of live runs (or of `aragog profile --live --recording`), all on the same cluster.
        cluster: what is to get the fitted numbers; by default the cluster of the first recording.

    Raises:
        SpecError: no recording, or one of another cluster, or too few calls to say anything.
    """
    if not recordings:
        raise SpecError("nothing to calibrate on: name at least one recording")
    with ExitStack() as stack:
        opened = [stack.enter_context(Recording(path)) for path in recordings]
        base = cluster or recorded_scenario(opened[0]).cluster
        for recording in opened:
            _check_cluster(recording, base)
        runs = [observe(recording) for recording in opened]
        sources = tuple(describe(recording, run) for recording, run in zip(opened, runs, strict=True))
        hosts = {urlsplit(url).hostname for recording in opened for url in _urls(recording)}
    groups, notes = _groups(base, runs)
    if not groups:
        raise SpecError(
            f"too few calls to calibrate on: no server served {LEAST_CALLS} calls that found no queue",
            where=", ".join(str(path) for path in recordings),
        )
    if len(hosts) > 1:
        notes.append("the servers are on several machines: no slowdown by each other was fitted")
    steps = _fit(groups, shared=len(hosts) <= 1)
    for group in groups:
        _drop_outliers(group, steps)
    steps = _fit(groups, shared=len(hosts) <= 1)
    decision_s = np.concatenate([run.decision_s for run in runs])
    return _result(base, groups, steps, decision_s, sources, runs, notes)


def describe(recording: Recording, run: RunObservations) -> str:
    """Return what identifies a recording: its file, policy, seed and time."""
    row = recording.run
    calls = sum(len(mine) for mine in run.servers.values())
    return f"{recording.path.name} ({row['policy']}, seed {row['seed']}, {calls} calls, {row['created']})"


def _urls(recording: Recording) -> list[str]:
    return [server["url"] for row in recording.rows("sessions") for server in json.loads(row["servers"])]


def _check_cluster(recording: Recording, cluster: ClusterSpec) -> None:
    recorded = list(
        zip(json.loads(recording.run["routes"]), _models(recorded_scenario(recording).cluster), strict=True)
    )
    wanted = [(replica.name, replica.model) for replica in cluster.expand()]
    if recorded != wanted:
        there, here = (", ".join(f"{name} ({model})" for name, model in pairs) for pairs in (recorded, wanted))
        message = f"this recording is of another cluster: it has the servers {there}, not {here}"
        raise SpecError(message, where=str(recording.path))


def _models(cluster: ClusterSpec) -> list[str]:
    return [replica.model for replica in cluster.expand()]


def _groups(cluster: ClusterSpec, runs: Sequence[RunObservations]) -> tuple[list[_Group], list[str]]:
    """Gather the observations of each replica of the cluster file over its servers and all runs."""
    groups: list[_Group] = []
    notes: list[str] = []
    for replica in cluster.replicas:
        names = {entry.name for entry in replace(cluster, replicas=(replica,)).expand()}
        found = [calls for run in runs for name, calls in run.servers.items() if name in names]
        served = sum(len(calls) for calls in found)
        if found:
            calls = Calls.joined(found)
            calls = calls[calls.in_flight < engine_limits(replica, cluster).max_num_seqs]
            if len(calls) >= LEAST_CALLS:
                groups.append(_Group(replica.name, calls, np.zeros(len(TERMS))))
                continue
        notes.append(f"'{replica.name}' keeps its latency: it served {served} calls, too few without a queue to fit")
    return groups, notes


def _features(window: Window) -> Floats:
    """Return (n, 5) what the terms of `TERMS` are multiplied by."""
    tokens = window.sequences + window.prompt_tokens
    return np.stack([window.iterations, tokens, window.sequences, window.prompts, window.context], axis=1)


def _factors(busy: Floats, steps: Floats) -> Floats:
    """Return (n,) mean slowdown: 1 plus the steps of all levels that are reached."""
    return np.asarray(1.0 + _above(busy)[:, 1 : 1 + len(steps)] @ steps)


def _fit(groups: Sequence[_Group], *, shared: bool) -> Floats:
    """Fit terms and slowdowns in turns; return the rise of the slowdown from each number of busy servers to the next."""
    levels = _levels(groups) if shared else 0
    steps = np.zeros(levels)
    for _ in range(_ROUNDS):
        for group in groups:
            _fit_terms(group, steps)
        if not levels:
            break
        new = _fit_steps(groups, levels)
        moved = float(np.abs(new - steps).max())
        steps = new
        if moved < 1e-5:
            break
    if not len(steps) or steps.sum() >= _NOTEWORTHY:
        return steps
    for group in groups:
        _fit_terms(group, np.zeros(0))
    return np.zeros(0)


def _levels(groups: Sequence[_Group]) -> int:
    """Return up to how many other busy servers the recordings say something about."""
    seconds = _seconds_by_level(groups)
    enough = np.flatnonzero(seconds >= _LEAST_SHARE * seconds.sum())
    return int(enough[-1]) if len(enough) else 0


def _seconds_by_level(groups: Sequence[_Group]) -> Floats:
    """Return (R,) seconds of calls in which 0, 1, 2, ... other servers were busy."""
    return np.asarray(sum(group.calls.whole.seconds @ group.calls.whole.busy for group in groups))


def _fit_terms(group: _Group, steps: Floats) -> None:
    """Fit one server's terms and its submit time at given slowdowns."""
    calls = group.calls
    kinds = [(calls.whole, 1.0), (calls.start, 1.0), (calls.decode[calls.decode.iterations > 0], 0.0)]
    features = np.concatenate(
        [
            np.column_stack([_features(w) * _factors(w.busy, steps)[:, None], np.full(len(w), submit)])
            for w, submit in kinds
        ]
    )
    target = np.concatenate([w.seconds for w, _ in kinds])
    kind = np.repeat(np.arange(len(kinds)), [len(w) for w, _ in kinds])
    # The variance of a sum grows with the iterations in it.
    weights = 1.0 / np.concatenate([w.iterations for w, _ in kinds])
    plain = np.delete(features, TERMS.index("per_kv_token_ms"), axis=1)
    found, kv_weights = _weighted(plain, target, weights, kind)
    found = np.insert(found, TERMS.index("per_kv_token_ms"), 0.0)
    longer = non_negative(features, target, kv_weights)
    if _explains_more(features, target, kv_weights, found, longer):
        found = longer
    group.terms, group.submit_s = found[:-1], float(found[-1])


def _weighted(features: Floats, target: Floats, weights: Floats, kind: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Fit, weighing each kind of observation by how well it is predicted; return also the weights."""
    own = weights
    for _ in range(_REWEIGHTINGS):
        found = non_negative(features, target, own)
        squares = (features @ found - target) ** 2 * weights
        spread = np.array([squares[kind == k].mean() if (kind == k).any() else 1.0 for k in range(int(kind.max()) + 1)])
        if not (spread > 0).all():
            break
        own = weights / spread[kind]
    return found, own


def _explains_more(features: Floats, target: Floats, weights: Floats, short: Floats, longer: Floats) -> bool:
    """Return whether the context term is worth its place."""
    k = TERMS.index("per_kv_token_ms")
    before, after = (float(weights @ (features @ b - target) ** 2) for b in (short, longer))
    part = float(weights @ (features[:, k] * longer[k])) / float(weights @ (features @ longer))
    return after < (1.0 - _NOTEWORTHY) * before and part > _NOTEWORTHY


def _fit_steps(groups: Sequence[_Group], levels: int) -> Floats:
    """Fit the slowdowns at given terms, over whole calls and over what follows their first tokens, of all servers."""
    features, target, weights, kinds = [], [], [], []
    for group in groups:
        decode = group.calls.decode[group.calls.decode.iterations > 0]
        for kind, window in enumerate((group.calls.whole, decode)):
            alone_s = np.maximum(group.engine_s(window), 1e-9)
            features.append(_above(window.busy)[:, 1 : levels + 1])
            target.append((window.seconds - (group.submit_s if kind == 0 else 0.0)) / alone_s - 1.0)
            weights.append(window.iterations)
            kinds.append(np.full(len(window), kind))
    joined = (np.concatenate(parts) for parts in (features, target, weights, kinds))
    return _weighted(*joined)[0]


def _above(busy: Floats) -> Floats:
    """Return (n, R) shares of time with at least 0, 1, 2, ... others busy."""
    return np.asarray(np.cumsum(busy[:, ::-1], axis=1)[:, ::-1])


def _drop_outliers(group: _Group, steps: Floats) -> None:
    whole = group.calls.whole
    ratio = whole.seconds / np.maximum(group.predicted_s(whole, steps, from_dispatch=True), 1e-9)
    kept = (ratio < _OUTLIER) & (ratio > 1.0 / _OUTLIER)
    if kept.sum() >= LEAST_CALLS:
        group.outliers += int((~kept).sum())
        group.calls = group.calls[kept]


def _result(
    base: ClusterSpec,
    groups: Sequence[_Group],
    steps: Floats,
    decision_s: Floats,
    sources: tuple[str, ...],
    runs: Sequence[RunObservations],
    notes: list[str],
) -> Calibration:
    """Put everything together."""
    fits = {group.name: _server_fit(group, steps) for group in groups}
    slowdown = tuple(round(1.0 + float(rise), 4) for rise in np.cumsum([0.0, *steps])) if len(steps) else ()
    wholes = [(group.engine_s(group.calls.whole), group.calls.whole.busy) for group in groups]
    alone = sum(float(engine_s.sum()) for engine_s, _ in wholes)
    slowed = sum(float((engine_s * _factors(busy, steps)).sum()) for engine_s, busy in wholes)
    seconds = _seconds_by_level(groups)
    typical = round(max(1.0, slowed / alone), 4) if slowdown else 1.0
    decision_ms = round(_MS * typical_time_s(decision_s), 3) if len(decision_s) else 0.0
    replicas = []
    for replica in base.replicas:
        fit = fits.get(replica.name)
        if fit is not None:
            replica = replace(
                replica,
                latency=fit.latency,
                latency_scale=1.0,
                latency_offset_ms=0.0,
                submit_ms=fit.submit_ms,
                close_ms=fit.close_ms,
            )
        replicas.append(replica)
    cluster = replace(
        base,
        name=base.name if base.name.endswith("-calibrated") else f"{base.name}-calibrated",
        replicas=tuple(replicas),
        decision_ms=decision_ms,
        sharing=SharingSpec(slowdown, typical) if slowdown else None,
        source="aragog calibrate on " + "; ".join(sources),
    )
    return Calibration(
        cluster=cluster,
        servers=tuple(fits.values()),
        slowdown=slowdown,
        shares=tuple(float(share) for share in seconds / seconds.sum()),
        typical=typical,
        decision_ms=decision_ms,
        decisions=len(decision_s),
        sources=sources,
        busy_servers=tuple(run.busy_servers for run in runs),
        notes=tuple([*notes, *_failures(runs)]),
    )


def typical_time_s(times_s: Floats) -> float:
    """Return the mean without its most extreme hundredth: a first decision that compiles says nothing of the others."""
    limit = np.quantile(times_s, 0.99)
    return float(times_s[times_s <= limit].mean())


def _failures(runs: Sequence[RunObservations]) -> list[str]:
    failed = sum(run.failed for run in runs)
    return [f"{failed} calls that failed were left out"] if failed else []


def _server_fit(group: _Group, steps: Floats) -> ServerFit:
    calls = group.calls
    decode = calls.decode[calls.decode.iterations > 0]
    latency_s = group.predicted_s(calls.whole, steps, from_dispatch=True)
    first_s = group.predicted_s(calls.start, steps, from_dispatch=True)
    return ServerFit(
        name=group.name,
        terms=tuple(float(term) * _MS for term in group.terms),
        submit_ms=round(group.submit_s * _MS, 3),
        close_ms=round(max(0.0, typical_time_s(calls.close_s)) * _MS, 3),
        calls=len(calls),
        outliers=group.outliers,
        iterations=round(float(calls.whole.iterations.sum())),
        latency_error=_relative(latency_s, calls.whole.seconds),
        latency_bias=float(latency_s.sum() / calls.whole.seconds.sum() - 1.0),
        tpot_error=_relative(group.predicted_s(decode, steps, from_dispatch=False), decode.seconds),
        ttft_error=_relative(first_s, calls.start.seconds),
    )


def _relative(predicted_s: Floats, measured_s: Floats) -> float:
    """Return the median relative error."""
    return float(np.median(np.abs(predicted_s - measured_s) / measured_s)) if len(measured_s) else float("nan")
