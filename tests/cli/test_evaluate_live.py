"""`aragog evaluate --backend live` from end to end, over fake servers that listen on real ports."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aragog_env import cli
from aragog_env.errors import SpecError
from aragog_env.harness.results import read
from aragog_env.recording import Recording
from aragog_env.servers.find import find_servers
from aragog_env.servers.settle import settle
from aragog_env.specs.strict import dump_yaml
from tests.live.fake_server import FakeServer
from tests.live.world import answer, endpoints_of, make_scenario

pytest.importorskip("httpx")


class Here:
    """A working directory with a scenario, and a deployment that names two fake servers by their URLs."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.scenario = make_scenario(folder)
        (folder / "errands.yaml").write_text(dump_yaml(self.scenario))
        replicas = self.scenario.cluster.expand()
        self.servers = [stack.enter_context(FakeServer(answer, model=r.model)) for r in replicas]
        urls = "\n".join(f"  {r.name}: {{url: {server.url}}}" for r, server in zip(replicas, self.servers, strict=True))
        cluster = dump_yaml(self.scenario.cluster).replace("\n", "\n  ")
        (folder / "served.yaml").write_text(f"name: served\ncluster:\n  {cluster}\nservers:\n{urls}\n")

    def words(self, *more: str) -> list[str]:
        return ["evaluate", "--backend", "live", "--cluster", "served.yaml", "-s", "errands.yaml", "--out", "r", *more]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with ExitStack() as stack:
        yield Here(tmp_path, stack)


def recorded(path: Path, table: str) -> list[dict[str, Any]]:
    with Recording(path) as recording:
        return list(recording.rows(table))


