"""Training environments of drawn scenarios (`aragog_env.specs.sampler`), in the place of those of one scenario.

They come in groups. A group has one cluster, with drawn speeds of its servers, and one workload; its rate and its arrival
process are drawn again for every episode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from aragog_env.compiled_scenario import CompiledScenario
from aragog_env.errors import SpecError
from aragog_env.simulation import Simulation
from aragog_env.specs.sampler import ScenarioSampler
from aragog_env.specs.scenario import Scenario
from aragog_env.vector_env import Array
from aragog_env.workload.tape import draw_tape

from .features import Rules
from .training_env import TrainingEnv

if TYPE_CHECKING:
    from .training_run import Settings

GROUPS: Final = 4
"""Each is a compiled call of its own, which costs time; each keeps its servers' speeds."""


class _Reward(NamedTuple):
    """What learners ask of an environment's reward."""

    reference_s: NDArray[np.float64]  # (E,) latency that an SLO is about


class SampledSimulation(Simulation):
    """A simulation whose traffic is drawn for every episode."""

    def __init__(self, compiled: CompiledScenario, environments: int, sampler: ScenarioSampler, which: int) -> None:
        super().__init__(compiled, environments)
        self.sampler, self.which = sampler, which

    def reset(self, e: int, seed: int) -> None:
        """Begin an episode in environment `e` with traffic that the sampler draws for `seed`."""
        scenario = self.sampler.with_traffic(self.compiled.scenario, self.which, seed)
        self.load(e, draw_tape(scenario, self.compiled.outcomes, seed))

    def __deepcopy__(self, memo: dict[int, Any]) -> SampledSimulation:
        """Copy as `Simulation` does; the sampler is shared."""
        twin = super().__deepcopy__(memo)
        assert isinstance(twin, SampledSimulation)
        twin.sampler, twin.which = self.sampler, self.which
        return twin


class SampledGroup(TrainingEnv):
    """Training environments of one drawn cluster and workload, with drawn traffic."""

    def __init__(self, num_envs: int, scenario: Scenario, rules: Rules, sampler: ScenarioSampler, which: int) -> None:
        super().__init__(num_envs, scenario, rules)
        self.simulation = SampledSimulation(self.compiled, num_envs, sampler, which)


class SampledTrainingEnv:
    """Groups of `TrainingEnv` that step as one; to learners it looks like one.

    Args:
        num_envs: how many environments, in all groups together.
        sampler: draws the scenarios.
        objective: gives a scenario the objective of training.
        rules: which actions are open, and which calls are shown.
        seed: of the groups' clusters and workloads.
        groups: how many; None: as many as the sampler has scenarios, at least `GROUPS`.

    Raises:
        SpecError: the scenarios have different numbers of servers or slots, so that they do not fit into one array.
    """

    def __init__(
        self,
        num_envs: int,
        sampler: ScenarioSampler,
        objective: Callable[[Scenario], Scenario],
        rules: Rules,
        seed: int,
        groups: int | None = None,
    ) -> None:
        count = min(num_envs, groups or max(GROUPS, len(sampler.scenarios)))
        self.num_envs, self.rules = num_envs, rules
        sizes = [len(part) for part in np.array_split(np.arange(num_envs), count)]
        self.groups: list[SampledGroup] = []
        for i, (size, which) in enumerate(zip(sizes, sampler.spread(count, seed), strict=True)):
            scenario = objective(sampler.machine(which, 1000 * seed + i))
            self.groups.append(SampledGroup(size, scenario, rules, sampler, which))
        shapes = {(env.slots, len(env.compiled.replicas)) for env in self.groups}
        if len(shapes) > 1:
            found = ", ".join(f"{slots} x {routes}" for slots, routes in sorted(shapes))
            raise SpecError(f"drawn scenarios must have equal numbers of slots and servers, got {found}")
        self.slots = self.groups[0].slots
        edges = np.cumsum([0, *sizes])
        self._places = [slice(a, b) for a, b in pairwise(edges)]
        self.reward = _Reward(np.concatenate([np.full(env.num_envs, env.reward.reference_s) for env in self.groups]))
        self._arrays = tuple(np.concatenate(parts) for parts in zip(*(env.arrays for env in self.groups), strict=True))

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Copies of the present observations, which the next step overwrites; see `TrainingEnv.arrays`."""
        for env, place in zip(self.groups, self._places, strict=True):
            for whole, part in zip(self._arrays, env.arrays, strict=True):
                whole[place] = part
        return self._arrays

    @property
    def begins(self) -> NDArray[np.bool_]:
        """(E,) whether the next step begins an episode and ignores its action."""
        return np.concatenate([env.begins for env in self.groups])

    @property
    def choices(self) -> NDArray[np.bool_]:
        """(E,) whether more than one action is open."""
        return np.concatenate([env.choices for env in self.groups])

    def begin(self, seed: int) -> None:
        """Begin all environments, each at another point of its episode."""
        for i, env in enumerate(self.groups):
            env.begin(1000 * seed + i)

    def step(self, actions: Array) -> tuple[None, Array, Array, Array, dict[str, Any]]:
        """Step all environments; see `TrainingEnv.step`. Observations are in `arrays`."""
        steps = [env.step(actions[place]) for env, place in zip(self.groups, self._places, strict=True)]
        rewards, terminated, truncated = (np.concatenate([step[k] for step in steps]) for k in (1, 2, 3))
        return None, rewards, terminated, truncated, _merged([step[4] for step in steps], self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [env.num_envs for env in self.groups]


def training_env(settings: Settings, scenario: Scenario, sampler: ScenarioSampler | None) -> TrainingEnv:
    """Return the environments that a run trains on: of its scenario, or of those that its sampler draws."""
    if sampler is None:
        return TrainingEnv(settings.envs, scenario, settings.rules)
    drawn = SampledTrainingEnv(settings.envs, sampler, settings.objective, settings.rules, settings.seed)
    return cast(TrainingEnv, drawn)  # it has all that learners use


def _merged(infos: Sequence[dict[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """Return the information of all groups as that of one environment."""
    keys = [key for key in infos[0] if "metrics" not in key]
    result: dict[str, Any] = {key: np.concatenate([info[key] for info in infos]) for key in keys}
    ended = [info for info in infos if "metrics" in info]
    if ended:
        names = dict.fromkeys(name for info in ended for name in info["metrics"])
        result["metrics"] = {
            name: np.concatenate([_metric(info, name, size) for info, size in zip(infos, sizes, strict=True)])
            for name in names
        }
        result["_metrics"] = np.concatenate(
            [info.get("_metrics", np.zeros(size, np.bool_)) for info, size in zip(infos, sizes, strict=True)]
        )
    return result


def _metric(info: dict[str, Any], name: str, size: int) -> Array:
    absent: Array = np.zeros(size, np.bool_ if name.startswith("_") else np.float64)
    return np.asarray(info.get("metrics", {}).get(name, absent))
