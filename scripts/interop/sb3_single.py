"""sb3-contrib's MaskablePPO on one environment, and what it learned as a policy of the harness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from sb3_contrib import MaskablePPO

from aragog_env.observation import Observation
from aragog_env.observation_policy import ObservationPolicy
from aragog_env.specs.scenario import Scenario
from scripts.interop.compare import compare, options


class Trained(ObservationPolicy):
    """A saved model by name: ``scripts.interop.sb3_single:Trained:PATH``."""

    def __init__(self, path: str) -> None:
        self.model = MaskablePPO.load(path, device="cpu")

    def choose(self, observation: Observation) -> int:
        """Return the likeliest action."""
        arrays: dict[str, Any] = {**observation}
        action, _ = self.model.predict(arrays, action_masks=arrays["action_mask"], deterministic=True)
        return int(action)


def train(scenario: Scenario, steps: int, path: Path) -> MaskablePPO:
    """Train and save a model; the environment has `action_masks`, which is all that MaskablePPO asks for."""
    env = gym.make("aragog_env:aragog/StageDispatch-v0", scenario=scenario)
    model = MaskablePPO(
        "MultiInputPolicy", env, n_steps=min(512, steps), batch_size=128, gamma=0.99, device="cpu", seed=0
    )
    model.learn(steps)
    print(f"loss {model.logger.name_to_value['train/loss']:.4f}")
    model.save(path)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, then compare."""
    given = options("sb3_single", 5_000, arguments)
    path = given.out / "model.zip"
    train(given.scenario, given.steps, path)
    compare(f"scripts.interop.sb3_single:Trained:{path}", given.scenario, given.seeds, given.out)


if __name__ == "__main__":
    main()
