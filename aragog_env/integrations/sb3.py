"""Stable-Baselines3 on the native vector environment: one compiled call steps all, instead of a Python loop.

Stable-Baselines3 does not take Gymnasium vector environments. The adapter has `action_masks`, so that
`sb3_contrib.MaskablePPO("MultiInputPolicy", make_sb3_env("default", 64))` trains on valid actions.
`VecMonitor` around it adds episode returns. The constant `gamma` of the learners is an approximation: time is
semi-Markov, see `info["discount"]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from ..specs.scenario import Scenario
from ..vector_env import StageDispatchVectorEnv

_STEP_KEYS = ("dt", "discount", "invalid_action")


def make_sb3_env(
    scenario: str | Path | Scenario = "default", num_envs: int = 1, seed: int | None = None, **kwargs: Any
) -> SB3VecEnv:
    """Make `num_envs` environments for Stable-Baselines3; `kwargs` go to `StageDispatchVectorEnv`."""
    vector = StageDispatchVectorEnv(num_envs, scenario, autoreset_mode=AutoresetMode.SAME_STEP, **kwargs)
    env = SB3VecEnv(vector)
    if seed is not None:
        env.seed(seed)
    return env


class SB3VecEnv(VecEnv):
    """A `StageDispatchVectorEnv` as Stable-Baselines3's `VecEnv`.

    Args:
        env: with autoreset mode SAME_STEP, which is what Stable-Baselines3 expects.

    The information of a step has `dt`, `discount` and `invalid_action`; that of an episode's last step also
    `metrics`, `terminal_observation` and `TimeLimit.truncated`.
    """

    def __init__(self, env: StageDispatchVectorEnv) -> None:
        if env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"Stable-Baselines3 needs autoreset_mode SAME_STEP, got {env.autoreset_mode.name}")
        self.env = env
        self._actions: NDArray[np.int64] = np.zeros(env.num_envs, np.int64)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Begin new episodes, with the seeds of an earlier `seed` if there are any."""
        observations, info = self.env.reset(seed=list(self._seeds))
        self.reset_infos = [{"seed": int(seed)} for seed in info["seed"]]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = np.asarray(actions, np.int64)

    def step_wait(self) -> VecEnvStepReturn:
        """Step all environments."""
        observations, rewards, terminated, truncated, info = self.env.step(self._actions)
        columns = [info[key].tolist() for key in _STEP_KEYS]
        rows = zip(*columns, strict=True)
        infos: list[dict[str, Any]] = [dict(zip(_STEP_KEYS, row, strict=True)) for row in rows]
        done = terminated | truncated
        for e in np.flatnonzero(done):
            infos[e]["terminal_observation"] = info["final_obs"][e]
            infos[e]["TimeLimit.truncated"] = bool(truncated[e] and not terminated[e])
            metrics = info["metrics"]
            infos[e]["metrics"] = {key: float(metrics[key][e]) for key in metrics if not key.startswith("_")}
        return observations, rewards.astype(np.float32), done, infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Return (num_envs, actions) booleans: which actions are valid."""
        return self.env.action_masks()

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the attribute, which all environments share, once for each."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of all environments."""
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the vector environment and return each environment's row of the result."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result[e] if result is not None else None for e in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Say that no environment is wrapped."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> list[NDArray[np.uint8] | None]:
        """Return one picture per environment (`render_mode="rgb_array"`)."""
        return list(self.env.render() or [None] * self.num_envs)
