"""Fit every server's iteration time, what surrounds it, and how servers on one machine slow each other down.

One engine iteration takes (see `aragog_env.latency.roofline.linear_table`)

    slowdown[others busy] * (overhead + per_token * tokens + per_decode * sequences + per_kv_token * context
                             + per_prompt * prompts)

and a call on top of its iterations `submit` before and `close` after them. Spans between tokens say what iterations take,
first tokens what a prompt takes and what lies before it (`observations`). Iteration times per server and the slowdowns of all
are fitted in turns, each by non-negative least squares, until neither changes.

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

from ..errors import SpecError
from ..recording.reader import Recording
from ..recording.run import recorded_scenario
from ..specs.cluster import ClusterSpec, SharingSpec
from .least_squares import non_negative
from .observations import Floats, RunObservations, Spans, observe

TERMS: Final = ("overhead_ms", "per_token_ms", "per_decode_ms", "per_prompt_ms", "per_kv_token_ms")
"""Coefficients of the iteration time, in the order of the features."""
LEAST_SPANS: Final = 20
"""Calls with two or more tokens that a server needs to be fitted."""
_MS: Final = 1e3
_ROUNDS: Final = 200
_OUTLIER: Final = 4.0
"""A span that is this many times longer or shorter than predicted is left out: something else had the machine."""
_LEAST_SHARE: Final = 0.01
"""Share of all busy time that a number of busy servers must have to get a factor of its own."""
_NOTEWORTHY: Final = 0.02
"""Slowdowns all below this count as none; a context term must explain this share of the error, and of the time."""


@dataclass(frozen=True)
class ServerFit:
    """One replica of the cluster file (all servers of it together, where it counts several).

    Attributes:
        spans: calls that iteration times were fitted to; `outliers` more were left out.
        tpot_error: median over calls of |predicted - measured| / measured seconds per token, and `tpot_bias` of all together.
        ttft_error: median of |predicted - measured| seconds to the first token, relative, of calls that found no queue.
    """

    name: str
    terms: tuple[float, ...]
    submit_ms: float
    close_ms: float
    spans: int
    outliers: int
    iterations: int
    tpot_error: float
    tpot_bias: float
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
    """The observations of one replica while they are fitted."""

    name: str
    spans: Spans
    terms: Floats
    submit_s: float = 0.0
    outliers: int = 0

    def engine_s(self) -> Floats:
        """Return (n,) predicted seconds of the spans when nobody else is busy."""
        return np.asarray(_features(self.spans) @ self.terms)


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
            f"too few calls to calibrate on: no server served {LEAST_SPANS} calls of two or more tokens",
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
    calls = sum(len(spans) for spans in run.servers.values())
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
        found = [spans for run in runs for name, spans in run.servers.items() if name in names]
        spans = _joined(found) if found else None
        if spans is None or int((spans.iterations >= 1).sum()) < LEAST_SPANS:
            served = 0 if spans is None else len(spans)
            notes.append(f"'{replica.name}' keeps its latency: it served {served} calls, too few to fit")
            continue
        groups.append(_Group(replica.name, spans[spans.iterations >= 1], np.zeros(len(TERMS))))
    return groups, notes


def _joined(parts: Sequence[Spans]) -> Spans:
    fields = Spans.__dataclass_fields__
    return Spans(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})


def _features(spans: Spans) -> Floats:
    """Return (n, 5) what the terms of `TERMS` are multiplied by, for whole spans."""
    tokens = spans.sequences + spans.prompt_tokens
    return np.stack([spans.iterations, tokens, spans.sequences, spans.prompts, spans.context], axis=1)


def _first_features(spans: Spans) -> Floats:
    """Return (n, 5) the same between dispatch and first token: its own iteration, and half of one that it finds under way."""
    found = 1.0 + 0.5 * (spans.company > 0)
    sequences = spans.company * found
    return np.stack([found, spans.own_tokens + sequences, sequences, np.ones(len(spans)), 0.0 * found], axis=1)


def _no_queue(spans: Spans) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which calls found only generating ones at their server: their first token says what a prompt takes."""
    return np.asarray(spans.in_flight <= spans.company)


def _factors(busy: Floats, steps: Floats) -> Floats:
    """Return (n,) mean slowdown: 1 plus the steps of all levels that are reached."""
    above = np.cumsum(busy[:, ::-1], axis=1)[:, ::-1]  # share with at least k others busy
    return np.asarray(1.0 + above[:, 1 : 1 + len(steps)] @ steps)


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
    seconds = np.array([group.spans.seconds @ group.spans.busy for group in groups]).sum(axis=0)
    enough = np.flatnonzero(seconds >= _LEAST_SHARE * seconds.sum())
    return int(enough[-1]) if len(enough) else 0


