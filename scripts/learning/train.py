"""Training of one pair's models: the priced rule is imitated, then PPO goes on from the imitation."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aragog_env.specs.scenario import Scenario
from baselines import imitation, ppo
from baselines.imitation import ImitationSettings
from baselines.model_file import BEST_NAME, FILE_NAME, Kind
from baselines.ppo import PPOSettings

from .plan import PRICED, Case, Ceilings, Size, at_load

SHARED: Final[dict[str, Any]] = {"order": "work", "window": 256, "ready_slots": 8, "threads": 1}
"""Settings of both learners: of the ready calls the eight nearest to their answers are shown."""
IMITATION: Final[dict[str, Any]] = {"rounds": 3, "epochs": 4, "evaluate_every": 3, "evaluate_episodes": 8}
PPO: Final[dict[str, Any]] = {
    "envs": 32,
    "horizon": 256,
    "learning_rate": 3e-4,
    "entropy": 0.0,
    "evaluate_every": 25,
    "evaluate_episodes": 8,
    "save_minutes": 2.0,
}


def model_name(kind: Kind, pair: str) -> str:
    """Return the file that `baselines.learned.model_for` looks for."""
    return f"{kind}-{pair}.safetensors"


def train_pair(
    case: Case, size: Size, ceilings: Ceilings, runs: Path, models: Path, tell: Callable[[str], None] = print
) -> None:
    """Train what is not trained yet, and put the models into one folder.

    Args:
        case: the workflow, and the viable sets of training.
        size: how much is trained.
        ceilings: Aragog's.
        runs: folder of the training runs; an interrupted one goes on.
        models: folder of the models.
        tell: is told about progress.
    """
    scenario, pair = at_load(case, size, size.train_load, ceilings), case.pair
    shared = {**SHARED, "viable": case.sets, "point_s": case.point_s, "most_loss": case.most_loss}
    cloned, tuned = runs / f"imitation-{pair}", runs / f"ppo-{pair}"
    models.mkdir(parents=True, exist_ok=True)
    if not (models / model_name("imitation", pair)).exists():
        expert = case.policy(PRICED, models)
        tell(f"{pair}: imitation of {expert}")
        settings = ImitationSettings(**shared, **IMITATION, expert=expert, steps=size.imitated)
        _go_on(imitation.train, scenario, settings, cloned, tell)
        shutil.copyfile(cloned / FILE_NAME, models / model_name("imitation", pair))
    if not (models / model_name("ppo", pair)).exists():
        tell(f"{pair}: PPO")
        start = str(models / model_name("imitation", pair))
        options = PPOSettings(**shared, **PPO, steps=size.steps, start=start)
        _go_on(ppo.train, scenario, options, tuned, tell, minutes=size.minutes)
        best = tuned / BEST_NAME
        shutil.copyfile(best if best.exists() else tuned / FILE_NAME, models / model_name("ppo", pair))


def _go_on(
    train: Callable[..., None],
    scenario: Scenario,
    settings: ImitationSettings | PPOSettings,
    out: Path,
    tell: Callable[[str], None],
    **options: Any,
) -> None:
    """Train, or go on with a run that was interrupted."""
    begin = time.perf_counter()
    if (out / "state.pt").exists():
        train(None, type(settings), out, tell, resume=True, **options)
    else:
        shutil.rmtree(out, ignore_errors=True)  # what an interruption before the first checkpoint left
        train(scenario, settings, out, tell, **options)
    tell(f"{out.name}: {time.perf_counter() - begin:.0f} s")
