"""Many environments of one scenario, stepped in one compiled call over all threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from .action import allocate_steps, step_all
from .env import resolve_scenario, single_observation
from .observation import allocate_observations, observation_space, observe
from .reward import Reward
from .simulation import Simulation
from .specs.scenario import Scenario

Array = NDArray[Any]


class StageDispatchVectorEnv(VectorEnv[dict[str, Array], Array, Array]):
    """`num_envs` copies of `env.StageDispatchEnv`; see there for spaces, rewards and time.

    Sub-environment i under `reset(seed=s)` goes through exactly what a single environment under `reset(seed=s + i)` does.

    Args:
        num_envs: how many.
        scenario: name, file or `Scenario`; `overrides`: changes to it.
        autoreset_mode: `NEXT_STEP` (default), `SAME_STEP` (adds `final_obs` and `final_info`) or `DISABLED`.
        copy: return fresh arrays; False returns views that the next step overwrites.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}

    def __init__(
        self,
        num_envs: int = 1,
        scenario: str | Path | Scenario = "default",
        overrides: dict[str, Any] | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        render_mode: str | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.compiled = resolve_scenario(scenario, overrides)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.copy = copy
        slots, routes = self.compiled.scenario.observation.ready_slots, len(self.compiled.replicas)
        self.single_observation_space = observation_space(slots, routes)
        self.single_action_space = gym.spaces.Discrete(slots * routes + 1)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.reward = Reward(self.compiled)
        self.simulation = Simulation(self.compiled, num_envs)
        self._out = allocate_observations(num_envs, slots, routes)
        self._result = allocate_steps(num_envs)
        self._done = np.zeros(num_envs, np.bool_)
        self._skip = np.zeros(num_envs, np.bool_)
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Begin episodes in all environments, or in those of `options["reset_mask"]` (bool array)."""
        mask = np.ones(self.num_envs, np.bool_)
        if options and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"], np.bool_)
            if mask.shape != (self.num_envs,):
                raise ValueError(f"reset_mask has shape {mask.shape}, expected ({self.num_envs},)")
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
        for e in np.flatnonzero(mask):
            self._begin(int(e), seeds[e])
        return self._observations(), {"action_mask": self._out.mask.copy()}

    def step(self, actions: Array) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]:
        """Step all environments; under NEXT_STEP, those that ended begin anew and ignore their action."""
        compiled, sim, result = self.compiled, self.simulation, self._result
        next_step = self.autoreset_mode == AutoresetMode.NEXT_STEP
        self._skip[:] = self._done if next_step else False
        began = np.flatnonzero(self._skip)
        step_all(
            compiled.workflow,
            compiled.engine,
            sim.state,
            sim.progress,
            np.asarray(actions, np.int64),
            self._skip,
            self._out,
            result,
        )
        for e in began:
            self._begin(int(e), None)
            for array in result:
                array[e] = 0
        latency, accuracy = self.reward.parts(result.in_flight_ps, result.correct)
        terminated, truncated = result.terminated.copy(), result.truncated.copy()
        info = self._info(latency, accuracy)
        np.logical_or(terminated, truncated, out=self._done)
        ended = np.flatnonzero(self._done)
        if len(ended):
            self._add_metrics(info, ended)
            if self.autoreset_mode == AutoresetMode.SAME_STEP:
                self._restart(info, ended)
        return self._observations(), latency + accuracy, terminated, truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Return (num_envs, actions) booleans."""
        return self._out.mask.astype(np.bool_)

    def _begin(self, e: int, seed: int | None) -> None:
        """Begin an episode in environment `e`, as `StageDispatchEnv.reset` does."""
        if seed is not None:
            self._generators[e] = seeding.np_random(seed)[0]
        episode_seed = seed if seed is not None else int(self._generators[e].integers(2**31))
        sim = self.simulation
        sim.reset(e, episode_seed)
        observe(self.compiled.workflow, self.compiled.engine, sim.state, sim.progress, e, self._out)
        self._done[e] = False

    def _observations(self) -> dict[str, Array]:
        out = self._out
        arrays: dict[str, Array] = {
            "calls": out.calls,
            "routes": out.routes,
            "pairs": out.pairs,
            "globals": out.globals,
            "action_mask": out.mask,
        }
        return {key: value.copy() for key, value in arrays.items()} if self.copy else arrays

    def _info(self, latency: Array, accuracy: Array) -> dict[str, Any]:
        result = self._result
        everywhere = np.ones(self.num_envs, np.bool_)
        values: dict[str, Any] = {
            "action_mask": self._out.mask.copy(),
            "dt": result.elapsed_ps * 1e-12,
            "discount": self.reward.discount(result.elapsed_ps),
            "invalid_action": result.invalid.astype(np.bool_),
            "reward/latency": latency,
            "reward/accuracy": accuracy,
        }
        return values | {f"_{key}": everywhere for key in values}

    def _add_metrics(self, info: dict[str, Any], ended: NDArray[np.intp]) -> None:
        """Add summary metrics of the episodes that ended; `episode_log` has the rest."""
        mask = np.zeros(self.num_envs, np.bool_)
        mask[ended] = True
        metrics = {key: np.zeros(self.num_envs) for key in ("jct_mean_s", "accuracy", "completed", "duration_s")}
        warmup = self.compiled.scenario.horizon.warmup_requests
        for e in ended:
            requests = self.simulation.progress.request[e]
            counted = (requests["finish_ps"] >= 0) & (requests["rank"] >= warmup)
            served = requests[counted]
            metrics["completed"][e] = len(served)
            metrics["duration_s"][e] = self.simulation.progress.env["now_ps"][e] * 1e-12
            if len(served):
                metrics["jct_mean_s"][e] = (served["finish_ps"] - served["arrival_ps"]).mean() * 1e-12
                metrics["accuracy"][e] = served["correct"].mean()
        info["metrics"] = metrics | {f"_{key}": mask for key in list(metrics)}
        info["_metrics"] = mask

    def _restart(self, info: dict[str, Any], ended: NDArray[np.intp]) -> None:
        """SAME_STEP: keep the last observation and information, then begin anew."""
        final = np.full(self.num_envs, None, dtype=object)
        mask = np.zeros(self.num_envs, np.bool_)
        mask[ended] = True
        for e in ended:
            final[e] = single_observation(self._out, int(e))
        final_info = {key: value for key, value in info.items() if not key.startswith("_")}
        final_info |= {f"_{key}": mask for key in final_info}
        for e in ended:
            self._begin(int(e), None)
        info["action_mask"] = self._out.mask.copy()
        info |= {"final_obs": final, "_final_obs": mask, "final_info": final_info, "_final_info": mask}
