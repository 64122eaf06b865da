"""sb3-contrib's MaskablePPO on many environments that are stepped in one compiled call, through the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import VecMonitor

from aragog_env.integrations.sb3 import make_sb3_env
from aragog_env.specs.scenario import Scenario
from scripts.interop.compare import compare, options
from scripts.interop.sb3_single import Trained

__all__ = ["Trained", "main", "train"]


def train(scenario: Scenario, steps: int, path: Path, envs: int = 64) -> MaskablePPO:
    """Train and save a model; `VecMonitor` adds the returns of episodes to the logs."""
    env = VecMonitor(make_sb3_env(scenario, envs, seed=1_000_000))
    model = MaskablePPO(
        "MultiInputPolicy",
        env,
        n_steps=max(1, min(64, steps // envs)),
        batch_size=1024,
        n_epochs=4,
        gamma=0.99,
        device="cpu",
        seed=0,
    )
    model.learn(steps)
    print(f"loss {model.logger.name_to_value['train/loss']:.4f}")
    model.save(path)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, then compare."""
    given = options("sb3_vector", 40_000, arguments)
    path = given.out / "model.zip"
    train(given.scenario, given.steps, path)
    compare(f"scripts.interop.sb3_vector:Trained:{path}", given.scenario, given.seeds, given.out)


if __name__ == "__main__":
    main()
