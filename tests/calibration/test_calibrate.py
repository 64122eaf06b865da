"""Calibration finds what recordings were made with, says what it cannot know, and writes a cluster that can be used."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aragog_env.calibration import Calibration, calibrate, write_cluster
from aragog_env.calibration.fit import TERMS, typical_time_s
from aragog_env.calibration.observations import observe
from aragog_env.errors import SpecError
from aragog_env.recording import Recording
from aragog_env.specs.cluster import SharingSpec
from aragog_env.specs.load import load_cluster, load_scenario
from aragog_env.specs.override import override
from tests.calibration.worlds import plain, world, write
from tests.recording.test_recording import filled


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two policies on a cluster whose servers slow each other down."""
    folder = tmp_path_factory.mktemp("calibration")
    made = world()
    return [write(made, policy, folder / f"{i}.db") for i, policy in enumerate(("least_loaded", "random"))]


@pytest.fixture(scope="module")
def found(recordings: list[Path]) -> Calibration:
    return calibrate(recordings)


def terms(found: Calibration, name: str) -> dict[str, float]:
    fit = next(fit for fit in found.servers if fit.name == name)
    return dict(zip(TERMS, fit.terms, strict=True))


def test_known_parameters_come_back(found: Calibration) -> None:
    small, large = terms(found, "small"), terms(found, "large")
    assert small["overhead_ms"] == pytest.approx(6, rel=0.03) and large["overhead_ms"] == pytest.approx(15, rel=0.03)
    assert small["per_decode_ms"] == pytest.approx(0.4, rel=0.2) and large["per_decode_ms"] == pytest.approx(
        0.9, rel=0.2
    )
    # Prompts are of much the same length, so their parts are told apart badly, but their sum is not.
    for fit, total_ms in zip(found.servers, (4.0 + 1.5 + 60 * 0.03, 7.0 + 3.0 + 60 * 0.08), strict=True):
        found_terms = terms(found, fit.name)
        sum_ms = fit.submit_ms + found_terms["per_prompt_ms"] + 60 * found_terms["per_token_ms"]
        assert sum_ms == pytest.approx(total_ms, rel=0.1)
    assert small["per_kv_token_ms"] == large["per_kv_token_ms"] == 0
    assert found.sharing is not None
    assert found.sharing.slowdown == pytest.approx((1.0, 1.3, 1.8), rel=0.03)
    assert max(found.sharing.outside, default=1.0) < 1.15, "what lies outside the engines was not slowed down"
    assert found.decision_ms == pytest.approx(2.5, rel=0.01)
    for fit in found.servers:
        assert fit.close_ms == pytest.approx(0.8, abs=0.01)
        assert fit.latency_error < 0.02 and abs(fit.latency_bias) < 0.01
        assert fit.tpot_error < 0.02 and fit.ttft_error < 0.06
    assert 1.0 < found.sharing.typical < 1.8 and sum(found.shares) == pytest.approx(1.0)
    assert found.notes == ()


def test_overheads_that_grow_with_the_load_of_the_machine(tmp_path: Path) -> None:
    made = world(sharing=SharingSpec((1.0, 1.3, 1.8), outside=(1.0, 2.0, 4.0)), requests=200)
    replicas = tuple(replace(r, submit_ms=20.0, close_ms=5.0) for r in made.cluster.replicas)
    made = replace(made, cluster=replace(made.cluster, replicas=replicas))
    found = calibrate(
        [write(made, policy, tmp_path / f"{i}.db") for i, policy in enumerate(("random", "least_loaded"))]
    )
    assert found.sharing is not None
    assert found.sharing.slowdown == pytest.approx((1.0, 1.3, 1.8), rel=0.05)
    assert found.sharing.outside == pytest.approx((1.0, 2.0, 4.0), rel=0.25)
    assert found.decision_ms == pytest.approx(2.5, rel=0.2)
    for fit in found.servers:
        assert fit.submit_ms == pytest.approx(20.0, rel=0.35) and fit.close_ms == pytest.approx(5.0, rel=0.3)


