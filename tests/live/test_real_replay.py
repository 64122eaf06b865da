"""Record, calibrate, replay and compare on two real vLLM servers. Bounds are generous: the machine does other things too."""

from __future__ import annotations

from pathlib import Path

import pytest

from aragog_env.harness.profile_live import LiveProfiler
from aragog_env.recording import Recording
from tests.live.conftest import RealCluster
from tests.live.roundtrip import round_trip

pytest.importorskip("httpx")
pytestmark = [pytest.mark.live, pytest.mark.slow]


def test_record_calibrate_replay(real_cluster: RealCluster, tmp_path: Path) -> None:
    scenario = real_cluster.scenario(requests=8, rate_rps=2.0)
    calibration, found = round_trip(scenario, real_cluster.endpoints, ["least_loaded", "fixed:largest"], tmp_path)
    assert len(calibration.servers) == 2 and all(fit.terms[0] > 0.5 for fit in calibration.servers)
    small, large = (sum(fit.terms[:3]) for fit in calibration.servers)
    assert large > small, "the larger model takes longer per token"
    # The targets are 10% and 15%, on a machine that does nothing else; here it may be four times as busy from run to run.
    assert -0.75 < found.errors["latency"].median < 3 and -0.75 < found.errors["jct"].median < 3
    assert all(run.requests == 8 for run in found.runs)


def test_a_profile_of_real_servers(real_cluster: RealCluster, tmp_path: Path) -> None:
    path = tmp_path / "profile.db"
    profile = LiveProfiler(real_cluster.scenario(requests=1), real_cluster.endpoints, seconds=4.0, recording=path).run()
    for entry in profile.replicas:
        assert entry.loads == (1, 2, 4, 8, 12, 16) and entry.throughput_rps[-1] > 1.5 * entry.throughput_rps[0]
        assert 1 <= entry.saturation() <= 16
    with Recording(path) as recording:
        assert {row["status"] for row in recording.rows("calls")} == {"ok"}
