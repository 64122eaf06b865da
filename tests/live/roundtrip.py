"""Record, calibrate, replay, compare: the whole way in the small, over whatever servers there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aragog_env import make_policy
from aragog_env.backends.live import LiveBackend, LiveOptions
from aragog_env.backends.replay import ReplayBackend, replay_scenario
from aragog_env.backends.replay_policy import RecordedPolicy
from aragog_env.calibration import Calibration, calibrate, write_cluster
from aragog_env.episode import EpisodeLog
from aragog_env.harness.fidelity import Fidelity, fidelity
from aragog_env.harness.rollout import run_episode
from aragog_env.recording import Recording
from aragog_env.recording.episode import recorded_log
from aragog_env.servers.endpoints import Endpoint
from aragog_env.specs.load import load_cluster
from aragog_env.specs.scenario import Scenario


def record_live(
    scenario: Scenario,
    endpoints: Sequence[Endpoint],
    policy: str,
    seed: int,
    path: Path,
    options: LiveOptions | None = None,
) -> EpisodeLog:
    """Run a policy on servers and leave a recording."""
    with LiveBackend(scenario, endpoints, recording=path, policy=policy, options=options) as backend:
        return run_episode(make_policy(policy), policy, backend, seed)


def round_trip(
    scenario: Scenario,
    endpoints: Sequence[Endpoint],
    policies: Sequence[str],
    folder: Path,
    options: LiveOptions | None = None,
) -> tuple[Calibration, Fidelity]:
    """Run every policy on two seeds, calibrate on one, replay the other; assert that nothing is lost on the way."""
    recordings: dict[int, list[Path]] = {0: [], 1: []}
    for seed, paths in recordings.items():
        for i, policy in enumerate(policies):
            paths.append(folder / f"{seed}-{i}.db")
            record_live(scenario, endpoints, policy, seed, paths[-1], options)
    found = calibrate(recordings[1])
    cluster = load_cluster(write_cluster(found, folder / "calibrated.yaml"))
    for path in recordings[0]:
        _assert_nothing_is_lost(path, ReplayBackend(replay_scenario([path], cluster), [path]))
    return found, fidelity(recordings[0], cluster, decide_again=True)


def _assert_nothing_is_lost(path: Path, backend: ReplayBackend) -> None:
    """Every request and call is in the replay: where it went, what it was asked and wrote, how the answer was graded."""
    with Recording(path) as recording:
        live = recorded_log(recording)
    replayed = run_episode(RecordedPolicy(), "recorded", backend, 0)
    names = ("request", "node", "model", "route", "prompt_tokens", "output_tokens")

    def calls(log: EpisodeLog) -> list[tuple[int, ...]]:
        return sorted(tuple(int(call[name]) for name in names) for call in log.calls)

    assert calls(live) == calls(replayed) and np.isfinite(replayed.calls["finish_s"]).all()
    for name in ("workflow", "query", "configuration", "correct"):
        assert live.requests[name].tolist() == replayed.requests[name].tolist(), name
    assert np.allclose(live.requests["arrival_s"], replayed.requests["arrival_s"], rtol=0, atol=1e-11)
    notes = replayed.notes["replay"]
    assert isinstance(notes, dict) and notes["recorded"] == notes["calls"] == len(live.calls)
