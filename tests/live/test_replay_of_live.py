"""A live run over fake servers, replayed: the same calls, and about the same times."""

from __future__ import annotations

from pathlib import Path

import pytest

from aragog_env.calibration.fit import TERMS
from tests.live.roundtrip import round_trip
from tests.live.world import PATIENT, endpoints_of, world

pytest.importorskip("httpx")


def test_record_calibrate_replay_compare(tmp_path: Path) -> None:
    with world(tmp_path, requests=16, rate_rps=4.0) as (backend, servers):
        servers[0].token_s, servers[1].token_s = 0.06, 0.12
        scenario, endpoints = backend.scenario, endpoints_of(backend.scenario, servers)
        calibration, found = round_trip(scenario, endpoints, ["least_loaded", "fixed:largest"], tmp_path, PATIENT)
    iteration_ms = {fit.name: dict(zip(TERMS, fit.terms, strict=True))["overhead_ms"] for fit in calibration.servers}
    # The machine that runs the tests may be busy: a fake server is never faster than it was told to be.
    assert iteration_ms["toy-l"] > 80 and 0 < calibration.decision_ms < 500
    for key in ("tpot", "latency", "jct"):
        assert 1 / 3 < 1 + found.errors[key].median < 3, key
    assert [run.policy for run in found.runs] == ["least_loaded", "fixed:largest"]
    assert all(run.held_out and run.left_out == 0 and run.requests == 16 and len(run.load) == 3 for run in found.runs)
