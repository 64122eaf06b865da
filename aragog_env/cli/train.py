"""Train a scheduler: ppo, dqn or imitation of another policy (docs/learning.md)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

LEARNERS: Final = ("ppo", "dqn", "imitation")
_CLASSES: Final = {"ppo": "PPOSettings", "dqn": "DQNSettings", "imitation": "ImitationSettings"}
# Options of this command that are settings of the learners under the same name.
_SETTINGS: Final = ("steps", "envs", "viable", "accuracy_weight", "expert", "start", "device", "threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from .options import add_scenario_options, positive

    parser.add_argument("learner", choices=LEARNERS, help="what to train with")
    parser.add_argument("--scenario", "-s", default="default", metavar="NAME|PATH", help="scenario (default: default)")
    parser.add_argument("--out", "-o", metavar="FOLDER", help="folder of the run (default: runs/LEARNER-SCENARIO)")
    parser.add_argument("--resume", action="store_true", help="go on with --out, with the settings that it holds")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so long; --resume goes on")
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="decisions to train for, in all environments together"
    )
    parser.add_argument("--envs", type=positive, metavar="N", help="environments side by side")
    parser.add_argument("--seed", type=int, metavar="SEED", help="of weights, traffic and choices (default: 0)")
    parser.add_argument(
        "--viable",
        metavar="SETS",
        help="narrow the choices to viable sets: router, oracle or a router's checkpoint\n"
        "(default: none, all candidates; accuracy then is a matter of its price)",
    )
    parser.add_argument("--accuracy-weight", type=float, metavar="X", help="price of a right answer in the reward")
    parser.add_argument("--expert", metavar="POLICY", help="imitation: the policy to imitate (default: aragog)")
    parser.add_argument("--start", metavar="PATH", help="start from the weights of this model, or of this run's")
    parser.add_argument("--device", metavar="NAME", help="torch device (default: a GPU where there is one)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads on the CPU (default: one per core)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting, repeatable"
    )
    parser.add_argument("--settings", action="store_true", help="print the learner's settings and leave")
    parser.add_argument(
        "--wandb", choices=("off", "offline", "online"), default="off", help="mirror the learning curve"
    )
    add_scenario_options(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    # Waiting threads sleep: the simulator and torch each have their own, and would otherwise spin against each other.
    import os

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from ..errors import SpecError
    from ..registry import load_entry_point
    from .options import scenario_from

    # Learners live above this package: reached by name only.
    module = f"baselines.{options.learner}"
    try:
        settings_class = load_entry_point(f"{module}:{_CLASSES[options.learner]}", "train")
        train = load_entry_point(f"{module}:train", "train")
        describe = load_entry_point("baselines.training_run:describe_settings", "train")
        read = load_entry_point("baselines.training_run:read_settings", "train")
    except SpecError as error:
        raise SpecError("training needs torch: pip install 'aragog-gym[train]'") from error
    if options.settings:
        print(describe(settings_class))
        return 0
    given = {name: getattr(options, name) for name in _SETTINGS}
    words = [f"{name}={value}" for name, value in {**given, "seed": options.seed}.items() if value is not None]
    out = Path(options.out or f"runs/{options.learner}-{Path(options.scenario).stem}")
    common = {"minutes": options.minutes, "wandb": options.wandb}
    if options.resume:
        refused = [word for word in (*words, *options.set) if not word.startswith("steps=")]
        if refused:
            raise SpecError(f"a resumed run keeps its settings; leave out '{refused[0]}'", where="--resume")
        train(None, settings_class, out, resume=True, steps=options.steps, **common)
    else:
        train(scenario_from(options.scenario, options), read(settings_class, [*words, *options.set]), out, **common)
    print(f"{options.learner}:{out}")
    return 0
