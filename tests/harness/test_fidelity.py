"""Fidelity: no error where the model is the truth, the error where it is not, ranks, targets, and files."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from aragog_env.calibration import calibrate
from aragog_env.errors import SpecError
from aragog_env.harness import fidelity_report as report
from aragog_env.harness.fidelity import TARGETS, fidelity
from aragog_env.harness.ranking import rank
from aragog_env.harness.statistics import bootstrap
from aragog_env.recording import Recording
from aragog_env.recording.run import recorded_scenario
from aragog_env.specs.cluster import ClusterSpec
from tests.calibration.worlds import world, write

POLICIES = ("fixed:smallest", "random", "least_loaded", "fixed:largest")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four policies on the same traffic, and one run of other traffic to calibrate on."""
    folder = tmp_path_factory.mktemp("fidelity")
    made = world(requests=50, rate_rps=3.0)
    found = {policy: write(made, policy, folder / f"{i}.db") for i, policy in enumerate(POLICIES)}
    return {**found, "other": write(made, "random", folder / "other.db", seed=7)}


def held_out(recordings: dict[str, Path]) -> list[Path]:
    return [recordings[policy] for policy in POLICIES]


def cluster_of(path: Path) -> ClusterSpec:
    with Recording(path) as recording:
        return recorded_scenario(recording).cluster


def test_the_truth_has_no_error(recordings: dict[str, Path]) -> None:
    found = fidelity(held_out(recordings), cluster_of(recordings["random"]), decide_again=True)
    for run in found.runs:
        for errors in run.errors.values():
            assert errors.n > 0 and errors.median == errors.p95 == errors.each == 0.0
        assert run.same_order == 1.0 and run.left_out == 0 and run.requests == 50 and run.held_out
        # The same policy decides the same: nothing was unrecorded.
        assert run.unrecorded == 0.0 and run.again_s == {key: live for key, (live, _) in run.jct_s.items()}
    (ranking,) = found.rankings
    assert [place.policy for place in ranking.places] == sorted(
        POLICIES, key=lambda policy: next(r for r in found.runs if r.policy == policy).errors["jct"].live_median_s
    ) or ranking.spearman == 1.0
    assert ranking.same and ranking.spearman == ranking.kendall == ranking.again_spearman == 1.0 and ranking.swaps == ()
    assert found.met == {"latency": True, "jct": True, "ranking": True}


def test_after_calibration_errors_are_small(recordings: dict[str, Path]) -> None:
    calibrated = calibrate([recordings["other"], recordings["least_loaded"]]).cluster
    found = fidelity(held_out(recordings), calibrated)
    assert all(found.met.values())
    for key, limit in (("ttft", 0.12), ("tpot", 0.06), ("latency", 0.06), ("jct", 0.06)):
        assert (
            abs(found.errors[key].median) < limit
            and abs(found.errors[key].p95) < limit
            and found.errors[key].each < limit
        )
    assert [run.policy for run in found.runs if not run.held_out] == ["least_loaded"]
    assert any("least_loaded" not in line and "2.db is one of those" in line for line in report.sentences(found))


def test_a_wrong_model_shows(recordings: dict[str, Path]) -> None:
    truth = cluster_of(recordings["random"])
    slow = replace(truth, replicas=tuple(replace(r, latency_scale=1.5) for r in truth.replicas))
    found = fidelity([recordings["fixed:largest"]], slow)
    # Half as long again, and more calls at once for that.
    assert 0.5 < found.errors["tpot"].median < 0.8 and found.errors["jct"].median > 0.3
    assert found.met == {"latency": False, "jct": False} and not found.errors["latency"].meets("latency")
    assert found.errors["ttft"].meets("ttft") is None


def test_failed_calls_are_left_out(recordings: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes(recordings["random"].read_bytes())
    connection = sqlite3.connect(copy, isolation_level=None)
    connection.execute("UPDATE calls SET attempt = 2 WHERE call = 4")
    connection.execute("UPDATE calls SET status = 'cut', first_token_s = NULL WHERE call = 9")
    connection.close()
    found = fidelity([copy], cluster_of(copy))
    (run,) = found.runs
    assert run.left_out == 2 and run.requests == 48
    assert any("2 requests with failed calls left out" in line for line in report.sentences(found))


def test_files(recordings: dict[str, Path], tmp_path: Path) -> None:
    found = fidelity(held_out(recordings)[:2], cluster_of(recordings["random"]))
    files = report.write(found, tmp_path / "out")
    assert [file.name for file in files] == ["fidelity.json", "fidelity.md"]
    data = json.loads(files[0].read_text())
    assert data["met"] == {"latency": True, "jct": True, "ranking": True} and len(data["recordings"]) == 2
    assert data["all"]["jct"]["error_median"] == 0 and data["targets"]["jct"] == {"median": 0.15, "p95": 0.25}
    assert data["machine"]["cores"] and data["rankings"][0]["same"] is True
    text = files[1].read_text()
    assert (
        text.count("| JCT |") == 3 and "## Policies on made-up" in text and "Load: " in text and "servers busy" in text
    )
    assert set(TARGETS) == {"latency", "jct"}


def test_bad_input(recordings: dict[str, Path], tmp_path: Path) -> None:
    cluster = cluster_of(recordings["random"])
    with pytest.raises(SpecError, match="name at least one recording"):
        fidelity([], cluster)
    with pytest.raises(SpecError, match="named twice"):
        fidelity([recordings["random"], recordings["random"]], cluster)
    with pytest.raises(SpecError, match="no such recording"):
        fidelity([tmp_path / "none.db"], cluster)
    killed = write(world(requests=10), "random", tmp_path / "killed.db")
    connection = sqlite3.connect(killed, isolation_level=None)
    connection.execute("UPDATE sessions SET ending = NULL")
    connection.close()
    with pytest.raises(SpecError, match="not finished"):
        fidelity([killed], cluster)


def times(*values: float) -> dict[tuple[int, int], float]:
    return {(0, i): value for i, value in enumerate(values)}


def test_ranks() -> None:
    live = {"slow": times(5, 6, 7), "fast": times(1, 2, 3), "middle": times(3, 4, 5)}
    ranking = rank("s", live, live, {})
    assert [place.policy for place in ranking.places] == ["fast", "middle", "slow"] and ranking.same
    assert ranking.spearman == ranking.kendall == 1.0 and ranking.places[0].live == bootstrap([1.0, 2.0, 3.0])
    assert ranking.again_spearman != ranking.again_spearman
    turned = {"slow": times(1, 1, 1), "fast": times(9, 9, 9), "middle": times(3, 3, 3)}
    ranking = rank("s", live, turned, turned)
    assert ranking.spearman == ranking.kendall == ranking.again_spearman == -1.0 and len(ranking.swaps) == 3
    assert not ranking.same and not ranking.swaps[1].close
    assert (ranking.swaps[0].first, ranking.swaps[0].second) == ("fast", "middle")
    assert ranking.swaps[0].live.value == -2.0 and ranking.swaps[0].replayed == 6.0


def test_policies_too_close_to_call() -> None:
    live = {"a": times(1.0, 2.0, 3.0, 4.0), "b": times(1.1, 2.0, 3.0, 4.0)}
    ranking = rank("s", live, {"a": times(3.0), "b": times(2.0)}, {})
    assert len(ranking.swaps) == 1 and ranking.swaps[0].close and ranking.same


def test_one_policy_has_no_rank() -> None:
    ranking = rank("s", {"a": times(1.0)}, {"a": times(1.0)}, {})
    assert ranking.spearman != ranking.spearman and ranking.same
