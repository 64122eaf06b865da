"""How well a replay tells what a live cluster does: errors on recorded runs, and whether policies rank the same.

Each recording is replayed on a calibrated cluster with the decisions that were taken (`RecordedPolicy`), and the times of the
very same calls and requests are compared. Times are counted from the dispatch of a call, so that a policy that holds calls
back is not mistaken for a slow server; the completion time of a request (JCT) counts everything.

Policies are ranked by mean JCT over the requests of one traffic (`ranking`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from ..backends.replay import ReplayBackend, replay_scenario, traffic_key
from ..backends.replay_policy import RecordedPolicy
from ..calibration.observations import observe
from ..episode import EpisodeLog
from ..errors import SpecError
from ..recording.episode import recorded_log
from ..recording.reader import Recording
from ..recording.run import check_ended, last_session, recorded_scenario
from ..specs.cluster import ClusterSpec
from ..specs.scenario import Scenario
from .provenance import machine
from .ranking import Ranking, rank
from .rollout import run_episode

if TYPE_CHECKING:
    from ..policy import Policy

Floats = NDArray[np.float64]
QUANTITIES: Final = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "latency": "call latency",
    "jct": "JCT",
}
TARGETS: Final = {"latency": (0.10, 0.20), "jct": (0.15, 0.25)}
"""Largest error of the median and of P95."""


@dataclass(frozen=True)
class Errors:
    """One quantity, live and replayed, over the same n calls or requests. Seconds."""

    n: int
    live_median_s: float
    live_p95_s: float
    replay_median_s: float
    replay_p95_s: float
    each: float
    """Median of |replayed - live| / live of one and the same call or request."""

    @property
    def median(self) -> float:
        """Relative error of the median."""
        return self.replay_median_s / self.live_median_s - 1.0

    @property
    def p95(self) -> float:
        """Relative error of the 95th percentile."""
        return self.replay_p95_s / self.live_p95_s - 1.0

    def meets(self, quantity: str) -> bool | None:
        """Return whether the errors are within their targets, None where there is no target."""
        if quantity not in TARGETS:
            return None
        return abs(self.median) <= TARGETS[quantity][0] and abs(self.p95) <= TARGETS[quantity][1]


@dataclass(frozen=True, eq=False)
class RunFidelity:
    """One recording."""

    recording: str
    policy: str
    seed: int
    scenario: str
    """Its name and rate."""
    traffic: str
    """Recordings with the same are comparable."""
    held_out: bool
    """Whether the calibration does not name it among its sources."""
    requests: int
    left_out: int
    """Requests that failed, or of which a call was tried again: a replay knows no faults."""
    same_order: float
    """Share of neighbouring dispatches that were in the same order in the replay."""
    errors: dict[str, Errors]
    times: dict[str, tuple[Floats, Floats]]
    """Live and replayed seconds behind `errors`."""
    jct_s: dict[tuple[int, int], tuple[float, float]]
    """(seed, number on the tape) -> (live, replayed)"""
    again_s: dict[tuple[int, int], float]
    """The same when the policy decided again, by itself, in the replay; empty where that was not asked for."""
    unrecorded: float
    """Share of calls that nobody had recorded, where the policy decided again; else nan."""
    busy_servers: float
    load: tuple[float, ...]
    """Load of the machine before the run (1, 5, 15 minutes); empty in old recordings."""
    cpu_stolen: float | None
    """Share of the machine's processor time that its hypervisor gave to others during the run; None where unknown."""


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Everything that was found."""

    cluster: str
    runs: tuple[RunFidelity, ...]
    errors: dict[str, Errors]
    """Over all runs together."""
    rankings: tuple[Ranking, ...]
    machine: dict[str, object] = field(default_factory=machine)

    @property
    def met(self) -> dict[str, bool]:
        """Which targets are met, over all runs together."""
        result = {name: bool(self.errors[name].meets(name)) for name in TARGETS}
        several = [ranking for ranking in self.rankings if len(ranking.places) > 1]
        if several:
            result["ranking"] = all(ranking.same for ranking in several)
        return result


def fidelity(
    recordings: Sequence[str | Path],
    cluster: ClusterSpec,
    *,
    decide_again: bool = False,
    make_policy: Callable[[str], Policy] | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Fidelity:
    """Replay recordings and compare.

    Args:
        recordings: files of live runs that ended.
        cluster: calibrated, best on other recordings.
        decide_again: let each recording's policy also decide by itself in the replay, which is what replays are for.
        make_policy: makes policies by name for that; default: the registry.
        progress: told what is done next.

    Raises:
        SpecError: a recording is none, unfinished or empty, or of another cluster.
    """
    if not recordings:
        raise SpecError("nothing to compare: name at least one recording")
    if len(set(map(str, recordings))) < len(recordings):
        raise SpecError("a recording is named twice")
    runs = []
    for path in recordings:
        progress(f"replaying {path}")
        again = _AgainSettings(recordings, make_policy) if decide_again else None
        runs.append(_compare(Path(path), cluster, again, progress))
    together = {
        name: _errors(*(np.concatenate([run.times[name][side] for run in runs]) for side in (0, 1)))
        for name in QUANTITIES
    }
    groups = {run.traffic: [r for r in runs if r.traffic == run.traffic] for run in runs}
    return Fidelity(cluster.name, tuple(runs), together, tuple(_ranking(group) for group in groups.values()))


@dataclass(frozen=True)
class _AgainSettings:
    recordings: Sequence[str | Path]
    make_policy: Callable[[str], Policy] | None


def _compare(
    path: Path, cluster: ClusterSpec, again: _AgainSettings | None, progress: Callable[[str], None]
) -> RunFidelity:
    """Replay one recording."""
    with Recording(path) as recording:
        check_ended(recording)
        live = recorded_log(recording)
        tape = {row["request"]: row["tape"] for row in recording.rows("requests")}
        disturbed = {row["request"] for row in recording.rows("calls", "status != 'ok' OR attempt > 1")}
        recorded = recorded_scenario(recording)
        created, seed = recording.run["created"], int(recording.run["seed"])
        session = last_session(recording)
        load = tuple(_load(session["machine"]))
        busy = observe(recording).busy_servers
    scenario = replay_scenario([path], cluster)
    backend = ReplayBackend(scenario, [path])
    replayed = run_episode(RecordedPolicy(), "recorded", backend, seed)
    theirs = dict(enumerate(backend.tape_order))
    out = {tape[rank] for rank in disturbed} | {tape[rank] for rank in range(live.warmup_requests) if rank in tape}
    times, jct = _matched(live, tape, replayed, theirs, out)
    again_s: dict[tuple[int, int], float] = {}
    unrecorded = float("nan")
    if again is not None:
        progress(f"deciding again: {live.policy} on {path}")
        again_s, unrecorded = _decide_again(live.policy, seed, cluster, again, traffic_key(recorded), out)
    return RunFidelity(
        recording=path.name,
        policy=live.policy,
        seed=seed,
        scenario=_name(recorded),
        traffic=traffic_key(recorded),
        held_out=created not in cluster.source or path.name not in cluster.source,
        requests=len(jct),
        left_out=len(disturbed),
        same_order=_same_order(live, tape, replayed, theirs),
        errors={name: _errors(*pair) for name, pair in times.items()},
        times=times,
        jct_s={(seed, i): pair for i, pair in jct.items()},
        again_s=again_s,
        unrecorded=unrecorded,
        busy_servers=busy,
        load=load,
        cpu_stolen=session.get("cpu_stolen"),
    )


def _name(scenario: Scenario) -> str:
    rate_rps = scenario.workload.arrivals.rate_rps
    return scenario.name if rate_rps is None else f"{scenario.name} at {rate_rps:g} req/s"


def _load(machine_text: str) -> list[float]:
    found = json.loads(machine_text).get("load", []) if machine_text else []
    return [float(value) for value in found]


def _matched(
    live: EpisodeLog, tape: dict[int, int], replayed: EpisodeLog, theirs: dict[int, int], out: set[int]
) -> tuple[dict[str, tuple[Floats, Floats]], dict[int, tuple[float, float]]]:
    """Return the times of calls and requests that are in both, and the JCT by number on the tape."""
    mine, other = _by_key(live, tape), _by_key(replayed, theirs)
    keys = [key for key in mine if key in other and key[0] not in out]
    a, b = (log.calls[[index[key] for key in keys]] for log, index in ((live, mine), (replayed, other)))
    ended = np.isfinite(a["finish_s"]) & np.isfinite(b["finish_s"])
    a, b = a[ended], b[ended]
    several = (a["output_tokens"] > 1) & (b["output_tokens"] > 1)
    live_jct, replay_jct = _jct_by_tape(live, tape), _jct_by_tape(replayed, theirs)
    jct = {i: (live_jct[i], replay_jct[i]) for i in live_jct if i in replay_jct and i not in out}
    pairs = np.array(list(jct.values())).reshape(-1, 2)
    if not len(a) or not len(pairs):
        raise SpecError(
            "no request was finished both live and in the replay", where=str(live.notes.get("recording", ""))
        )
    times = {
        "ttft": (a["first_token_s"] - a["dispatch_s"], b["first_token_s"] - b["dispatch_s"]),
        "tpot": (_tpot_s(a[several]), _tpot_s(b[several])),
        "latency": (a["finish_s"] - a["dispatch_s"], b["finish_s"] - b["dispatch_s"]),
        "jct": (pairs[:, 0], pairs[:, 1]),
    }
    return times, jct


def _by_key(log: EpisodeLog, tape: dict[int, int]) -> dict[tuple[int, int], int]:
    rows = zip(log.calls["request"].tolist(), log.calls["node"].tolist(), strict=True)
    return {(tape[request], node): i for i, (request, node) in enumerate(rows)}


def _jct_by_tape(log: EpisodeLog, tape: dict[int, int]) -> dict[int, float]:
    """Return the seconds that each finished request took."""
    jct_s = log.requests["finish_s"] - log.requests["arrival_s"]
    return {tape[rank]: float(value) for rank, value in enumerate(jct_s) if np.isfinite(value)}


def _tpot_s(calls: NDArray[np.void]) -> Floats:
    return np.asarray((calls["finish_s"] - calls["first_token_s"]) / (calls["output_tokens"] - 1))


def _same_order(live: EpisodeLog, tape: dict[int, int], replayed: EpisodeLog, theirs: dict[int, int]) -> float:
    """Return how many pairs of calls that were dispatched one after the other live were so in the replay too."""
    place = _by_key(replayed, theirs)
    order = [place[key] for key in _by_key(live, tape) if key in place]
    return float(np.mean(np.diff(order) > 0)) if len(order) > 1 else float("nan")


def _errors(live_s: Floats, replay_s: Floats) -> Errors:
    if not len(live_s):
        nan = float("nan")
        return Errors(0, nan, nan, nan, nan, nan)
    return Errors(
        n=len(live_s),
        live_median_s=float(np.median(live_s)),
        live_p95_s=float(np.percentile(live_s, 95)),
        replay_median_s=float(np.median(replay_s)),
        replay_p95_s=float(np.percentile(replay_s, 95)),
        each=float(np.median(np.abs(replay_s - live_s) / live_s)),
    )


def _decide_again(
    policy: str, seed: int, cluster: ClusterSpec, settings: _AgainSettings, traffic: str, out: set[int]
) -> tuple[dict[tuple[int, int], float], float]:
    """Let a policy decide by itself on recorded traffic, with all that the recordings of this traffic know."""
    from ..registry import make_policy

    same = []
    for path in settings.recordings:
        with Recording(path) as recording:
            if traffic_key(recorded_scenario(recording)) == traffic:
                same.append(path)
    backend = ReplayBackend(replay_scenario(same, cluster), same)
    log = run_episode((settings.make_policy or make_policy)(policy), policy, backend, seed)
    jct_s = log.requests["finish_s"] - log.requests["arrival_s"]
    found = {(seed, i): float(t) for i, t in zip(backend.tape_order, jct_s, strict=True) if i not in out}
    return {key: t for key, t in found.items() if np.isfinite(t)}, unrecorded_share(log)


def unrecorded_share(log: EpisodeLog) -> float:
    """Return the share of a replay's calls that no recording had; nan for other logs."""
    notes = log.notes.get("replay")
    if not isinstance(notes, dict) or not notes["calls"]:
        return float("nan")
    return float(notes["never_recorded"] / notes["calls"])


def _ranking(runs: Sequence[RunFidelity]) -> Ranking:
    """Rank the policies of one traffic, each over all its recordings."""
    live: dict[str, dict[tuple[int, int], float]] = {}
    replayed: dict[str, dict[tuple[int, int], float]] = {}
    again: dict[str, dict[tuple[int, int], float]] = {}
    for run in runs:
        live.setdefault(run.policy, {}).update({key: pair[0] for key, pair in run.jct_s.items()})
        replayed.setdefault(run.policy, {}).update({key: pair[1] for key, pair in run.jct_s.items()})
        again.setdefault(run.policy, {}).update(run.again_s)
    return rank(runs[0].scenario, live, replayed, again)
