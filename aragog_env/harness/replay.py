"""Evaluation on recorded runs: the target of `aragog evaluate --backend replay`, and what its results have to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..backends.replay import ReplayBackend, replay_scenario
from ..backends.replay_policy import RecordedPolicy
from ..recording.reader import Recording
from ..specs.cluster import ClusterSpec
from ..specs.override import override
from ..specs.scenario import Scenario
from .backends import Runner
from .executor import Executor
from .jobs import Episodes, PolicyMaker, registered_policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..policy import Policy
    from .results import Results

RECORDED = "recorded"
"""The policy that repeats the decisions of the recording."""


@dataclass(frozen=True)
class MakeReplay:
    """Makes replays, in any process."""

    recordings: tuple[str, ...]

    def __call__(self, scenario: Scenario) -> ReplayBackend:
        """Make the backend."""
        return ReplayBackend(scenario, self.recordings)


@dataclass(frozen=True)
class Replayed:
    """Recorded runs as the target of an evaluation.

    Attributes:
        recordings: files of live runs of one scenario.
        cluster: what serves them, calibrated.
        calibrated_here: whether the cluster was fitted to these very recordings just now.
        slo_s: another absolute latency limit; also `slo_scale` and `warmup_requests`.
    """

    recordings: tuple[str, ...]
    cluster: ClusterSpec
    calibrated_here: bool = False
    slo_s: float | None = None
    slo_scale: float | None = None
    warmup_requests: int | None = None

    def adapt(self, scenario: Scenario) -> Scenario:
        """Return the recorded scenario on the calibrated cluster, whatever `scenario` is."""
        recorded = replay_scenario(self.recordings, self.cluster)
        return override(recorded, slo_s=self.slo_s, slo_scale=self.slo_scale, warmup_requests=self.warmup_requests)

    def describe(self) -> dict[str, Any]:
        """Say which recordings, and where the times come from."""
        return {
            "backend": "replay",
            "recordings": list(self.recordings),
            "calibration": self.cluster.source,
            "calibrated_here": self.calibrated_here,
        }

    def runner(self, make_policy: PolicyMaker, executor: Executor) -> Runner:
        """Make the pool."""
        return executor.pool(Episodes(make_policy, MakeReplay(self.recordings)))

    @property
    def seeds(self) -> list[int]:
        """The recorded seeds, in the order of the recordings."""
        found = []
        for path in self.recordings:
            with Recording(path) as recording:
                found.append(int(recording.run["seed"]))
        return list(dict.fromkeys(found))


def with_recorded(policies: Sequence[str]) -> Sequence[str] | Mapping[str, Callable[[], Policy]]:
    """Return what `evaluate` is given for a list of names that may include the recorded decisions."""
    if RECORDED not in policies:
        return policies
    return {name: RecordedPolicy if name == RECORDED else partial(registered_policy, name) for name in policies}


def unrecorded_sentences(results: Results) -> list[str]:
    """Return, for each policy of a replay, how many of its calls no recording had; empty for other results."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in results.ok:
        if "never_recorded" in run.details:
            found.setdefault((run.scenario, run.policy), []).append(run.details)
    lines = []
    for (_, policy), runs in found.items():
        calls, never, other = (
            sum(int(run[name]) for run in runs) for name in ("calls", "never_recorded", "other_context")
        )
        if calls:
            lines.append(
                f"{policy}: {never / calls:.1%} of {calls:,} calls had never been recorded (the outcome table answered), "
                f"{other / calls:.1%} only after other models"
            )
    return lines
