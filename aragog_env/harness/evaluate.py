"""Evaluate policies: policies x scenarios x seeds over processes, every result on disk at once, resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SpecError
from ..specs.scenario import Scenario
from .backends import Runner, Simulated, Target
from .defaults import DEFAULT_POLICIES, DEFAULT_SEEDS
from .executor import Executor, ExecutorName
from .jobs import BackendMaker, Job, OwnPolicies, PolicyMaker, registered_policy, simulated
from .progress import Progress, Silent
from .results import Results, RunResult, open_for_writing
from .tracking import check_mode

if TYPE_CHECKING:
    from ..policy import Policy

Policies = Sequence[str] | Mapping[str, "Callable[[], Policy]"]


def evaluate(
    policies: Policies = DEFAULT_POLICIES,
    scenarios: Sequence[str | Scenario] | str | Scenario = "default",
    seeds: int | Sequence[int] = DEFAULT_SEEDS,
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    executor: Executor | ExecutorName = "local",
    progress: Progress | None = None,
    resume: bool = False,
    wandb: str = "off",
    target: Target | None = None,
    make_backend: BackendMaker = simulated,
    command: Sequence[str] | None = None,
) -> Results:
    """Run every policy on every scenario with every seed.

    A policy that raises or answers with an impossible action is recorded as failed (`Results.failed`); the
    others' results are not touched by that. From a script, call this under ``if __name__ == "__main__":``,
    because the worker processes import the script.

    Args:
        policies: names, or names with factories of your own (``{"mine": MyPolicy}``).
        scenarios: names, paths or `Scenario` objects.
        seeds: how many (0, 1, ...), or which.
        out: results folder; by default ``results/<scenario>-<date>-<time>``.
        workers: processes; by default one per core, 1 means this process.
        executor: ``local``, ``ray`` (see docs/scale.md), or an `Executor`, which then says how many workers.
        progress: told about every run.
        resume: go on with `out`; what is there is not run again, failed runs are.
        wandb: ``off``, ``offline`` or ``online``: mirror the results to Weights & Biases when done.
        target: what the policies run on: the simulator by default, or real servers (`harness.backends`).
        make_backend: another simulator.
        command: for the manifest.

    Returns:
        The results; everything in them is on disk.

    Raises:
        SpecError: bad input.
        KeyboardInterrupt: interrupted; what was finished is on disk and `resume` goes on from there.
    """
    check_mode(wandb)
    target = target or Simulated(make_backend)
    loaded = load_scenarios(scenarios, check=make_backend is simulated)
    seed_list = list(range(seeds)) if isinstance(seeds, int) else [int(s) for s in seeds]
    names = check_policies(policies)
    if not (names and loaded and seed_list):
        raise SpecError("nothing to run: give at least one policy, one scenario and one seed")
    folder = Path(out) if out is not None else default_folder(loaded[0].name)
    settings = {"policies": names, "seeds": seed_list, **target.describe()}
    where = executor if isinstance(executor, Executor) else Executor(executor, workers)
    runner = target.runner(policy_maker(policies), where)
    with open_for_writing(folder, loaded, resume=resume, command=command, settings=settings) as results:
        # Seeds outside policies: an interrupted experiment then holds complete pairs.
        jobs = [Job(p, s, seed, str(folder)) for s in loaded for seed in seed_list for p in names]
        progress = progress or Silent()
        with runner:
            try:
                run_jobs(results, jobs, runner, progress)
            except SpecError:
                results.discard_if_empty()
                raise
            finally:
                progress.end()
    if wandb != "off":
        from .mirror import mirror

        mirror(results, mode=wandb)
    return results


def run_jobs(results: Results, jobs: Sequence[Job], runner: Runner, progress: Progress) -> None:
    """Run the jobs that are not on disk yet and put them there."""
    missing = [job for job in jobs if results.get(job.key) is None]
    progress.begin(missing, len(jobs) - len(missing))

    def on_done(job: Job, result: RunResult) -> None:
        results.append(replace(result, session=results.session))
        progress.done(job, result)

    runner.run(missing, progress.start, on_done)


def load_scenarios(scenarios: Sequence[str | Scenario] | str | Scenario, *, check: bool) -> list[Scenario]:
    """Return scenarios, loading those that are given by name or path.

    Args:
        scenarios: names, paths or `Scenario` objects.
        check: refuse, with a SpecError, scenarios whose parts do not fit together.
    """
    from ..specs.load import load_scenario
    from ..specs.validate import validate_scenario

    given = [scenarios] if isinstance(scenarios, str | Scenario) else list(scenarios)
    loaded = [s if isinstance(s, Scenario) else load_scenario(s) for s in given]
    if check:
        for scenario in loaded:
            validate_scenario(scenario)
    return loaded


def policy_maker(policies: Policies) -> PolicyMaker:
    """Return what makes a policy from its name, in this or in another process."""
    return OwnPolicies(policies) if isinstance(policies, Mapping) else registered_policy


def check_policies(policies: Policies) -> list[str]:
    """Return the names of the policies, each once.

    Raises:
        SpecError: a name means nothing (a policy that exists but breaks is left to fail in its own run).
    """
    if isinstance(policies, str):
        raise SpecError(f"policies must be a list of names, not the text '{policies}'")
    names = list(dict.fromkeys(policies))
    make = policy_maker(policies)
    for name in names:
        try:
            make(name)
        except SpecError:
            raise
        except Exception:
            continue
    return names


def default_folder(scenario: str) -> Path:
    """Return ``results/<scenario>-<date>-<time>``, a folder that does not exist yet."""
    stem = Path("results") / f"{scenario}-{datetime.now():%Y%m%d-%H%M%S}"
    return next(p for i in range(1, 1000) if not (p := stem if i == 1 else stem.with_name(f"{stem.name}-{i}")).exists())
