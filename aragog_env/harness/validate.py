"""Re-run results and compare them bit for bit; only the wall time of decisions may differ."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from ..backends.replay_policy import RecordedPolicy
from ..errors import SpecError
from ..specs.override import override
from .episodes import differences
from .jobs import BackendMaker, Job, PolicyMaker, registered_policy, simulated
from .metrics import WALL_CLOCK_METRICS, episode_metrics
from .progress import Progress, Silent
from .provenance import versions
from .replay import RECORDED, MakeReplay
from .results import Key, Results, RunResult, describe_scenario, read
from .rollout import run_episode


@dataclass
class Validation:
    """What a validation found."""

    checked: list[Key] = field(default_factory=list)
    mismatches: dict[Key, list[str]] = field(default_factory=dict)
    """For each run that differs: what differs."""
    notes: list[str] = field(default_factory=list)
    """Versions that have changed since: the likely reason of a mismatch."""

    @property
    def ok(self) -> bool:
        """Whether every run that was checked is reproduced exactly."""
        return not self.mismatches


def validate(
    folder: str | Path,
    *,
    sample: int | None = 5,
    seed: int = 0,
    progress: Progress | None = None,
    make_policy: PolicyMaker = registered_policy,
    make_backend: BackendMaker = simulated,
) -> Validation:
    """Re-run finished runs of a results folder and compare logs and metrics exactly.

    Args:
        folder: the results.
        sample: how many runs, drawn with `seed`; None means all.
        seed: of the draw.
        progress: told about every run.
        make_policy: makes policies by name.
        make_backend: what they run on.

    Raises:
        SpecError: there is nothing to validate, or a workflow or trace is no longer what the results were
            made with.
    """
    results = read(folder)
    runs = results.ok
    if not runs:
        raise SpecError("this folder holds no finished runs", where=str(folder))
    if any(run.recording is not None for run in runs):
        raise SpecError("real servers never do the same twice: live runs cannot be validated", where=str(folder))
    replays = [s["settings"] for s in results.manifest["sessions"] if s["settings"].get("backend") == "replay"]
    if replays and make_backend is simulated:
        make_backend = MakeReplay(tuple(replays[-1]["recordings"]))
        make_policy = _or_recorded(make_policy)
    if sample is not None and sample < len(runs):
        runs = random.Random(seed).sample(runs, sample)
    _check_inputs(results)
    found = Validation(notes=_version_notes(results))
    progress = progress or Silent()
    jobs = [Job(run.policy, results.scenario(run.scenario), run.seed, str(folder), run.rate_rps) for run in runs]
    progress.begin(jobs, 0)
    try:
        for job, run in zip(jobs, runs, strict=True):
            progress.start(job)
            found.checked.append(run.key)
            problems = _compare(results, run, make_policy, make_backend)
            if problems:
                found.mismatches[run.key] = problems
            progress.done(job, run)
    finally:
        progress.end()
    return found


def _or_recorded(make_policy: PolicyMaker) -> PolicyMaker:
    return lambda name: RecordedPolicy() if name == RECORDED else make_policy(name)


def _compare(results: Results, run: RunResult, make_policy: PolicyMaker, make_backend: BackendMaker) -> list[str]:
    scenario = results.scenario(run.scenario)
    if run.rate_rps is not None:
        scenario = override(scenario, rate_rps=run.rate_rps, requests=run.config["requests"])
    old = results.log(run)
    backend = make_backend(scenario)
    new = run_episode(make_policy(run.policy), run.policy, backend, run.seed)
    backend.close()
    new.scenario = run.scenario
    problems = differences(old, new)
    recomputed = episode_metrics(new)
    for name in sorted(set(run.metrics) | set(recomputed)):
        was, now = run.metrics.get(name), recomputed.get(name)
        if name not in WALL_CLOCK_METRICS and repr(was) != repr(now):
            problems.append(f"metric {name}: {was!r} != {now!r}")
    return problems


def _check_inputs(results: Results) -> None:
    for name, was in results.manifest["scenarios"].items():
        now = describe_scenario(results.scenario(name))
        for workflow, digest in was["workflows"].items():
            if now["workflows"].get(workflow) != digest:
                message = f"workflow '{workflow}' has changed since; check out the commit that the manifest names"
                raise SpecError(message, where=str(results.folder))
        if now.get("trace_sha256") != was.get("trace_sha256"):
            raise SpecError("the trace file has changed or is missing", where=f"{results.folder}, scenario '{name}'")


def _version_notes(results: Results) -> list[str]:
    now, notes = versions(), []
    for session in results.manifest["sessions"]:
        for package, was in session["versions"].items():
            note = f"{package} was {was}, is {now.get(package)}"
            if now.get(package) != was and note not in notes:
                notes.append(note)
    return notes
