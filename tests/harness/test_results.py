"""Results on disk: what survives a crash, what is refused, what is read back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from aragog_env.episode import EpisodeLog
from aragog_env.errors import SpecError
from aragog_env.harness.episodes import differences, digest, load_episode, save_episode
from aragog_env.harness.results import RunResult, episode_path, open_for_writing, read

from .fakes import make_scenario


def _run(seed: int, **changes: object) -> RunResult:
    return replace(RunResult("p", "fake", seed, metrics={"jct_mean_s": 1.5}), **changes)  # type: ignore[arg-type]


def test_an_appended_run_is_on_disk_before_the_next(tmp_path: Path) -> None:
    with open_for_writing(tmp_path / "out", [make_scenario(tmp_path)]) as results:
        results.append(_run(0))
        assert read(tmp_path / "out").get(("p", "fake", 0, None)) == _run(0)


def test_nan_survives_and_the_file_is_strict_json(tmp_path: Path) -> None:
    with open_for_writing(tmp_path / "out", [make_scenario(tmp_path)]) as results:
        results.append(_run(0, metrics={"req95": float("nan"), "accuracy": 0.5}))
    line = (tmp_path / "out" / "results.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["metrics"]["req95"] is None
    metrics = read(tmp_path / "out").runs[0].metrics
    assert math.isnan(metrics["req95"]) and metrics["accuracy"] == 0.5


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_line_that_a_killed_writer_left_unfinished_is_dropped_and_overwritten(tmp_path: Path, cut: int) -> None:
    scenario = make_scenario(tmp_path)
    with open_for_writing(tmp_path / "out", [scenario]) as results:
        results.append(_run(0))
        results.append(_run(1))
    path = tmp_path / "out" / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [run.seed for run in read(tmp_path / "out").runs] == [0]
    with open_for_writing(tmp_path / "out", [scenario], resume=True) as results:
        assert results.get(("p", "fake", 1, None)) is None
        results.append(_run(1))
    assert [run.seed for run in read(tmp_path / "out").runs] == [0, 1]
    assert path.read_bytes().endswith(b"\n")


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    with open_for_writing(tmp_path / "out", [make_scenario(tmp_path)]) as results:
        results.append(_run(0))
    path = tmp_path / "out" / "results.jsonl"
    path.write_text('{"half a line\n' + path.read_text())
    with pytest.raises(SpecError, match=r"results\.jsonl:1: this line is no result"):
        read(tmp_path / "out")


def test_a_folder_with_results_is_not_touched_without_resume(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path)
    open_for_writing(tmp_path / "out", [scenario]).close()
    with pytest.raises(SpecError, match="already holds results"):
        open_for_writing(tmp_path / "out", [scenario])


@pytest.mark.parametrize("change", ["rate", "name", "workflow", "kind"])
def test_a_folder_of_another_scenario_is_refused(tmp_path: Path, change: str) -> None:
    scenario = make_scenario(tmp_path)
    open_for_writing(tmp_path / "out", [scenario]).close()
    kind = "evaluate"
    if change == "rate":
        scenario = make_scenario(tmp_path, rate_rps=9.0)
    elif change == "name":
        scenario = replace(scenario, name="other")
    elif change == "workflow":  # the scenario only names its workflows; what they contain counts too
        path = tmp_path / "alpha" / "workflow.yaml"
        path.write_text(path.read_text().replace("queries: 50", "queries: 51"))
    else:
        kind = "capacity"
    with pytest.raises(SpecError, match="this folder") as caught:
        open_for_writing(tmp_path / "out", [scenario], resume=True, kind=kind)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_two_writers_cannot_share_a_folder(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path)
    with open_for_writing(tmp_path / "out", [scenario]):
        with pytest.raises(SpecError, match="another process"):
            open_for_writing(tmp_path / "out", [scenario], resume=True)


def test_what_is_no_results_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no manifest\.json"):
        read(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(SpecError, match="cannot read this manifest"):
        read(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema": 99}')
    with pytest.raises(SpecError, match="schema 99"):
        read(tmp_path)


def test_the_scenario_is_rebuilt_from_the_manifest(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path, rate_rps=1.25)
    open_for_writing(tmp_path / "out", [scenario]).close()
    assert read(tmp_path / "out").scenario("fake") == scenario


def test_the_manifest_says_where_results_come_from(tmp_path: Path) -> None:
    open_for_writing(tmp_path / "out", [make_scenario(tmp_path)], command=["aragog", "evaluate"]).close()
    (session,) = read(tmp_path / "out").manifest["sessions"]
    assert session["command"] == "aragog evaluate"
    assert {"python", "numpy", "numba", "gymnasium", "aragog"} <= set(session["versions"])
    assert {"cpu", "cores", "system"} <= set(session["machine"])


def test_a_later_line_replaces_a_failed_one(tmp_path: Path) -> None:
    with open_for_writing(tmp_path / "out", [make_scenario(tmp_path)]) as results:
        results.append(_run(0, status="failed", error="x"))
        assert results.get(("p", "fake", 0, None)) is None
        results.append(_run(0))
    assert [run.status for run in read(tmp_path / "out").runs] == ["ok"]


def test_runs_are_ordered_by_policy_whatever_finished_first(tmp_path: Path) -> None:
    settings = {"policies": ["p", "q"]}
    with open_for_writing(tmp_path / "out", [make_scenario(tmp_path)], settings=settings) as results:
        for run in (_run(1, policy="q"), _run(1), _run(0, policy="q"), _run(0)):
            results.append(run)
    assert [(r.policy, r.seed) for r in read(tmp_path / "out").runs] == [
        ("p", 0),
        ("p", 1),
        ("q", 0),
        ("q", 1),
    ]


def test_episode_paths_are_unique_and_safe() -> None:
    keys = [("a:b", "s", 0, None), ("a/b", "s", 0, None), ("a:b", "s", 0, 1.5), ("x" * 300, "s", 0, None)]
    paths = [episode_path(key) for key in keys]
    assert len(set(paths)) == 4
    assert all(path.count("/") == 1 and len(path) < 200 and ":" not in path for path in paths)


def test_episode_logs_round_trip(log: EpisodeLog, tmp_path: Path) -> None:
    save_episode(log, tmp_path / "e" / "x.npz")
    again = load_episode(tmp_path / "e" / "x.npz")
    assert differences(log, again) == [] and digest(log) == digest(again)
    assert again.decision_s.tolist() == log.decision_s.tolist()
    assert again.node_names == log.node_names


def test_differences_are_found_and_named(log: EpisodeLog, tmp_path: Path) -> None:
    save_episode(log, tmp_path / "x.npz")
    other = load_episode(tmp_path / "x.npz")
    other.calls["finish_s"][3] += 1e-12
    other.decision_s = other.decision_s * 2  # wall time does not count
    (difference,) = differences(log, other)
    assert difference.startswith("calls.finish_s: 1 of") and "[3]" in difference
    assert digest(log) != digest(other)


def test_a_damaged_episode_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(SpecError, match="cannot read this episode"):
        load_episode(tmp_path / "x.npz")
