"""Comparisons: runs of several folders in one table, learning curves beside them, and the same in W&B."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from aragog_env.cli import main
from aragog_env.errors import SpecError
from aragog_env.harness.comparison import compare, merge, mirror_comparison
from aragog_env.harness.evaluate import evaluate
from aragog_env.harness.results import Results, read
from aragog_env.harness.training_curves import is_training, read_training
from aragog_env.specs.load import load_scenario
from aragog_env.specs.strict import dump_yaml

from .fakes import FakeBackend, Fixed, Large, Spread, make_scenario
from .wandb_files import read_offline, tables


def _results(base: Path, name: str, policies: dict[str, type], seeds: int = 3, **scenario: object) -> Results:
    made = make_scenario(base, **scenario)  # type: ignore[arg-type]
    return evaluate(policies, made, seeds, out=base / name, workers=1, make_backend=FakeBackend)


def _training(folder: Path, rewards: tuple[float, ...] = (-2.0, -1.0, -1.5), **settings: object) -> Path:
    """Write what a training run leaves."""
    folder.mkdir(parents=True)
    rows = [
        {
            "update": i,
            "steps": 1000 * i,
            "wall_s": 30.0 * i,
            "eval/reward": r,
            "eval/jct_mean_s": -r,
            "eval/accuracy": 0.8,
        }
        for i, r in enumerate(rewards, 1)
    ]
    about = {
        "schema": 1,
        "kind": "ppo",
        "scenario": dump_yaml(load_scenario("toy")),
        "settings": json.dumps(settings),
        "sessions": [{"started": "2026-11-21T10:00:00+00:00"}],
    }
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"update": 9, "ste')
    (folder / "best.safetensors").write_bytes(b"weights")
    return folder


def test_runs_of_one_scenario_stand_in_one_table_and_are_paired(tmp_path: Path) -> None:
    rules = _results(tmp_path, "rules", {"small": Fixed, "large": Large})
    learned = _results(tmp_path, "learned", {"learned": Spread})
    comparison = compare([rules.folder, learned.folder], tmp_path / "out", baseline="large")
    (table,) = comparison.tables
    rows = {row.policy: row for row in table.rows}
    assert list(rows) == ["small", "large", "learned"] and table.baseline == "large"
    difference = rows["learned"].cells["jct_mean_s"].difference
    expected = [
        a.metrics["jct_mean_s"] - b.metrics["jct_mean_s"]
        for a, b in zip(learned.ok, [run for run in rules.ok if run.policy == "large"], strict=True)
    ]
    assert difference is not None and difference.value == pytest.approx(sum(expected) / 3) and difference.n == 3
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| learned |" in text and "Differences to large" in text
    assert all(path.exists() for path in (comparison.html, *comparison.figures)) and len(comparison.figures) == 2


def test_scenarios_of_equal_name_and_other_content_are_told_apart(tmp_path: Path) -> None:
    one = _results(tmp_path, "one", {"small": Fixed}, 1)
    two = _results(tmp_path, "two", {"small": Fixed}, 1, rate_rps=2.0)
    assert [run.scenario for run in merge([one, two]).runs] == ["fake", "fake (two)"]


def test_of_a_run_that_two_folders_have_the_last_counts(tmp_path: Path) -> None:
    one = _results(tmp_path, "one", {"small": Fixed}, 1)
    two = read(one.folder)
    two._runs = {key: replace(run, digest="later") for key, run in two._runs.items()}
    assert [run.digest for run in merge([one, two]).runs] == ["later"]


def test_training_runs_are_read_from_their_files(tmp_path: Path) -> None:
    _training(tmp_path / "grid" / "a", width=64)
    _training(tmp_path / "grid" / "b")
    assert is_training(tmp_path / "grid") and is_training(tmp_path / "grid" / "a") and not is_training(tmp_path)
    first, second = read_training(tmp_path / "grid")
    assert (first.name, first.group, first.learner, first.scenario) == ("a", "grid", "ppo", "toy")
    assert first.settings == {"width": 64} and second.steps == 3000 and second.minutes == 1.5
    assert second.best["update"] == 2 and second.column("eval/reward") == ([1000, 2000, 3000], [-2.0, -1.0, -1.5])
    resumed = replace(
        first, rows=[{"steps": 1, "wall_s": 60.0}, {"steps": 2, "wall_s": 30.0}, {"steps": 3, "wall_s": 90.0}]
    )
    assert resumed.minutes == 2.5
    (tmp_path / "grid" / "a" / "run.json").write_text("{")
    with pytest.raises(SpecError, match="this training run cannot be read"):
        read_training(tmp_path / "grid")
    with pytest.raises(SpecError, match="there is no training run here"):
        read_training(tmp_path)


@pytest.mark.filterwarnings("default")
def test_the_comparison_in_w_and_b(tmp_path: Path, offline: None) -> None:
    rules = _results(tmp_path, "rules", {"small": Fixed, "large": Large}, 1)
    run = _training(tmp_path / "grid" / "a")
    comparison = compare([rules.folder, run], tmp_path / "out")
    directories = mirror_comparison(comparison, mode="offline")
    found = [read_offline(directory) for directory in directories]
    assert [its.run.job_type for its in found] == ["eval", "eval", "report", "train", "comparison"]
    trained, last = found[3], found[4]
    assert (trained.run.run_group, trained.run.display_name, trained.config["learner"]) == ("grid", "a", "ppo")
    assert [row["eval/reward"] for row in trained.history] == [-2.0, -1.0, -1.5]
    assert [row["_step"] for row in trained.history] == [1, 2, 3] and trained.history[0]["train/steps"] == 1000
    assert trained.metrics["eval/reward"].step_metric == "train/steps" and trained.metrics["eval/reward"].summary.max
    assert read_training(run)[0].tracked == [directories[3]] and mirror_comparison(comparison, mode="off") == []
    (artifact,) = trained.artifacts.values()
    assert artifact.type == "model" and [entry.path for entry in artifact.manifest.contents] == ["best.safetensors"]
    logged = tables(directories[-1])
    assert [row[1] for row in logged["policies"]["data"]] == ["small", "large"]
    assert logged["training_runs"]["data"][0][:4] == ["a", "ppo", "toy", 3000]
    assert len(logged["training/reward_table"]["data"]) == 3
    shown = {key for row in last.history for key in row}
    assert {"comparison", "figures/training", "figures/frontier-fake"} <= shown


def test_the_command_compares_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = _results(tmp_path, "rules", {"small": Fixed, "large": Large}, 1)
    run = _training(tmp_path / "run")
    out = tmp_path / "out"
    assert main(["report", str(rules.folder), str(run), "--out", str(out), "--baseline", "small"]) == 0
    assert f"comparison: {out / 'comparison.html'}" in capsys.readouterr().out
    assert (rules.folder / "report.html").exists() and "Differences to small" in (out / "comparison.md").read_text()
    assert main(["report", str(tmp_path / "nothing"), str(run)]) == 2
    assert "no results folder" in capsys.readouterr().err
