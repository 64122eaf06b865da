"""The W&B mirror, with the real client offline; what it wrote is read back."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from aragog_env.errors import SpecError
from aragog_env.harness import tracking
from aragog_env.harness.metrics import METRICS
from aragog_env.harness.mirror import CHARTS, mirror
from aragog_env.harness.report import write_report
from aragog_env.harness.results import Results, read
from aragog_env.harness.summary import summarise

from .wandb_files import read_offline, tables


def _short(folder: Path, copy: Path, runs: int = 2) -> Results:
    """Return a copy of results with some of their runs."""
    shutil.copytree(folder, copy)
    path = copy / "results.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:runs]))
    return read(copy)


@pytest.mark.filterwarnings("default")
def test_offline_mirror_holds_groups_configs_summaries_tables_charts_and_artifacts(
    folder: Path, tmp_path: Path, offline: None
) -> None:
    results = _short(folder, tmp_path / "experiment")
    write_report(results.folder)
    directories = mirror(results, mode="offline")
    *runs, report = [read_offline(directory) for directory in directories]
    assert len(runs) == 2

    first, result = runs[0], results.runs[0]
    assert (first.run.run_group, first.run.job_type, first.run.project) == ("experiment", "eval", "aragog")
    assert first.run.display_name == f"{result.policy}-{result.seed}" and result.policy in first.run.tags
    assert first.config["seed"] == result.seed and first.config["requests"] == 60
    assert first.summary["jct_mean_s"] == result.metrics["jct_mean_s"]

    assert report.run.job_type == "report"
    (artifact,) = [its for its in report.artifacts.values() if its.type == "results"]  # tables are artifacts, too
    stored = {entry.path for entry in artifact.manifest.contents}
    assert {"manifest.json", "results.jsonl", result.episode, "report.html"} <= stored
    found = tables(directories[-1])
    assert [row[:3] for row in found["runs"]["data"]] == [[r.policy, r.scenario, r.seed] for r in results.runs]
    assert found["runs"]["columns"][5:] == list(METRICS)
    policies = [dict(zip(found["policies"]["columns"], row, strict=True)) for row in found["policies"]["data"]]
    (table,) = summarise(results)
    for shown, row in zip(policies, table.rows, strict=True):
        cell = row.cells["jct_mean_s"]
        assert (shown["policy"], shown["seeds"], shown["scenario"]) == (row.policy, row.seeds, table.scenario)
        assert shown["JCT mean (s)"] == pytest.approx(cell.estimate.value)
        difference = None if cell.difference is None else pytest.approx(cell.difference.value)
        assert shown["JCT mean (s) difference"] == difference
    logged: dict[str, Any] = {key: value for row in report.history for key, value in row.items()}
    assert {f"figures/{p.stem}" for p in results.folder.glob("figures/*.png")} <= logged.keys()
    assert logged["report"]["_type"] == "html-file"
    page = directories[-1] / "files" / logged["report"]["path"]
    assert page.read_text() == (results.folder / "report.html").read_text()
    assert {f"{name}/fake_table" for name in CHARTS} <= found.keys()


@pytest.mark.filterwarnings("default")
def test_mirroring_again_uses_the_same_runs(folder: Path, tmp_path: Path, offline: None) -> None:
    results = _short(folder, tmp_path / "experiment", 1)
    ids = [{path.stem for path in d.glob("*.wandb")} for d in mirror(results, mode="offline")]
    again = [{path.stem for path in d.glob("*.wandb")} for d in mirror(read(results.folder), mode="offline")]
    assert ids == again and len(ids) == 2 and ids[0] != ids[1]


@pytest.mark.filterwarnings("default")
def test_in_a_sweep_the_run_and_the_project_are_the_sweeps(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "swp")
    monkeypatch.setenv("WANDB_RUN_ID", "from-the-sweep")
    monkeypatch.setenv("WANDB_PROJECT", "elsewhere")
    with tracking.start(tmp_path, mode="offline", key=["x"], name="n", group="g", job_type="train") as run:
        directory = tracking.directory(run)
    started = read_offline(directory).run
    assert (started.run_id, started.project) == ("from-the-sweep", "elsewhere")


@pytest.mark.filterwarnings("default")
def test_without_an_account_nobody_is_asked_for_one(folder: Path, offline: None) -> None:
    with pytest.raises(SpecError, match="no W&B account is set up on this machine; run 'wandb login'"):
        mirror(read(folder), mode="online")


def test_without_wandb_the_error_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SpecError, match="pip install wandb"):
        mirror(read(folder), mode="offline")


def test_modes(folder: Path) -> None:
    assert mirror(read(folder), mode="off") == []
    with pytest.raises(SpecError, match="off, offline, online"):
        mirror(read(folder), mode="maybe")


def test_ids_depend_on_what_is_mirrored_alone() -> None:
    assert tracking.run_id("a", ("b", 1)) == tracking.run_id("a", ("b", 1)) != tracking.run_id("a", ("b", 2))
    assert json.dumps(tracking.run_id("a")).isascii()
