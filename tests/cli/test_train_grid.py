"""Grids of training runs, in processes and on Ray, and the file for sweeps."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch")

from aragog_env.cli import main
from aragog_env.cli.sweep import PARAMETERS
from aragog_env.harness.ray_pool import connect
from aragog_env.harness.training_jobs import LEARNERS, Train, Trained, TrainingJob
from aragog_env.harness.work import Context
from aragog_env.registry import load_entry_point
from aragog_env.specs.strict import loads

SMALL = ["--envs", "4", "--threads", "1", "--requests", "12", "--set", "width=8", "evaluate_every=0", "horizon=16"]
PPO = ["train", "ppo", "-s", "toy", "--viable", "oracle", "--steps", "150", *SMALL, "minibatch=32", "critic_updates=0"]


def _curve(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("wall_s", "steps_per_s")} for row in rows]


def _settings(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["settings"])


@pytest.mark.slow
def test_a_grid_in_processes_equals_its_runs_alone_and_can_be_resumed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    grid, alone = tmp_path / "grid", tmp_path / "alone"
    assert main([*PPO, "--seeds", "2", "--out", str(grid), "--workers", "2"]) == 0
    shown = capfd.readouterr().out
    assert f"ppo:{grid / 'toy-seed0'}" in shown and "toy-seed1: " in shown
    assert main([*PPO, "--seed", "1", "--out", str(alone)]) == 0
    assert _curve(grid / "toy-seed1") == _curve(alone) != _curve(grid / "toy-seed0")
    capfd.readouterr()
    resume = ["train", "ppo", "--out", str(grid), "--resume", "--workers", "1"]
    assert main(resume) == 0 and f"all runs in {grid} are finished" in capfd.readouterr().out
    assert main([*resume, "--steps", "300"]) == 0
    assert main(["train", "ppo", "--out", str(alone), "--resume", "--steps", "300"]) == 0
    assert _curve(grid / "toy-seed1") == _curve(alone) and _curve(alone)[-1]["steps"] >= 300


@pytest.fixture
def cluster() -> Iterator[None]:
    """A Ray cluster of two CPUs that this process is part of."""
    ray = pytest.importorskip("ray")
    connect(None, 2)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("default::ResourceWarning")
@pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning")
def test_a_grid_on_ray_equals_local_runs(cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grid, alone = tmp_path / "grid", tmp_path / "alone"
    assert main([*PPO, "--seeds", "2", "--out", str(grid), "--executor", "ray"]) == 0
    assert "toy-seed1: " in capfd.readouterr().out
    assert main([*PPO, "--seed", "1", "--out", str(alone)]) == 0
    assert _curve(grid / "toy-seed1") == _curve(alone)
    names = {path.name for path in (grid / "toy-seed0").iterdir()}
    assert {"run.json", "state.pt", "model.safetensors", "curve.jsonl", "profile.json"} <= names
    assert main(["train", "ppo", "--out", str(grid), "--resume", "--steps", "300", "--executor", "ray"]) == 0
    assert main(["train", "ppo", "--out", str(alone), "--resume", "--steps", "300"]) == 0
    assert _curve(grid / "toy-seed1") == _curve(alone)


def test_scenarios_and_seeds_make_the_grid(tmp_path: Path) -> None:
    out = tmp_path / "grid"
    words = [*PPO, "-s", "arithmetic", "--seed", "3", "--seed", "5", "--out", str(out), "--minutes", "0.000001"]
    assert main([*words, "--workers", "1"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "arithmetic-seed3", "arithmetic-seed5", "toy-seed3", "toy-seed5",
    ]  # fmt: skip
    assert "seed: 5" in _settings(out / "toy-seed5") and "threads: 1" in _settings(out / "toy-seed5")


def test_a_run_that_fails_does_not_take_the_others_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid"
    words = [*PPO, "--seeds", "2", "--out", str(out), "--workers", "1", "--start", str(tmp_path / "nowhere")]
    assert main(words) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all("there is no such model" in line for line in errors)
    assert "toy-seed0" in errors[0] and "toy-seed1" in errors[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "1", "--seed", "1"], "two runs of the grid have the same scenario and seed"),
        (["--resume", "--executor", "ray"], "there is no training run to resume"),
        (["--resume", "--seeds", "2"], "a resumed run keeps its settings; leave out 'seed=0'"),
        (["--ray-address", "x:1"], "only Ray has an address"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "ppo", *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_lost_run_is_reported_and_says_what_it_takes(tmp_path: Path) -> None:
    job = TrainingJob("ppo", str(tmp_path), name="x", cpus=3, gpus=1)
    assert Train().lost(job) == Trained(str(tmp_path), "its process died twice (killed, out of memory, or it exited)")
    assert Train().needs(job) == {"num_cpus": 3, "num_gpus": 1}
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("weights")
    (tmp_path / "profile.json").write_text("{}")
    assert Train().files(job) == {"run.json": b"{}", "model.safetensors": b"weights"}
    assert "no training run to resume" in str(Train()(job.moved(str(tmp_path / "other")), Context()).error)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("learner", list(PARAMETERS))
def test_the_sweeps_command_trains_with_its_parameters(
    learner: str, offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wandb.sdk.launch.sweeps import utils

    words = ["train", learner, "-s", "toy", "--viable", "oracle", *SMALL[:6], "--print-sweep"]
    words += ["--minutes", "0.000001", "--out", "dropped"]
    monkeypatch.setattr(sys, "argv", ["aragog", *words])
    assert main(words) == 0
    text = capsys.readouterr().out
    sweep = yaml.safe_load(text)
    assert sweep["metric"] == {"name": "eval/reward", "goal": "maximize"} and "dropped" not in text
    assert list(sweep["parameters"]) == list(PARAMETERS[learner])
    # What the agent makes of it: parameters as NAME=VALUE after --set.
    drawn = {
        n: {"value": (p.get("values") or [(p["min"] * p["max"]) ** 0.5])[0]} for n, p in sweep["parameters"].items()
    }
    given = utils.create_sweep_command_args({"args": drawn})
    command = [part for word in sweep["command"] for part in (given[word[2:-1]] if word.startswith("${") else [word])]
    assert command[:3] == ["aragog", "train", learner] and command.count("--wandb") == 1
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_RUN_ID", "run1")
    monkeypatch.chdir(tmp_path)
    command[command.index("online")] = "offline"
    assert main(command[1:]) == 0
    folder = tmp_path / "runs" / "sweep-abc" / "run1"
    assert f"{learner}:runs/sweep-abc/run1" in capsys.readouterr().out
    settings = loads(load_entry_point(f"baselines.{learner}:{LEARNERS[learner]}", "test"), _settings(folder))
    assert {name: getattr(settings, name) for name in drawn} == {name: drawn[name]["value"] for name in drawn}
    (directory,) = (folder / "wandb").glob("offline-run-*")
    assert directory.name.endswith("-run1")
