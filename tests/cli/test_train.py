"""`aragog train`: options become settings, runs go on, and bad input is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from aragog_env.cli import main

SMALL = ["--envs", "4", "--threads", "1", "--set", "width=8", "--set", "evaluate_every=0"]
SHORT = ["--requests", "12", *SMALL, "--set", "horizon=16", "--set", "minibatch=32"]


def test_train_resume_and_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    train = ["train", "ppo", "--scenario", "toy", "--out", out, "--steps", "200", "--viable", "oracle", "--seed", "3"]
    assert main([*train, *SHORT]) == 0
    assert f"ppo:{out}" in capsys.readouterr().out
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (
        "viable: oracle" in about["settings"] and "seed: 3" in about["settings"] and "requests: 12" in about["scenario"]
    )
    assert main(["train", "ppo", "--out", out, "--resume", "--steps", "400"]) == 0
    assert json.loads((tmp_path / "run" / "profile.json").read_text())["steps"] >= 400
    results = str(tmp_path / "results")
    words = ["evaluate", "-s", "toy", "--requests", "12", "-p", f"ppo:{out}", "-p", "least_loaded", "--seeds", "1"]
    assert main([*words, "--out", results, "--workers", "1", "--no-report", "--json"]) == 0
    assert f"ppo:{out}" in capsys.readouterr().out


def test_imitation_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", "imitation", "-s", "toy", "--expert", "fixed:smallest", "--out", str(out), "--steps", "60"]
    assert main([*words, "--requests", "12", *SMALL, "--set", "rounds=1"]) == 0
    curve = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert len(curve) == 1 and curve[0]["steps"] >= 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ppo", "-s", "tyo"], "tyo"),
        (["ppo", "-s", "toy", "--set", "clipp=1"], "Did you mean 'clip'"),
        (["ppo", "-s", "toy", "--expert", "aragog"], "key 'expert': unknown key"),
        (["ppo", "-s", "toy", "--viable", "orcale", "--set", "envs=2"], "Did you mean 'oracle'"),
        (["ppo", "--resume", "--set", "clip=0.1"], "a resumed run keeps its settings; leave out 'clip=0.1'"),
        (["ppo", "--resume"], "there is no training run to resume"),
        (["ppo", "-s", "toy", "--start", "nowhere"], "there is no such model"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_settings_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dqn", "--settings"]) == 0
    assert "n_step=16" in capsys.readouterr().out