def _fit_terms(group: _Group, steps: Floats) -> None:
    """Fit one server's terms and its submit time at given slowdowns."""
    spans = group.spans
    idle = spans[_no_queue(spans)]
    slow, slow_first = _factors(spans.busy, steps), _factors(idle.started_busy, steps)
    rows = np.concatenate([_features(spans) * slow[:, None], _first_features(idle) * slow_first[:, None]])
    submit = np.concatenate([np.zeros(len(spans)), np.ones(len(idle))])
    features = np.column_stack([rows, submit])
    target = np.concatenate([spans.seconds, idle.first_s])
    # The variance of a span grows with its iterations; that of first tokens is found out.
    weights = np.concatenate([1.0 / spans.iterations, np.full(len(idle), 0.5)])
    plain = np.delete(features, TERMS.index("per_kv_token_ms"), axis=1)
    found = _weighted(plain, target, weights, len(spans))
    found = np.insert(found, TERMS.index("per_kv_token_ms"), 0.0)
    longer = _weighted(features, target, weights, len(spans))
    if _explains_more(features, target, weights, found, longer):
        found = longer
    group.terms, group.submit_s = found[:-1], float(found[-1])


def _weighted(features: Floats, target: Floats, weights: Floats, spans: int) -> Floats:
    """Fit twice, the second time with first tokens weighted by how well they are predicted."""
    found = non_negative(features, target, weights)
    if spans == len(target):
        return found
    squares = (features @ found - target) ** 2 * weights
    per_span, per_first = squares[:spans].mean(), squares[spans:].mean()
    if per_span > 0 and per_first > 0:
        weights = weights.copy()
        weights[spans:] *= per_span / per_first
        found = non_negative(features, target, weights)
    return found


def _explains_more(features: Floats, target: Floats, weights: Floats, short: Floats, longer: Floats) -> bool:
    """Return whether the context term is worth its place."""
    k = TERMS.index("per_kv_token_ms")
    before, after = (float(weights @ (features @ b - target) ** 2) for b in (short, longer))
    part = float(weights @ (features[:, k] * longer[k])) / float(weights @ (features @ longer))
    return after < (1.0 - _NOTEWORTHY) * before and part > _NOTEWORTHY


def _fit_steps(groups: Sequence[_Group], levels: int) -> Floats:
    """Fit the slowdowns at given terms, over the spans of all servers."""
    features, target, weights = [], [], []
    for group in groups:
        alone_s = np.maximum(group.engine_s(), 1e-9)
        above = np.cumsum(group.spans.busy[:, ::-1], axis=1)[:, ::-1]
        features.append(above[:, 1 : levels + 1])
        target.append(group.spans.seconds / alone_s - 1.0)
        weights.append(group.spans.iterations)
    return non_negative(np.concatenate(features), np.concatenate(target), np.concatenate(weights))


def _drop_outliers(group: _Group, steps: Floats) -> None:
    ratio = group.spans.seconds / np.maximum(group.engine_s() * _factors(group.spans.busy, steps), 1e-9)
    kept = (ratio < _OUTLIER) & (ratio > 1.0 / _OUTLIER)
    if kept.sum() >= LEAST_SPANS:
        group.outliers += int((~kept).sum())
        group.spans = group.spans[kept]


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
    alone = sum(float(group.engine_s().sum()) for group in groups)
    slowed = sum(float((group.engine_s() * _factors(group.spans.busy, steps)).sum()) for group in groups)
    seconds = np.array([group.spans.seconds @ group.spans.busy for group in groups]).sum(axis=0)
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
    spans = group.spans
    predicted = group.engine_s() * _factors(spans.busy, steps)
    idle = spans[_no_queue(spans)]
    first_s = group.submit_s + (_first_features(idle) @ group.terms) * _factors(idle.started_busy, steps)
    return ServerFit(
        name=group.name,
        terms=tuple(float(term) * _MS for term in group.terms),
        submit_ms=round(group.submit_s * _MS, 3),
        close_ms=round(max(0.0, typical_time_s(spans.close_s)) * _MS, 3),
        spans=len(spans),
        outliers=group.outliers,
        iterations=int(spans.iterations.sum()),
        tpot_error=float(np.median(np.abs(predicted - spans.seconds) / spans.seconds)),
        tpot_bias=float(predicted.sum() / spans.seconds.sum() - 1.0),
        ttft_error=float(np.median(np.abs(first_s - idle.first_s) / idle.first_s)) if len(idle) else float("nan"),
    )
