"""Grids of training runs: a folder each, below one folder, as jobs for an executor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aragog_env.errors import SpecError
from aragog_env.harness.training_jobs import TrainingJob
from aragog_env.specs.scenario import Scenario

from .training_run import Settings, TrainingRun


def plan(learner: str, scenarios: Sequence[Scenario], settings: Sequence[Settings], out: Path) -> list[TrainingJob]:
    """Make the folder of every run, which says what to do, and return the jobs.

    Runs side by side have a thread each, unless the settings say otherwise.

    Raises:
        SpecError: two runs would have the same folder, or one holds another run.
    """
    runs = [(scenario, its) for scenario in scenarios for its in settings]
    names = [f"{scenario.name}-seed{its.seed}" for scenario, its in runs]
    if len(set(names)) < len(names):
        raise SpecError("two runs of the grid have the same scenario and seed; their folders would be the same")
    jobs = []
    for name, (scenario, its) in zip(names, runs, strict=True):
        run = TrainingRun(out / name, scenario, replace(its, threads=its.threads or 1))
        jobs.append(_job(learner, run))
    return jobs


def resume(learner: str, cls: type[Settings], out: Path, steps: int | None = None) -> list[TrainingJob]:
    """Return jobs that go on with the runs of a grid, or with a single run, but for those that are finished.

    Args:
        learner: of the runs.
        cls: its settings.
        out: folder of the grid or of a run.
        steps: another number of steps than the runs were begun with.

    Raises:
        SpecError: there is no run, or it is another learner's.
    """
    folders = [out] if (out / "run.json").exists() else sorted(path.parent for path in out.glob("*/run.json"))
    if not folders:
        raise SpecError("there is no training run to resume", where=str(out))
    runs = [TrainingRun(folder, None, cls, resume=True, steps=steps) for folder in folders]
    return [_job(learner, run) for run in runs if not _finished(run)]


def _finished(run: TrainingRun) -> bool:
    path = run.folder / "profile.json"
    return path.exists() and int(json.loads(path.read_text())["steps"]) >= run.settings.steps


def _job(learner: str, run: TrainingRun) -> TrainingJob:
    folder = run.folder.resolve()
    settings = run.settings
    gpus = 1 if settings.device.startswith("cuda") else 0
    return TrainingJob(
        learner, str(run.folder), name=folder.name, group=folder.parent.name, cpus=settings.threads or 1, gpus=gpus
    )