def test_servers_on_their_own_do_not_share(tmp_path: Path) -> None:
    path = write(world(sharing=None), "random", tmp_path / "r.db")
    found = calibrate([path])
    assert found.sharing is None and found.cluster.sharing is None
    assert terms(found, "large")["overhead_ms"] == pytest.approx(15, rel=0.02)


def test_sharing_is_not_fitted_over_several_machines(recordings: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes(recordings[0].read_bytes())
    connection = sqlite3.connect(copy, isolation_level=None)
    connection.execute("""UPDATE sessions SET servers = '[{"url": "http://a:1"}, {"url": "http://b:1"}]'""")
    connection.close()
    found = calibrate([copy])
    assert found.cluster.sharing is None and any("several machines" in note for note in found.notes)


def test_what_was_never_seen_is_left_alone(tmp_path: Path) -> None:
    made = plain(world())
    path = write(world(sharing=None), "fixed:largest", tmp_path / "r.db")
    found = calibrate([path], made.cluster)
    small, large = found.cluster.replicas
    assert small.latency == "linear:overhead_ms=1" and small.submit_ms == 0.0
    fitted = terms(found, "large")
    assert fitted["overhead_ms"] == pytest.approx(15, rel=0.05) and fitted["per_decode_ms"] == pytest.approx(
        0.9, rel=0.1
    )
    sum_ms = large.submit_ms + fitted["per_prompt_ms"] + 60 * fitted["per_token_ms"]
    assert sum_ms == pytest.approx(7.0 + 3.0 + 60 * 0.08, rel=0.15)
    assert found.notes == ("'small' keeps its latency: it served 0 calls, too few without a queue to fit",)


def test_context_has_a_term_where_it_matters(tmp_path: Path) -> None:
    made = world(sharing=None)
    latency = "linear:overhead_ms=6,per_decode_ms=0.4,per_kv_token_ms=0.02"
    replicas = tuple(replace(r, latency=latency) for r in made.cluster.replicas)
    path = write(replace(made, cluster=replace(made.cluster, replicas=replicas)), "fixed:smallest", tmp_path / "r.db")
    assert terms(calibrate([path]), "small")["per_kv_token_ms"] == pytest.approx(0.02, rel=0.2)


def test_one_call_at_a_time_cannot_tell_terms_apart(tmp_path: Path) -> None:
    """Then everything is in the overhead, and a call alone takes what it took."""
    path = write(world(sharing=None, rate_rps=0.01, requests=40), "fixed:largest", tmp_path / "r.db")
    found = terms(calibrate([path]), "large")
    assert found["overhead_ms"] == pytest.approx(15 + 0.08 + 0.9, rel=0.01) and found["per_decode_ms"] == 0


def test_a_profile_can_be_calibrated_on(recordings: list[Path], tmp_path: Path) -> None:
    """Its recording has calls, but neither requests nor decisions."""
    copy = tmp_path / "profile.db"
    copy.write_bytes(recordings[0].read_bytes())
    connection = sqlite3.connect(copy, isolation_level=None)
    for statement in ("DELETE FROM requests", "DELETE FROM decisions", "UPDATE calls SET decision = NULL"):
        connection.execute(statement)
    connection.close()
    found = calibrate([copy])
    assert found.decision_ms == 0.0 and found.decisions == 0
    assert terms(found, "small")["overhead_ms"] == pytest.approx(6, rel=0.1)


def test_outliers_are_left_out_and_counted(recordings: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes(recordings[0].read_bytes())
    with Recording(copy) as recording:
        rows = [(row, recording.arrays(row)[0]) for row in recording.rows("calls")]
    # The machine stands still for ten seconds while a call generates.
    middle_s = float(rows[100][1][len(rows[100][1]) // 2]) - 1e-4
    caught = sum(times[0] < middle_s < times[-1] for _, times in rows)
    connection = sqlite3.connect(copy, isolation_level=None)
    for name in ("ready_s", "dispatch_s", "first_token_s", "finish_s"):
        connection.execute(f"UPDATE calls SET {name} = {name} + 10 WHERE {name} > ?", (middle_s,))
    for row, times in rows:
        late = np.where(times > middle_s, times + 10, times).astype("<f8").tobytes()
        connection.execute("UPDATE calls SET token_s = ? WHERE call = ?", (late, row["call"]))
    connection.close()
    found = calibrate([copy])
    assert sum(fit.outliers for fit in found.servers) == caught > 0
    assert terms(found, "small")["overhead_ms"] == pytest.approx(6, rel=0.1)


def test_first_decisions_do_not_count() -> None:
    assert typical_time_s(np.array([5.0] + [0.002] * 199)) == pytest.approx(0.002)


def test_calls_that_were_held_say_nothing_of_the_client(recordings: list[Path], tmp_path: Path) -> None:
    """A policy that waits with a call in view does it on purpose."""
    copy = tmp_path / "copy.db"
    copy.write_bytes(recordings[0].read_bytes())
    with Recording(copy) as recording:
        before = observe(recording).decision_s
        row = next(recording.rows("decisions", "decision = 40"))
        seen = recording.view(40).calls
    connection = sqlite3.connect(copy, isolation_level=None)
    for table in ("decisions", "calls"):  # make room for one more; numbers must stay unique on the way
        connection.execute(f"UPDATE {table} SET decision = decision + 100000 WHERE decision >= 40")
        connection.execute(f"UPDATE {table} SET decision = decision - 99999 WHERE decision >= 100000")
    columns = [name for name in row if name != "decision"]
    row |= {"action": "wait", "request": None, "node": None, "route": None, "priority": None}
    connection.execute(
        f"INSERT INTO decisions (decision, {', '.join(columns)}) VALUES (40, {', '.join('?' * len(columns))})",
        [row[name] for name in columns],
    )
    connection.close()
    with Recording(copy) as recording:
        assert len(observe(recording).decision_s) == len(before) - len(seen)


def test_the_cluster_file(found: Calibration, tmp_path: Path) -> None:
    path = write_cluster(found, tmp_path / "made" / "cluster.yaml")
    cluster = load_cluster(path)
    assert cluster == found.cluster and cluster.name == "made-up-calibrated" and cluster.sharing is not None
    text = path.read_text()
    assert (
        "# small: overhead" in text
        and "errors: latency (median, all)" in text
        and "# from 0.db (least_loaded, seed 0" in text
    )
    assert "least_loaded" in cluster.source
    scenario = override(plain(world()), cluster=path)
    assert scenario.cluster.replicas[0].latency.startswith("linear:overhead_ms=") and scenario.cluster.decision_ms > 0
    with pytest.raises(SpecError, match=r"must end in \.yaml"):
        write_cluster(found, tmp_path / "cluster.txt")


def test_calibrating_twice_keeps_the_name(recordings: list[Path], found: Calibration) -> None:
    again = calibrate(recordings, found.cluster)
    assert again.cluster.name == found.cluster.name and again.sharing == found.sharing


def test_determinism(recordings: list[Path], found: Calibration) -> None:
    assert calibrate(recordings) == found


def test_bad_input(recordings: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="at least one recording"):
        calibrate([])
    with pytest.raises(SpecError, match="no such recording"):
        calibrate([tmp_path / "none.db"])
    (tmp_path / "text.db").write_text("nothing" * 1000)
    with pytest.raises(SpecError, match="not a recording"):
        calibrate([tmp_path / "text.db"])
    with pytest.raises(SpecError, match=r"of another cluster: it has the servers small-0 \(toy-small\)"):
        calibrate(recordings, load_scenario("toy").cluster)
    other = world()
    renamed = tuple(replace(r, name=f"x-{r.name}") for r in other.cluster.replicas)
    strange = write(replace(other, cluster=replace(other.cluster, replicas=renamed)), "random", tmp_path / "s.db")
    with pytest.raises(SpecError, match="of another cluster"):
        calibrate([recordings[0], strange])
    empty = tmp_path / "empty.db"
    empty.write_bytes(recordings[0].read_bytes())
    connection = sqlite3.connect(empty, isolation_level=None)
    connection.execute("DELETE FROM calls")
    connection.close()
    with pytest.raises(SpecError, match="too few calls to calibrate on"):
        calibrate([empty])
    filled(tmp_path / "strange.db")
    with pytest.raises(SpecError, match="its scenario"):
        calibrate([tmp_path / "strange.db"])
