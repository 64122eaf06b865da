"""The Gymnasium environment over the simulated cluster, one episode at a time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from .action import Handle, allocate_steps, begin_one, step_one
from .backends.sim import episode_log
from .compiled_scenario import CompiledScenario, compile_scenario
from .engine.state import EngineState
from .episode import EpisodeLog
from .observation import (
    Observation,
    ObservationArrays,
    PairFeature,
    allocate_observations,
    observation_space,
)
from .reward import Reward
from .simulation import Simulation
from .specs.load import load_scenario
from .specs.override import override
from .specs.scenario import Scenario

T = TypeVar("T")


def resolve_scenario(scenario: str | Path | Scenario, overrides: dict[str, Any] | None) -> CompiledScenario:
    """Load, change and compile a scenario."""
    loaded = scenario if isinstance(scenario, Scenario) else load_scenario(scenario)
    return compile_scenario(override(loaded, **overrides) if overrides else loaded)


class StageDispatchEnv(gym.Env[Observation, int]):
    """Dispatch the stages of agentic workflows to the replicas of a vLLM cluster.

    ## Description

    Requests arrive over time. Each runs through a workflow, a directed acyclic graph of LLM calls and
    tools. A call is ready when its parents are done. One step sends one ready call to one route (a replica
    serving one model) or waits. Between decisions the cluster is simulated iteration by iteration as vLLM
    V1 schedules it (`aragog_env.engine`), in virtual time. Small models are fast and less accurate, large
    ones slow and accurate; the choice at every stage decides the latency of the request, the load that
    others meet, and whether the answer is right.

    ## Action Space

    `Discrete(K * R + 1)`. Action `slot * R + route` sends the call in ready slot `slot` (0..K-1) to route
    `route` (0..R-1); the last action waits until the next event (an arrival or a completion). Slots hold
    the first K ready calls in order of request arrival and, inside a request, of depth to the leaf. After a
    dispatch the next step is at the same instant while calls are ready. `observation["action_mask"]` says
    which actions are valid; a masked action never raises: it counts as wait (or as the first valid action
    where waiting would never end) and sets `info["invalid_action"]`.

    ## Observation Space

    `Dict` of float32 arrays in [0, 1] and the mask, padded with zeros (columns: `aragog_env.observation`):

    | key | shape | content |
    | --- | --- | --- |
    | `calls` | (K, 8) | ready calls: age, depth, progress, prompt length, ... (`CallFeature`) |
    | `routes` | (R, 8) | replicas: running, waiting, KV use, model, ... (`RouteFeature`) |
    | `pairs` | (K * R, 4) | row a: call and route of action a: predicted latency, ... (`PairFeature`) |
    | `globals` | (3,) | requests in flight, ready calls, overflow (`GlobalFeature`) |
    | `action_mask` | (K * R + 1,) | 1 = valid |

    ## Starting State

    An empty cluster at the first arrival. All randomness (arrivals, queries, think times, the luck of
    grading) is drawn from the seed and does not depend on the actions. `reset(seed=s)` gives the traffic
    that the evaluation harness uses for seed s; later `reset()` calls draw new traffic.

    ## Rewards

    Minus the integral of requests in flight over the time that passed, divided by the scenario's SLO
    latency, plus `accuracy_weight` for each request completed with a right answer. Time is semi-Markov:
    `info["dt"]` seconds pass per step and `info["discount"] = exp(-beta * dt)`.

    ## Episode End

    Terminated when all requests of the horizon are served; truncated when `horizon.duration_s` is over.

    ## Information

    `action_mask`, `dt`, `discount`, `invalid_action`, `reward/latency`, `reward/accuracy`, `overflow`
    (ready calls beyond the K slots now), `time_s`; and on the last step `metrics`
    (`aragog_env.harness.metrics`). `reset` gives `action_mask`, `time_s` and `seed`, the seed of the
    episode's traffic.

    `copy.deepcopy(env)` and pickles continue from the present moment with the same bytes.

    ## Arguments

    * `scenario`: a preset's name (`aragog list scenarios`), a YAML file, or a `Scenario`.
    * `overrides`: changes to it, e.g. `{"rate_rps": 4.0, "requests": 200}` (`aragog_env.specs.override`).
    * `render_mode`: `None`, `"ansi"` (queue bars) or `"rgb_array"` (a Gantt chart of the replicas).

    ## References

    Dai et al., Aragog: Just-in-Time Model Routing for Scalable Serving of Agentic Workflows (arXiv
    2511.20975); vLLM V1.

    ## Version History

    * v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        scenario: str | Path | Scenario = "default",
        overrides: dict[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.compiled = resolve_scenario(scenario, overrides)
        self.render_mode = render_mode
        self.observation_space: gym.Space[Any]
        self.action_space: gym.Space[Any]
        self.observation_space, self.action_space = spaces(self.compiled)
        self.reward = Reward(self.compiled)
        self.simulation = Simulation(self.compiled)
        self._slots, routes = self.compiled.scenario.observation.ready_slots, len(self.compiled.replicas)
        self._out = allocate_observations(1, self._slots, routes)
        self._result = allocate_steps(1, *self.reward.objective)
        self._handle: tuple[EngineState, Handle] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; with a seed, the very episode that the harness evaluates under that seed."""
        super().reset(seed=seed)
        episode_seed = seed if seed is not None else int(self.np_random.integers(2**31))
        self.simulation.reset(0, episode_seed)
        begin_one(self._arrays(), 0)
        observation = self._observation()
        return observation, {
            "action_mask": observation["action_mask"].copy(),
            "time_s": self.time_s,
            "seed": episode_seed,
        }

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Carry out one decision and simulate to the next."""
        step_one(self._arrays(), 0, int(action))
        result = self._result
        observation = self._observation()
        terminated, truncated = result.terminated.item(), result.truncated.item()
        info: dict[str, Any] = {
            "action_mask": observation["action_mask"].copy(),
            "dt": result.elapsed_s.item(),
            "discount": result.discount.item(),
            "invalid_action": result.invalid.item(),
            "reward/latency": result.latency.item(),
            "reward/accuracy": result.accuracy.item(),
            "overflow": result.overflow.item(),
            "time_s": result.time_s.item(),
        }
        if terminated or truncated:
            info["metrics"] = final_metrics(self.simulation, 0)
        return observation, result.reward.item(), terminated, truncated, info

    def _arrays(self) -> Handle:
        """Return all arrays as one object, made again where the simulation has replaced some by larger ones."""
        sim = self.simulation
        if self._handle is None or self._handle[0] is not sim.state:
            arrays = (self.compiled.workflow, self.compiled.engine, sim.state, sim.progress, self._out, self._result)
            self._handle = (sim.state, Handle(*arrays))
        return self._handle[1]

    def _observation(self) -> Observation:
        return single_observation(self._out, 0)

    @property
    def time_s(self) -> float:
        """Virtual seconds since the episode began."""
        return float(self._result.time_s[0])

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the mask as booleans, under the name sb3-contrib's MaskablePPO looks for."""
        mask: NDArray[np.bool_] = self._out.mask[0].astype(np.bool_)
        return mask

    def log(self) -> EpisodeLog:
        """Return every request and call of the episode so far."""
        return episode_log(self.simulation, 0)

    def __deepcopy__(self, memo: dict[int, Any]) -> StageDispatchEnv:
        """Copy everything but the compiled scenario, which never changes."""
        return copy_sharing(self, self.compiled, memo)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the compiled scenario out of pickles: it is made again from the scenario."""
        return {**self.__dict__, "compiled": self.compiled.scenario, "_handle": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.compiled = compile_scenario(state["compiled"])

    def render(self) -> Any:
        """Return the present state as text (`ansi`) or as an (H, W, 3) uint8 image (`rgb_array`)."""
        from .frame import render_frame
        from .render import render_ansi

        if self.render_mode == "ansi":
            return render_ansi(self.simulation)
        if self.render_mode == "rgb_array":
            return render_frame(self.log(), self.simulation)
        return None


def spaces(compiled: CompiledScenario) -> tuple[gym.spaces.Dict, gym.spaces.Discrete]:
    """Return the observation and action space of one environment."""
    slots, routes = compiled.scenario.observation.ready_slots, len(compiled.replicas)
    space = observation_space(slots, routes)
    # One row per action: standard tools take a three-dimensional array for an image.
    space["pairs"] = gym.spaces.Box(0.0, 1.0, (slots * routes, len(PairFeature)), np.float32)
    return space, gym.spaces.Discrete(slots * routes + 1)


def single_observation(out: ObservationArrays, e: int) -> Observation:
    """Return a copy of the observation of environment `e`."""
    return {
        "calls": out.calls[e].copy(),
        "routes": out.routes[e].copy(),
        "pairs": out.pairs[e].copy().reshape(-1, len(PairFeature)),
        "globals": out.globals[e].copy(),
        "action_mask": out.mask[e].copy(),
    }


def final_metrics(simulation: Simulation, e: int) -> dict[str, float]:
    """Return the metrics of the episode that ended in environment `e`."""
    from .harness.metrics import episode_metrics

    log = episode_log(simulation, e)
    log.notes["overflow"] = int(simulation.progress.env["overflow"][e])
    # Whoever steps the environment decides: there are decisions to count, but none to time.
    return episode_metrics(log) | {"decisions": float(simulation.progress.env["decisions"][e])}


def copy_sharing(original: T, shared: object, memo: dict[int, Any]) -> T:
    """Return a deep copy of `original` that has the object `shared` in common with it."""
    memo[id(shared)] = shared
    twin = object.__new__(type(original))
    memo[id(original)] = twin
    state = {key: value for key, value in original.__dict__.items() if key != "_handle"}
    twin.__dict__.update({key: copy.deepcopy(value, memo) for key, value in state.items()}, _handle=None)
    return twin
