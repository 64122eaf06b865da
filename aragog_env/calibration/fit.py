"""Fit every server's iteration time, what surrounds it, and how servers on one machine slow each other down.

What is fitted, and how, is in `terms`; what recordings say, in `observations`. Here they become a cluster.
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
from ..specs.limits import engine_limits
from .observations import Calls, Floats, RunObservations, observe
from .terms import LEAST_CALLS, TERMS, Group, Steps, drop_outliers, factors, fit_groups, no_stall, seconds_by_level

__all__ = ["TERMS", "Calibration", "ServerFit", "calibrate", "typical_time_s"]

_MS: Final = 1e3


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
    sharing: SharingSpec | None
    """How servers slow each other down; None where they do not share a machine or do not mind."""
    shares: tuple[float, ...]
    """Share of the fitted time with that many others busy."""
    decision_ms: float
    decisions: int
    sources: tuple[str, ...]
    busy_servers: tuple[float, ...]
    """Per recording: servers with at least one call, mean over time."""
    notes: tuple[str, ...]


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
    steps = fit_groups(groups, shared=len(hosts) <= 1)
    for group in groups:
        drop_outliers(group, steps)
    steps = fit_groups(groups, shared=len(hosts) <= 1)
    return _result(base, groups, steps, sources, runs, notes)


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


def _groups(cluster: ClusterSpec, runs: Sequence[RunObservations]) -> tuple[list[Group], list[str]]:
    """Gather the observations of each replica of the cluster file over its servers and all runs."""
    groups: list[Group] = []
    notes: list[str] = []
    for replica in cluster.replicas:
        names = {entry.name for entry in replace(cluster, replicas=(replica,)).expand()}
        found = [calls for run in runs for name, calls in run.servers.items() if name in names]
        served = sum(len(calls) for calls in found)
        if found:
            calls = Calls.joined(found)
            calls = calls[calls.in_flight < engine_limits(replica, cluster).max_num_seqs]
            kept = no_stall(calls)
            if kept.sum() >= LEAST_CALLS:
                outliers = int((~kept).sum())
                groups.append(Group(replica.name, calls[kept], np.zeros(len(TERMS)), outliers=outliers))
                continue
        notes.append(f"'{replica.name}' keeps its latency: it served {served} calls, too few without a queue to fit")
    return groups, notes


def _result(
    base: ClusterSpec,
    groups: Sequence[Group],
    steps: Steps,
    sources: tuple[str, ...],
    runs: Sequence[RunObservations],
    notes: list[str],
) -> Calibration:
    """Put everything together."""
    fits = {group.name: _server_fit(group, steps) for group in groups}
    sharing = _sharing(groups, steps)
    seconds = seconds_by_level(groups)
    decision_s = np.concatenate([run.decision_s for run in runs])
    decision_ms = 0.0
    if len(decision_s):
        busy = np.concatenate([run.decision_busy for run in runs])
        decision_ms = round(_MS * _undisturbed_s(decision_s, busy, steps), 3)
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
        sharing=sharing,
        source="aragog calibrate on " + "; ".join(sources),
    )
    return Calibration(
        cluster=cluster,
        servers=tuple(fits.values()),
        sharing=sharing,
        shares=tuple(float(share) for share in seconds / seconds.sum()),
        decision_ms=decision_ms,
        decisions=len(decision_s),
        sources=sources,
        busy_servers=tuple(run.busy_servers for run in runs),
        notes=tuple([*notes, *_failures(runs)]),
    )


def _sharing(groups: Sequence[Group], steps: Steps) -> SharingSpec | None:
    """Return the slowdowns as a cluster states them, with their means over what was recorded."""
    if not len(steps.inside):
        return None

    def rounded(rises: Floats) -> tuple[float, ...]:
        return tuple(round(1.0 + float(rise), 4) for rise in np.cumsum([0.0, *rises]))

    wholes = [group.whole(steps) for group in groups]
    alone, slowed = (
        sum(float(s.sum()) for s in seconds)
        for seconds in (
            [group.engine_s(whole) for group, whole in zip(groups, wholes, strict=True)],
            [group.slowed_s(whole, steps) for group, whole in zip(groups, wholes, strict=True)],
        )
    )
    outside = np.concatenate([factors(group.calls.others, steps.outside) for group in groups])
    felt = steps.outside.sum() > 0
    return SharingSpec(
        slowdown=rounded(steps.inside),
        typical=round(max(1.0, slowed / alone), 4),
        outside=rounded(steps.outside) if felt else (),
        typical_outside=round(max(1.0, float(outside.mean())), 4) if felt else 1.0,
    )


def _undisturbed_s(times_s: Floats, busy: Floats, steps: Steps) -> float:
    """Return what something outside the engines takes while no other server is busy."""
    return typical_time_s(times_s) / float(factors(busy, steps.outside).mean())


def typical_time_s(times_s: Floats) -> float:
    """Return the mean without its most extreme hundredth: a first decision that compiles says nothing of the others."""
    limit = np.quantile(times_s, 0.99)
    return float(times_s[times_s <= limit].mean())


def _failures(runs: Sequence[RunObservations]) -> list[str]:
    failed = sum(run.failed for run in runs)
    return [f"{failed} calls that failed were left out"] if failed else []


def _server_fit(group: Group, steps: Steps) -> ServerFit:
    calls = group.calls
    decode = calls.decode[calls.decode.iterations > 0]
    latency_s = group.slowed_s(group.whole(steps), steps) + group.before_s(steps)
    first_s = group.slowed_s(calls.start, steps) + group.before_s(steps)
    return ServerFit(
        name=group.name,
        terms=tuple(float(term) * _MS for term in group.terms),
        submit_ms=round(group.submit_s * _MS, 3),
        close_ms=round(max(0.0, _undisturbed_s(calls.close_s, calls.decode.busy, steps)) * _MS, 3),
        calls=len(calls),
        outliers=group.outliers,
        iterations=round(float(calls.whole.iterations.sum())),
        latency_error=_relative(latency_s, calls.whole.seconds),
        latency_bias=float(latency_s.sum() / calls.whole.seconds.sum() - 1.0),
        tpot_error=_relative(group.slowed_s(decode, steps), decode.seconds),
        ttft_error=_relative(first_s, calls.start.seconds),
    )


def _relative(predicted_s: Floats, measured_s: Floats) -> float:
    """Return the median relative error."""
    return float(np.median(np.abs(predicted_s - measured_s) / measured_s)) if len(measured_s) else float("nan")
