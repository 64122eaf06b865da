"""Many environments of one scenario, stepped in one compiled call over all threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from .action import Handle, allocate_steps, begin_one, step_all
from .backends.sim import episode_log
from .compiled_scenario import compile_scenario
from .engine.state import EngineState
from .env import StageDispatchEnv, copy_sharing, final_metrics, resolve_scenario, single_observation, spaces
from .episode import EpisodeLog
from .observation import PairFeature, allocate_observations
from .reward import Reward
from .simulation import Simulation
from .specs.scenario import Scenario

Array = NDArray[Any]


class StageDispatchVectorEnv(VectorEnv[dict[str, Array], Array, Array]):
    """`num_envs` copies of `env.StageDispatchEnv`; see there for spaces, rewards and time.

    Sub-environment i under `reset(seed=s)` goes through exactly what a single environment under
    `reset(seed=s + i)` does.

    Args:
        num_envs: how many.
        scenario: name, file or `Scenario`; `overrides`: changes to it.
        autoreset_mode: `NEXT_STEP` (default), `SAME_STEP` (adds `final_obs` and `final_info`) or `DISABLED`.
        copy: return fresh arrays; False returns views that the next step overwrites.
        render_mode: `None`, `"ansi"` or `"rgb_array"`; `render()` returns one text or picture per environment.
        metrics: what `info["metrics"]` holds for episodes that end: `"summary"`, or `"full"` as in the single
            environment, which takes ten times as long.
    """

    metadata: dict[str, Any] = StageDispatchEnv.metadata | {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        scenario: str | Path | Scenario = "default",
        overrides: dict[str, Any] | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        render_mode: str | None = None,
        metrics: Literal["full", "summary"] = "summary",
    ) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.compiled = resolve_scenario(scenario, overrides)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.copy = copy
        if metrics not in ("full", "summary"):
            raise ValueError(f"metrics must be 'full' or 'summary', got {metrics!r}")
        self.full_metrics = metrics == "full"
        self._slots, routes = self.compiled.scenario.observation.ready_slots, len(self.compiled.replicas)
        self.single_observation_space, self.single_action_space = spaces(self.compiled)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.reward = Reward(self.compiled)
        self.simulation = Simulation(self.compiled, num_envs)
        self._out = allocate_observations(num_envs, self._slots, routes)
        self._result = allocate_steps(num_envs, *self.reward.objective)
        self._handle: tuple[EngineState, Handle] | None = None
        self._everywhere = np.ones(num_envs, np.bool_)
        self._done = np.zeros(num_envs, np.bool_)
        self._skip = np.zeros(num_envs, np.bool_)
        self._seeds = np.full(num_envs, -1)  # (E,) of the present episodes, -1 before the first reset
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
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
                raise ValueError(
                    f"reset_mask must be {self.num_envs} booleans, at least one of them true, "
                    f"got {mask.dtype} {mask.tolist()}"
                )
        if not mask.all() and np.any(self._seeds[~mask] < 0):
            raise gym.error.ResetNeeded("the first reset must begin all environments")
        seeds: list[int | None] = [None] * self.num_envs
        if isinstance(seed, int):
            seeds = [seed + i for i in range(self.num_envs)]
        elif seed is not None:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        for e in np.flatnonzero(mask):
            self._begin(int(e), seeds[e])
        values = {
            "action_mask": self._out.mask.copy(),
            "time_s": self._result.time_s.copy(),
            "seed": self._seeds.copy(),
        }
        return self._observations(), values | {f"_{key}": mask.copy() for key in values}

    def step(self, actions: Array) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]:
        """Step all environments; under NEXT_STEP, those that ended begin anew and ignore their action."""
        if self._seeds[0] < 0:
            raise gym.error.ResetNeeded("call reset before step")
        next_step = self.autoreset_mode == AutoresetMode.NEXT_STEP
        self._skip[:] = self._done if next_step else False
        was_done = self._done.copy()
        step_all(self._arrays(), np.asarray(actions, np.int64), self._skip)
        if self._skip.any():
            for e in np.flatnonzero(self._skip):
                self._begin(int(e), None)
        result = self._result
        reward, terminated, truncated = result.reward.copy(), result.terminated.copy(), result.truncated.copy()
        info = self._info()
        np.logical_or(terminated, truncated, out=self._done)
        # With autoreset disabled, an episode that is over stays over.
        ended = np.flatnonzero(self._done & ~was_done)
        if len(ended):
            self._add_metrics(info, ended)
            if self.autoreset_mode == AutoresetMode.SAME_STEP:
                self._restart(info, ended)
        return self._observations(), reward, terminated, truncated, info

    def _arrays(self) -> Handle:
        """Return all arrays as one object, made again where the simulation has replaced some by larger ones."""
        sim = self.simulation
        if self._handle is None or self._handle[0] is not sim.state:
            arrays = (self.compiled.workflow, self.compiled.engine, sim.state, sim.progress, self._out, self._result)
            self._handle = (sim.state, Handle(*arrays))
        return self._handle[1]

    def action_masks(self) -> NDArray[np.bool_]:
        """Return (num_envs, actions) booleans."""
        return self._out.mask.astype(np.bool_)

    def log(self, e: int) -> EpisodeLog:
        """Return every request and call of the present episode of environment `e`."""
        return episode_log(self.simulation, e)

    def render(self) -> Any:
        """Return one text (`ansi`) or one (H, W, 3) uint8 image (`rgb_array`) per environment."""
        from .frame import render_frame
        from .render import render_ansi

        if self.render_mode == "ansi":
            return tuple(render_ansi(self.simulation, e) for e in range(self.num_envs))
        if self.render_mode == "rgb_array":
            return tuple(render_frame(self.log(e), self.simulation, e) for e in range(self.num_envs))
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> StageDispatchVectorEnv:
        """Copy everything but the compiled scenario, which never changes."""
        return copy_sharing(self, self.compiled, memo)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the compiled scenario out of pickles: it is made again from the scenario."""
        return {**self.__dict__, "compiled": self.compiled.scenario, "_handle": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.compiled = compile_scenario(state["compiled"])

    def _begin(self, e: int, seed: int | None) -> None:
        """Begin an episode in environment `e`, as `StageDispatchEnv.reset` does."""
        if seed is not None:
            self._generators[e] = seeding.np_random(seed)[0]
        episode_seed = seed if seed is not None else int(self._generators[e].integers(2**31))
        self.simulation.reset(e, episode_seed)
        begin_one(self._arrays(), e)
        self._seeds[e] = episode_seed
        self._done[e] = False

    def _observations(self) -> dict[str, Array]:
        out = self._out
        arrays: dict[str, Array] = {
            "calls": out.calls,
            "routes": out.routes,
            "pairs": out.pairs.reshape(self.num_envs, -1, len(PairFeature)),
            "globals": out.globals,
            "action_mask": out.mask,
        }
        return {key: value.copy() for key, value in arrays.items()} if self.copy else arrays

    def _info(self) -> dict[str, Any]:
        result = self._result
        values: dict[str, Any] = {
            "action_mask": self._out.mask.copy(),
            "dt": result.elapsed_s.copy(),
            "discount": result.discount.copy(),
            "invalid_action": result.invalid.copy(),
            "reward/latency": result.latency.copy(),
            "reward/accuracy": result.accuracy.copy(),
            "overflow": result.overflow.copy(),
            "time_s": result.time_s.copy(),
        }
        for key in tuple(values):
            values[f"_{key}"] = self._everywhere
        return values

    def _add_metrics(self, info: dict[str, Any], ended: NDArray[np.intp]) -> None:
        """Add the metrics of the episodes that ended, as arrays with zeros elsewhere."""
        mask = np.zeros(self.num_envs, np.bool_)
        mask[ended] = True
        metrics: dict[str, Any] = {}
        for e in ended:
            if self.full_metrics:
                values = final_metrics(self.simulation, int(e))
            else:
                values = self._summary(int(e))
            for key, value in values.items():
                metrics.setdefault(key, np.zeros(self.num_envs))[e] = value
        info["metrics"] = metrics | {f"_{key}": mask for key in metrics}
        info["_metrics"] = mask

    def _summary(self, e: int) -> dict[str, float]:
        """Return the most important of `harness.metrics`, straight from the state."""
        requests = self.simulation.progress.request[e]
        served = requests[
            (requests["finish_ps"] >= 0) & (requests["rank"] >= self.compiled.scenario.horizon.warmup_requests)
        ]
        jct_ps = served["finish_ps"] - served["arrival_ps"]
        return {
            "completed": float(len(served)),
            "duration_s": float(self.simulation.progress.env["now_ps"][e]) * 1e-12,
            "jct_mean_s": float(jct_ps.mean()) * 1e-12 if len(served) else float("nan"),
            "accuracy": float(served["correct"].mean()) if len(served) else float("nan"),
        }

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
        info |= {"action_mask": self._out.mask.copy(), "time_s": self._result.time_s.copy()}
        info |= {"overflow": self._result.overflow.copy()}
        info |= {"final_obs": final, "_final_obs": mask, "final_info": final_info, "_final_info": mask}
