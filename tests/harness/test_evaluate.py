"""Experiments: processes, failures by name, resuming, interruptions."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aragog_env.errors import SpecError
from aragog_env.harness.evaluate import default_folder, evaluate
from aragog_env.harness.progress import Bars, Silent
from aragog_env.harness.results import read

from .fakes import POLICIES, Exits, FakeBackend, Fixed, Invalid, Raises, make_scenario
from .slow_experiment import start


def _evaluate(tmp_path: Path, policies: Any, seeds: Any = 2, **options: Any) -> Any:
    options = {"out": tmp_path / "out", "workers": 1, "make_backend": FakeBackend, **options}
    return evaluate(policies, make_scenario(tmp_path), seeds, **options)


def test_processes_and_one_process_give_the_same_bytes(tmp_path: Path) -> None:
    one = _evaluate(tmp_path, POLICIES, out=tmp_path / "one")
    two = _evaluate(tmp_path, POLICIES, out=tmp_path / "two", workers=2)
    assert [run.key for run in one.runs] == [run.key for run in two.runs]
    assert [run.digest for run in one.runs] == [run.digest for run in two.runs]
    assert len(one.ok) == 6 and all((tmp_path / "two" / str(run.episode)).exists() for run in two.runs)


def test_failures_are_reported_by_name_and_others_survive(tmp_path: Path) -> None:
    results = _evaluate(tmp_path, {"small": Fixed, "raises": Raises, "invalid": Invalid})
    assert [run.policy for run in results.ok] == ["small", "small"]
    errors = {run.policy: run for run in results.failed}
    assert "policy 'raises': act raised RuntimeError: out of ideas" in str(errors["raises"].error)
    assert "policy 'invalid': answered Dispatch(call=0, route=7" in str(errors["invalid"].error)
    assert "out of ideas" in str(errors["raises"].traceback) and "fakes.py" in str(errors["raises"].traceback)
    assert len(read(tmp_path / "out").failed) == 4


def test_a_policy_that_kills_its_process_does_not_take_the_others_along(tmp_path: Path) -> None:
    results = _evaluate(tmp_path, {"small": Fixed, "exits": Exits}, workers=2)
    assert [run.policy for run in results.ok] == ["small", "small"]
    assert {run.policy for run in results.failed} == {"exits"}
    assert "its process died" in str(results.failed[0].error)


def test_a_policy_that_cannot_be_made_is_a_failure_of_its_own(tmp_path: Path) -> None:
    def broken() -> Fixed:
        raise FileNotFoundError("model.pt")

    results = _evaluate(tmp_path, {"small": Fixed, "learned": broken})
    assert len(results.ok) == 2
    assert "policy 'learned': could not be made: FileNotFoundError: model.pt" in str(results.failed[0].error)


def test_resume_runs_only_what_is_missing_or_failed(tmp_path: Path) -> None:
    _evaluate(tmp_path, {"small": Fixed, "broken": Raises}, 2)
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    seen: list[Any] = []

    class Watch(Silent):
        def begin(self, jobs: Any, skipped: int) -> None:
            seen.append((sorted((job.policy, job.seed) for job in jobs), skipped))

    results = _evaluate(tmp_path, {"small": Fixed, "broken": Fixed}, 3, resume=True, progress=Watch())
    assert seen == [([("broken", 0), ("broken", 1), ("broken", 2), ("small", 2)], 2)]
    assert (tmp_path / "out" / "results.jsonl").read_bytes().startswith(before)
    assert len(results.ok) == 6 and not results.failed
    assert len(results.manifest["sessions"]) == 2
    assert {run.seed: run.session for run in results.ok if run.policy == "small"} == {0: 0, 1: 0, 2: 1}


def test_bad_input_leaves_no_folder(tmp_path: Path) -> None:
    def refuses(scenario: Any) -> Any:
        raise SpecError("line 3 of the trace is earlier than line 2", where="trace.csv")

    with pytest.raises(SpecError, match="line 3"):
        _evaluate(tmp_path, POLICIES, make_backend=refuses)
    assert not (tmp_path / "out").exists()


def test_unknown_policy_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="Did you mean"):
        _evaluate(tmp_path, ["round_robbin"])
    assert not (tmp_path / "out").exists()


def test_text_instead_of_a_list_of_policies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="list of names"):
        _evaluate(tmp_path, "random")


def test_default_folders_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = default_folder("x")
    first.mkdir(parents=True)
    assert default_folder("x") != first


def test_bars_follow_an_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = _evaluate(tmp_path, {"small": Fixed, "raises": Raises}, progress=Bars())
    assert len(results.runs) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "all runs" in captured.err and "4/4" in captured.err and "failed" in captured.err


def _wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def _alive(group: int) -> list[str]:
    """Return the processes of a group that still run; zombies that nobody reaps do not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = path.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, _, its_group = rest.split()[:3]
        if int(its_group) == group and state != "Z":
            found.append(name)
    return found


def _lines(tmp_path: Path) -> int:
    path = tmp_path / "out" / "results.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process(tmp_path: Path) -> None:
    process = start(tmp_path, "workers=2, resume=True")
    _wait_for(lambda: _lines(tmp_path) >= 2)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors.decode()
    assert b"Traceback" not in errors, errors.decode()
    finished = len(read(tmp_path / "out").ok)
    assert 2 <= finished < 40
    _wait_for(lambda: not _alive(process.pid), 10)


def test_kill_9_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    process = start(tmp_path, "workers=2, resume=True")
    _wait_for(lambda: _lines(tmp_path) >= 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    kept = {run.key: run.digest for run in read(tmp_path / "out").ok}
    assert len(kept) >= 2
    results = evaluate(
        {"slow": Fixed},
        make_scenario(tmp_path, requests=20),
        3,
        out=tmp_path / "out",
        workers=1,
        make_backend=FakeBackend,
        resume=True,
    )
    assert {key: run.digest for key in kept if (run := results.get(key))} == kept