def test_policies_at_two_rates(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    here.servers[0].dev = True
    words = here.words("-p", "least_loaded", "-p", "fixed:largest", "--seeds", "1", "--requests", "5")
    assert cli.main([*words, "--rate", "20", "--rate", "40"]) == 0
    text = capsys.readouterr().out
    assert "least_loaded" in text and "errands@20rps" in text and "errands@40rps" in text
    results = read(here.folder / "r")
    assert len(results.ok) == 4 and not results.failed
    for run in results.ok:
        assert run.recording is not None and run.config["backend"] == "live"
        (session,) = recorded(here.folder / "r" / run.recording, "sessions")
        assert session["ending"] == "drained"
        log = results.log(run)
        assert run.metrics["accuracy"] == pytest.approx((log.requests["correct"] == 1).mean())
        assert run.metrics["completed"] == 5 and run.metrics["failed"] == 0 and run.metrics["jct_mean_s"] > 0
        assert run.details["failed_requests"] == {} and run.details["resumed"] is False
    assert {run.config["rate_rps"] for run in results.ok} == {20.0, 40.0}
    # Paired: every policy meets the same questions at the same seed.
    queries = {run.scenario: results.log(run).requests["query"].tolist() for run in results.ok}
    assert all(results.log(run).requests["query"].tolist() == queries[run.scenario] for run in results.ok)
    settings = results.manifest["sessions"][0]["settings"]
    assert settings["backend"] == "live" and settings["cluster"] == "served"
    assert [s["url"] for s in settings["servers"]] == [server.url for server in here.servers]
    # The caches were emptied before every run, where the server has a door for that.
    assert here.servers[0].resets == 4
    notes = {note for run in results.ok for note in run.details["before"]}
    assert notes == {
        "the prefix cache of server 'toy-l' was not emptied: the server does not allow it (vLLM: VLLM_SERVER_DEV_MODE=1)"
    }
    report = (here.folder / "r" / "report.md").read_text()
    assert "Measured live, on real servers: toy-s (toy-small) at http://127.0.0.1:" in report
    assert "was not emptied" in report and "synthetic outcome tables" not in report
    with pytest.raises(SpecError, match="cannot be validated"):
        from aragog_env.harness.validate import validate

        validate(here.folder / "r")


def test_failed_requests_count(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    """They are no right answers and meet no SLO, whatever the others do."""
    for server in here.servers:
        server.fault = "refuse"
        original = server.answer
        server.answer = original
    here.servers[1].faults_left = 4  # then it works again
    here.servers[0].faults_left = 4
    words = here.words("-p", "least_loaded", "--seed", "0", "--requests", "6", "--warmup", "0")
    assert cli.main([*words, "--rate", "20"]) == 0
    (run,) = read(here.folder / "r").ok
    failed = len(run.details["failed_requests"])
    assert 1 <= failed <= 4 and run.metrics["failed"] == failed and run.metrics["completed"] == 6 - failed
    log = read(here.folder / "r").log(run)
    right = int((log.requests["correct"] == 1).sum())
    assert run.metrics["accuracy"] == pytest.approx(right / 6) and run.metrics["unfinished"] == 0
    assert run.metrics["slo_attainment"] <= (6 - failed) / 6
    assert f"{failed} counted requests failed" in (here.folder / "r" / "report.md").read_text()
    capsys.readouterr()


def test_a_policy_that_raises_fails_alone_and_is_run_anew(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    (here.folder / "mine.py").write_text(
        "from aragog_env.policy import Dispatch\n"
        "from pathlib import Path\n"
        "class Mine:\n"
        "    def reset(self, scenario, seed): self.n = 0\n"
        "    def act(self, view):\n"
        "        self.n += 1\n"
        "        if self.n > 3 and not Path('fixed').exists(): raise RuntimeError('no idea')\n"
        "        return Dispatch(0, 0)\n"
    )
    sys.path.insert(0, str(here.folder))
    try:
        words = here.words("-p", "mine:Mine", "-p", "least_loaded", "--seeds", "1", "--requests", "3", "--rate", "20")
        assert cli.main(words) == 1
        results = read(here.folder / "r")
        (failed,) = results.failed
        assert [run.policy for run in results.ok] == ["least_loaded"] and "no idea" in str(failed.error)
        assert failed.recording is not None and failed.recording.endswith(".failed-1.db")
        (session,) = recorded(here.folder / "r" / failed.recording, "sessions")
        assert "failed: " in session["ending"] and "no idea" in session["ending"]
        (here.folder / "fixed").touch()
        assert cli.main([*words, "--resume"]) == 0
    finally:
        sys.path.remove(str(here.folder))
        sys.modules.pop("mine", None)
    results = read(here.folder / "r")
    assert len(results.ok) == 2 and not results.failed
    (mine,) = [run for run in results.ok if run.policy == "mine:Mine"]
    assert mine.details["resumed"] is False and mine.recording is not None
    assert len(recorded(here.folder / "r" / mine.recording, "requests")) == 3
    assert "no idea" in capsys.readouterr().err


def arrived(recordings: Path) -> int:
    """Return how many requests of the second run have arrived."""
    try:
        return max((len(recorded(path, "requests")) for path in recordings.glob("fixed*.db")), default=0)
    except (SpecError, sqlite3.OperationalError):
        return 0  # this very moment it is being made


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_evaluation_goes_on(here: Here, how: signal.Signals) -> None:
    """Ctrl-C, or `kill -9`, in the middle of the second run: nothing that was finished is done again."""
    for server in here.servers:
        server.token_s = 0.05
    words = here.words("-p", "least_loaded", "-p", "fixed:largest", "--seeds", "1", "--requests", "8", "--rate", "4")
    command = [sys.executable, "-m", "aragog_env.cli", *words, "--quiet", "--no-report"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as first:
        deadline = time.monotonic() + 120.0
        while time.monotonic() < deadline and arrived(here.folder / "r" / "recordings") < 3:
            time.sleep(0.05)
        first.send_signal(how)
        _, errors = first.communicate(timeout=60)
    assert first.returncode == (130 if how == signal.SIGINT else -9), errors
    if how == signal.SIGINT:
        assert "1 finished runs are in r" in errors and "--resume" in errors
    asked = [len(server.seen) for server in here.servers]
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    results = read(here.folder / "r")
    assert len(results.ok) == 2 and len(results.manifest["sessions"]) == 2
    by_policy = {run.policy: run for run in results.ok}
    assert by_policy["least_loaded"].session == 0 and by_policy["fixed:largest"].session == 1
    run = by_policy["fixed:largest"]
    assert run.details["resumed"] is True and run.recording is not None
    path = here.folder / "r" / run.recording
    endings = [row["ending"] for row in recorded(path, "sessions")]
    assert endings == (["interrupted", "drained"] if how == signal.SIGINT else [None, "drained"])
    requests = recorded(path, "requests")
    assert len(requests) == 8 and {row["status"] for row in requests} == {"done"}
    log = results.log(run)
    assert np.isfinite(log.requests["finish_s"]).all()
    calls = recorded(path, "calls")
    lost = [row for row in calls if row["status"] == "lost"]
    done = [row for row in calls if row["status"] == "ok"]
    # Only what was in flight is asked again.
    assert len(done) == len({(row["request"], row["node"]) for row in done}) == len(log.calls)
    assert sum(len(server.seen) for server in here.servers) - sum(asked) == len(
        [row for row in done if row["session"] == 1]
    )
    assert run.metrics["decisions"] == len(recorded(path, "decisions")) and len(lost) <= 8


def test_what_is_refused(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (here.words("--workers", "2"), "live runs go one after the other"),
        (["evaluate", "--backend", "live", "-s", "toy"], "cluster 'toy-3' was not started; start it with"),
        (["evaluate", "--backend", "live", "-s", "toy", "-s", "default"], "several clusters"),
        (["evaluate", "--backend", "live", "--cluster", "servd.yaml"], "servd.yaml: cannot read this file"),
        (here.words("--dataset", "errand"), "expected WORKFLOW=PATH"),
        (["evaluate", "--dataset", "errand=x"], "add --backend live"),
    ):
        assert cli.main([*words, "-p", "least_loaded"]) == 2, message
        assert message in capsys.readouterr().err, words
    assert not (here.folder / "r").exists(), "bad input leaves nothing behind"


def test_a_server_that_is_gone_stops_the_evaluation_and_it_can_go_on(
    here: Here, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from aragog_env.harness import live

    monkeypatch.setattr(live, "settle", lambda endpoints, patience_s: settle(endpoints, 3.0))
    words = here.words("-p", "least_loaded", "--seeds", "2", "--requests", "2", "--rate", "20", "--no-report")
    here.servers[1].stop()
    assert cli.main(words) == 1
    errors = capsys.readouterr().err
    assert "server 'toy-l' at http://127.0.0.1:" in errors and "does not answer" in errors and "--resume" in errors
    here.servers[1].start()
    assert cli.main([*words, "--resume"]) == 0
    assert len(read(here.folder / "r").ok) == 2


def test_servers_are_waited_for_until_they_are_idle(here: Here) -> None:
    small = here.servers[0]
    small.running = 2
    endpoints = endpoints_of(here.scenario, here.servers)
    begin = time.monotonic()
    notes = settle(endpoints, 0.5)
    assert time.monotonic() - begin >= 0.5 and "server 'toy-s' is not idle: it has 2 requests of others" in notes
    small.running = 0
    assert not any("idle" in note for note in settle(endpoints, 5.0))


def test_finding_servers(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_servers("served.yaml")
    assert found.name == "served" and [e.name for e in found.endpoints] == ["toy-s", "toy-l"] and found.folder is None
    assert cli.main(["cluster", "up", "served.yaml"]) == 0  # attaches
    for name in ("served", "served.yaml", str(here.folder / "state" / "aragog" / "clusters" / "served")):
        again = find_servers(name)
        assert again.endpoints == found.endpoints and again.cluster == found.cluster
    with pytest.raises(SpecError, match=r"no cluster 'servedd' was started.*Did you mean 'served'"):
        find_servers("servedd")
    os.chdir("/")
    assert find_servers("served").endpoints == found.endpoints, "from anywhere"


def test_export(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    words = here.words("-p", "least_loaded", "--seeds", "1", "--requests", "2", "--rate", "20", "--no-report", "-q")
    assert cli.main(words) == 0
    (run,) = read(here.folder / "r").ok
    capsys.readouterr()
    assert cli.main(["export", f"r/{run.recording}", "tables"]) == 0
    assert "tables/calls.jsonl" in capsys.readouterr().out
    lines = (here.folder / "tables" / "requests.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["done", "done"]
    assert cli.main(["export", "nothing.db", "tables"]) == 2
    assert "no such recording" in capsys.readouterr().err
