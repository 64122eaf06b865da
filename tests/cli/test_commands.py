"""The commands from end to end on the simulator, with the toy scenario."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aragog_env import cli

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / ".." / "shared" / "data"

BROKEN = """
from aragog_env.policy import Dispatch

class Raises:
    def reset(self, scenario, seed): pass
    def act(self, view): raise RuntimeError("no idea")

class Invalid(Raises):
    def act(self, view): return Dispatch(0, 99)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _evaluate(*words: str) -> int:
    return cli.main(["evaluate", "--scenario", "toy", "--requests", "40", "--workers", "1", *words])


def test_evaluate_report_and_validate(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policies = ("-p", "round_robin", "-p", "fixed:largest")
    assert _evaluate(*policies, "--seeds", "2", "--out", "r") == 0
    text = capsys.readouterr().out
    assert "round_robin" in text and "JCT P95 (s)" in text and "results: r" in text and "report:  r/report.html" in text
    assert (here / "r" / "report.html").exists() and (here / "r" / "report.md").exists()
    assert cli.main(["validate", "r", "--all"]) == 0
    assert "4 runs re-run, 4 reproduced exactly" in capsys.readouterr().out
    (here / "r" / "report.html").unlink()
    assert cli.main(["report", "r", "--baseline", "fixed:largest"]) == 0
    assert "Differences to fixed:largest" in (here / "r" / "report.html").read_text()


def test_json_is_all_there_is_on_standard_output(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _evaluate("-p", "random", "--seed", "3", "--seed", "5", "--json", "--no-report") == 0
    data = json.loads(capsys.readouterr().out)
    (row,) = data["tables"][0]["policies"]
    assert row["policy"] == "random" and row["seeds"] == 2 and data["report"] is None and data["failed"] == []
    assert row["metrics"]["jct_mean_s"]["mean"] > 0
    assert Path(data["results"]).name.startswith("toy-") and (here / data["results"] / "results.jsonl").exists()


def test_a_broken_policy_is_named_and_the_others_survive(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "broken_policies.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(here))
    names = ("random", "broken_policies:Raises", "broken_policies:Invalid")
    words = [word for name in names for word in ("-p", name)]
    assert _evaluate(*words, "--seeds", "1", "--out", "r", "--no-report") == 1
    captured = capsys.readouterr()
    assert "policy 'broken_policies:Raises': act raised RuntimeError: no idea" in captured.err
    assert "policy 'broken_policies:Invalid': answered Dispatch(call=0, route=99" in captured.err
    assert "Traceback" not in captured.err
    assert "1 of 1 runs failed" in captured.out and "random" in captured.out
    assert cli.main(["validate", "r"]) == 0  # what finished is sound


def test_resume_from_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _evaluate("-p", "random", "--seeds", "1", "--out", "r", "--quiet", "--no-report") == 0
    assert _evaluate("-p", "random", "--seeds", "1", "--out", "r", "--no-report") == 2
    assert "add --resume" in capsys.readouterr().err
    assert _evaluate("-p", "random", "--seeds", "2", "--out", "r", "--resume", "--quiet", "--no-report") == 0
    assert (here / "r" / "results.jsonl").read_text().count("\n") == 2


def test_capacity(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ("--rates", "1,4", "--window", "20", "--precision", "9")
    words = ("-s", "toy", "--requests", "60", "-j", "1", "--seeds", "1", "-p", "round_robin", "-o", "c")
    assert cli.main(["capacity", *words, *sweep, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["policies"]
    assert {1.0, 4.0} <= set(found["rates_rps"])
    assert 0 < found["ceiling_rps"]["value"] <= 4.5
    assert "Throughput ceiling and capacity" in (here / "c" / "report.html").read_text()
    assert (here / "c" / "results.jsonl").read_text().count("\n") == len(found["rates_rps"])


@pytest.mark.parametrize(
    "trace",
    ["azure_llm_2023/AzureLLMInferenceTrace_conv.csv.gz", "mooncake_fast25/conversation_trace.jsonl.gz"],
)
def test_public_traces_drive_the_workflows(here: Path, trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / trace
    if not path.exists():
        pytest.skip("the public traces are not there")
    words = ["evaluate", "--trace", str(path), "--requests", "40", "-j", "1", "-p", "random", "--seeds", "1"]
    assert cli.main([*words, "--json", "--no-report"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["tables"][0]["policies"]
    assert row["metrics"]["completed"]["mean"] > 30


def test_a_trace_that_is_not_sorted_is_bad_input(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "t.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:40.0000000,396,109\n"
    )
    assert _evaluate("-p", "random", "--trace", "t.csv", "--seeds", "1", "--out", "r") == 2
    captured = capsys.readouterr()
    assert "t.csv" in captured.err and "Traceback" not in captured.err and captured.err.count("\n") == 1
    assert not (here / "r").exists()


def test_ctrl_c_says_how_to_go_on(here: Path) -> None:
    words = [
        "evaluate",
        "-s",
        "toy",
        "--requests",
        "2000",
        "-p",
        "random",
        "--seeds",
        "500",
        "-j",
        "1",
        "-o",
        "r",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "aragog_env.cli", *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    path = here / "r" / "results.jsonl"
    end = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") >= 1):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "finished runs are in r" in errors
    assert "go on with: aragog evaluate -s toy --requests 2000" in errors and "--out r --resume" in errors
