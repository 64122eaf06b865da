"""A trained network by name decides on live servers, and on what was recorded there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("httpx")

from test_learned import write

from aragog_env.backends.replay import ReplayBackend, replay_scenario
from aragog_env.harness.rollout import run_episode
from aragog_env.recording import Recording
from aragog_env.registry import make_policy
from tests.live.world import world


def test_live_and_replayed(tmp_path: Path) -> None:
    name = f"ppo:{write(tmp_path / 'm.safetensors', viable='none', slots=3)}"
    with world(tmp_path, requests=6) as (backend, _):
        live = run_episode(make_policy(name), name, backend, 0)
    assert np.isfinite(live.requests["finish_s"]).all() and live.notes["failed_requests"] == {}
    with Recording(tmp_path / "run.db") as recording:
        decisions = list(recording.rows("decisions"))
    assert sum(row["action"] == "dispatch" for row in decisions) == len(live.calls) >= 18
    again = ReplayBackend(replay_scenario([tmp_path / "run.db"]), [tmp_path / "run.db"])
    replayed = run_episode(make_policy(name), name, again, 0)
    assert np.isfinite(replayed.requests["finish_s"]).all()
    # The traffic is the recorded one; who serves which call is decided anew.
    assert replayed.requests["query"].tolist() == live.requests["query"].tolist()
    assert len(replayed.decision_s) >= len(replayed.calls) >= 18
