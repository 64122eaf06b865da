"""Jobs on a real Ray instance on this machine: the same results as in processes, whatever happens to the workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from aragog_env.errors import AragogError, SpecError
from aragog_env.harness.episodes import differences, load_episode
from aragog_env.harness.evaluate import evaluate
from aragog_env.harness.executor import Executor
from aragog_env.harness.ray_pool import _Asking, _Changes, _one_compiles, connect
from aragog_env.harness.results import Results, read
from aragog_env.policy import Dispatch, Wait

from .fakes import POLICIES, Exits, FakeBackend, Fixed, Raises, make_scenario
from .slow_experiment import start

REPOSITORY = Path(__file__).resolve().parents[2]
# Ray leaves sockets and files to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("default::ResourceWarning"),
    pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster of two CPUs that this process is part of; its address."""
    import ray

    # Workers look for modules where the driver was started: that of the policies of these tests is `harness.fakes`.
    with contextlib.chdir(REPOSITORY / "tests"):
        context = connect(None, 2)
    yield context.address_info["gcs_address"]
    ray.shutdown()


def _evaluate(tmp_path: Path, policies: Any, seeds: Any = 2, **options: Any) -> Results:
    options = {"out": tmp_path / "out", "executor": "ray", "make_backend": FakeBackend, **options}
    return evaluate(policies, make_scenario(tmp_path), seeds, **options)


def _same(one: Results, two: Results) -> None:
    assert [run.key for run in one.runs] == [run.key for run in two.runs]
    for a, b in zip(one.ok, two.ok, strict=True):
        assert (a.digest, a.episode, a.config, a.details) == (b.digest, b.episode, b.config, b.details)
        wall = {"decision_p50_ms", "decision_p99_ms"}
        assert {k: v for k, v in a.metrics.items() if k not in wall} == pytest.approx(
            {k: v for k, v in b.metrics.items() if k not in wall}, rel=0, abs=0, nan_ok=True
        )
        assert not differences(load_episode(one.folder / str(a.episode)), load_episode(two.folder / str(b.episode)))


class DiesOnce(Fixed):
    """Kills its process in the first of all its episodes."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = Path(marker)

    def act(self, view: Any) -> Dispatch | Wait:
        if not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().act(view)


def test_an_address_that_nobody_answers_is_one_sentence(tmp_path: Path) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("this process is part of a cluster")
    with pytest.raises(SpecError, match="--executor ray: cannot use the Ray cluster at 'nowhere'"):
        _evaluate(tmp_path, {"small": Fixed}, executor=Executor("ray", address="nowhere"))


def test_a_cluster_and_one_process_give_the_same_results(cluster: str, tmp_path: Path) -> None:
    local = _evaluate(tmp_path, POLICIES, out=tmp_path / "local", executor="local", workers=1)
    remote = _evaluate(tmp_path, POLICIES, out=tmp_path / "remote")
    assert len(remote.ok) == 6
    _same(local, remote)
    names = [sorted(p.relative_to(r.folder).as_posix() for p in r.folder.rglob("*.*")) for r in (local, remote)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_one_that_always_dies_is_reported(cluster: str, tmp_path: Path) -> None:
    policies = {"small": partial(DiesOnce, str(tmp_path / "died")), "exits": Exits, "raises": Raises}
    remote = _evaluate(tmp_path, policies, 2)
    assert (tmp_path / "died").exists()
    local = _evaluate(tmp_path, {"small": Fixed}, 2, out=tmp_path / "local", executor="local", workers=1)
    assert [(run.key, run.digest) for run in remote.ok] == [(run.key, run.digest) for run in local.ok]
    errors = {run.policy: str(run.error) for run in remote.failed}
    assert "its process died" in errors["exits"] and "out of ideas" in errors["raises"] and len(remote.failed) == 4


def test_bad_input_ends_the_evaluation_and_leaves_no_folder(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^trace\.csv: line 3"):
        _evaluate(tmp_path, POLICIES, make_backend=_refuses)
    assert not (tmp_path / "out").exists()


def _refuses(scenario: Any) -> Any:
    raise SpecError("line 3 of the trace is earlier than line 2", where="trace.csv")


class Unpicklable(Fixed):
    """Cannot be sent anywhere."""

    def __reduce__(self) -> Any:
        return (_no_such_module, ())


def _no_such_module() -> None:
    raise ModuleNotFoundError("No module named 'elsewhere'")


def test_workers_that_lack_a_module_say_so(cluster: str, tmp_path: Path) -> None:
    broken = Unpicklable()
    with pytest.raises(AragogError, match=r"a Ray worker cannot do its work \(.*No module named 'elsewhere'\)"):
        _evaluate(tmp_path, {"small": partial(lambda policy: policy, broken)})


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(cluster: str, tmp_path: Path) -> None:
    process = start(tmp_path, 'executor=Executor("ray", address=sys.argv[2])', cluster)
    lines = tmp_path / "out" / "results.jsonl"
    end = time.monotonic() + 90
    while not lines.exists() or lines.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in errors, errors.decode()
    finished = read(tmp_path / "out").ok
    assert 2 <= len(finished) < 40 and all((tmp_path / "out" / str(run.episode)).exists() for run in finished)


@pytest.mark.slow
def test_the_command_line_starts_ray_and_ends_it(tmp_path: Path) -> None:
    words = ["evaluate", "-s", "toy", "-p", "least_loaded", "-p", "round_robin", "--seeds", "3", "--no-report"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    for executor in ("local", "ray"):
        command = [sys.executable, "-m", "aragog_env.cli", *words, "--executor", executor, "--workers", "2"]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / executor)],
            env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "usage" not in done.stderr.lower()
    _same(read(tmp_path / "local"), read(tmp_path / "ray"))


def test_without_ray_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpecError, match=r'Ray is not installed; run pip install -e "\.\[ray\]"'):
        _evaluate(tmp_path, {"small": Fixed})


def test_choices_of_executors_are_checked() -> None:
    with pytest.raises(SpecError, match=r"unknown executor 'rya'\. Did you mean 'ray'"):
        Executor("rya")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="only Ray has an address; add --executor ray"):
        Executor("local", address="here:6379")


def test_changes_are_new_and_changed_files(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("1")
    changes = _Changes(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "new").write_text("2")
    (tmp_path / "link").symlink_to(tmp_path / "given")
    assert changes.take() == {"deep/new": b"2"}
    (tmp_path / "given").write_text("longer")
    assert changes.take() == {"given": b"longer"} and changes.take() == {}


def test_questions_are_asked_now_and_then_and_a_yes_is_remembered() -> None:
    answers = iter([False, True])
    asking = _Asking(lambda: next(answers))
    assert not asking() and not asking()
    asking._asked -= 10
    assert asking() and asking()


def test_one_process_compiles_and_the_next_goes_on_when_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with _one_compiles("first", lambda: False) as compiled, open(tmp_path / "aragog-first.lock") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        compiled()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_UN)
        assert (tmp_path / "aragog-first.lock").read_text() == "compiled\n"
    with open(tmp_path / "aragog-second.lock", "w") as holder:  # another process that compiles for ever
        fcntl.flock(holder, fcntl.LOCK_EX)
        asked = iter([False, True])
        with _one_compiles("second", lambda: next(asked)):
            pass
