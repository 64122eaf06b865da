"""Train a scheduler: ppo, dqn or imitation of another policy (docs/learning.md).

Several scenarios or seeds are a grid: a training run each, in folders below --out, side by side in processes or on a Ray
cluster.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from . import options as shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..harness.training_jobs import TrainingJob

# Options of this command that are settings of the learners under the same name.
_SETTINGS: Final = ("steps", "envs", "viable", "accuracy_weight", "expert", "start", "sampler", "device", "threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from ..harness.training_jobs import LEARNERS

    positive = shared.positive
    parser.add_argument("learner", choices=tuple(LEARNERS), help="what to train with")
    parser.add_argument(
        "--scenario", "-s", action="append", metavar="NAME|PATH", help="scenario, repeatable (default: default)"
    )
    parser.add_argument("--out", "-o", metavar="FOLDER", help="folder of the run (default: runs/LEARNER-SCENARIO)")
    parser.add_argument("--resume", action="store_true", help="go on with --out, with the settings that it holds")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so long; --resume goes on")
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="decisions to train for, in all environments together"
    )
    parser.add_argument("--envs", type=positive, metavar="N", help="environments side by side")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seed",
        type=int,
        action="append",
        metavar="SEED",
        help="of weights, traffic, choices, repeatable (default: 0)",
    )
    seeds.add_argument("--seeds", type=positive, metavar="N", help="a run for each of the seeds 0..N-1")
    parser.add_argument(
        "--viable",
        metavar="SETS",
        help="narrow the choices to viable sets: router, oracle or a router's checkpoint\n"
        "(default: none, all candidates; accuracy then is a matter of its price)",
    )
    parser.add_argument("--accuracy-weight", type=float, metavar="X", help="price of a right answer in the reward")
    parser.add_argument("--expert", metavar="POLICY", help="imitation: the policy to imitate (default: aragog)")
    parser.add_argument("--start", metavar="PATH", help="start from the weights of this model, or of this run's")
    parser.add_argument(
        "--sampler", metavar="FILE", help="draw the scenarios of training from this file (docs/scale.md)"
    )
    parser.add_argument("--device", metavar="NAME", help="torch device (default: a GPU where there is one)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads on the CPU (default: one per core)")
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="NAME=VALUE", help="other settings, repeatable"
    )
    parser.add_argument("--settings", action="store_true", help="print the learner's settings and leave")
    parser.add_argument(
        "--wandb", choices=("off", "offline", "online"), default="off", help="mirror the learning curve"
    )
    parser.add_argument("--print-sweep", action="store_true", help="print a file for 'wandb sweep' and leave")
    shared.add_executor_options(parser)
    shared.add_scenario_options(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    # Waiting threads sleep: the simulator and torch each have their own, and would otherwise spin against each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    learner = _learner(options.learner)
    if options.settings:
        print(learner.describe(learner.settings))
        return 0
    executor = shared.chosen_executor(options)
    given = {name: value for name in _SETTINGS if (value := getattr(options, name)) is not None}
    words = [*(f"{name}={value}" for name, value in given.items()), *options.set]
    seeds = list(range(options.seeds)) if options.seeds else options.seed
    if options.print_sweep:
        from .sweep import sweep_file

        print(sweep_file(options.learner, lambda names: learner.read(learner.settings, [*words, *names])), end="")
        return 0
    out = Path(options.out or _default_out(options))
    if options.resume:
        from ..errors import SpecError

        refused = [
            word for word in (*words, *(f"seed={seed}" for seed in seeds or ())) if not word.startswith("steps=")
        ]
        if refused:
            raise SpecError(f"a resumed run keeps its settings; leave out '{refused[0]}'", where="--resume")
        if executor.name == "local" and ((out / "run.json").exists() or not any(out.glob("*/run.json"))):
            learner.train(None, learner.settings, out, resume=True, steps=options.steps, **_common(options))
            return _told(options, out)
        jobs = learner.resume(options.learner, learner.settings, out, options.steps)
    else:
        from .options import scenario_from

        names = options.scenario or [_first_of_sampler(options.sampler) or "default"]
        scenarios = [scenario_from(name, options) for name in names]
        settings = [learner.read(learner.settings, [*words, *extra]) for extra in _seed_words(seeds)]
        if executor.name == "local" and len(scenarios) * len(settings) == 1:
            learner.train(scenarios[0], settings[0], out, **_common(options))
            return _told(options, out)
        jobs = learner.plan(options.learner, scenarios, settings, out)
    return _run_all(options, jobs, out)


@dataclass(frozen=True)
class _Learner:
    """What lives above this package, and is reached by name only."""

    settings: Any
    train: Callable[..., None]
    describe: Callable[[Any], str]
    read: Callable[[Any, list[str]], Any]
    plan: Callable[..., list[TrainingJob]]
    resume: Callable[..., list[TrainingJob]]


def _learner(name: str) -> _Learner:
    from ..errors import SpecError
    from ..harness.training_jobs import LEARNERS
    from ..registry import load_entry_point

    try:
        return _Learner(
            load_entry_point(f"baselines.{name}:{LEARNERS[name]}", "train"),
            load_entry_point(f"baselines.{name}:train", "train"),
            load_entry_point("baselines.training_run:describe_settings", "train"),
            load_entry_point("baselines.training_run:read_settings", "train"),
            load_entry_point("baselines.training_grid:plan", "train"),
            load_entry_point("baselines.training_grid:resume", "train"),
        )
    except SpecError as error:
        raise SpecError("training needs torch: pip install 'aragog-gym[train]'") from error


def _common(options: argparse.Namespace) -> dict[str, Any]:
    return {"minutes": options.minutes, "wandb": options.wandb}


def _told(options: argparse.Namespace, out: Path) -> int:
    """Say under which name the model is a policy."""
    print(f"{options.learner}:{out}")
    if options.wandb == "offline":
        shared.tell_sync(f"{out}/wandb")
    return 0


def _seed_words(seeds: list[int] | None) -> list[list[str]]:
    return [[f"seed={seed}"] for seed in seeds] if seeds else [[]]


def _default_out(options: argparse.Namespace) -> str:
    """Return the folder of a run that was given none; the runs of a sweep have one each."""
    if "WANDB_SWEEP_ID" in os.environ:
        return f"runs/sweep-{os.environ['WANDB_SWEEP_ID']}/{os.environ.get('WANDB_RUN_ID', 'run')}"
    names = options.scenario or [options.sampler or "default"]
    return f"runs/{options.learner}-{'-'.join(Path(name).stem for name in names)[:80]}"


def _first_of_sampler(path: str | None) -> str | None:
    """Return the scenario that evaluations are of where training draws its scenarios and none is named."""
    if path is None:
        return None
    from ..specs.sampler import load_sampler

    return load_sampler(path).scenarios[0].scenario


def _run_all(options: argparse.Namespace, jobs: list[TrainingJob], out: Path) -> int:
    """Do the runs of a grid; each line of progress begins with its run's name."""
    from dataclasses import replace

    from ..harness.training_jobs import Train, Trained

    failed: list[Trained] = []

    def on_done(job: TrainingJob, result: Trained) -> None:
        if result.error is not None:
            failed.append(result)
            print(f"error: {job.name}: {result.error}", file=sys.stderr)
            return
        print(f"{options.learner}:{job.folder}", flush=True)

    jobs = [replace(job, minutes=options.minutes, wandb=options.wandb) for job in jobs]
    if not jobs:
        print(f"all runs in {out} are finished; --steps N goes on to N decisions")
    try:
        with shared.chosen_executor(options).pool(Train()) as pool:
            pool.run(jobs, lambda job: None, on_done)
    except KeyboardInterrupt:
        print(f"interrupted; go on with: aragog train {options.learner} --out {out} --resume", file=sys.stderr)
        return 130
    if options.wandb == "offline":
        shared.tell_sync(f"{out}/*/wandb")
    return 1 if failed else 0
