"""A policy that decides on the observation of the Gymnasium environment: how a network of any library comes to the harness."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from .compiled_scenario import compile_scenario
from .encoding import ViewEncoder, to_action
from .observation import Observation
from .policy import Dispatch, Wait
from .specs.scenario import Scenario
from .view import DispatchView


class ObservationPolicy(ABC):
    """Encodes every view as the environment would show it and asks `choose` for an action.

    Subclasses say how to choose. One whose constructor takes a path is a policy by name, on every backend:
    ``module:Class:PATH``. An observation shows as many ready calls as the scenario says (`observation.ready_slots`), and all
    its routes: most networks run only on scenarios with the numbers that they were trained with.

    Attributes:
        rng: for choices; all randomness of an episode comes from its seed.
    """

    rng: np.random.Generator

    @abstractmethod
    def choose(self, observation: Observation) -> int:
        """Return an action of ``Discrete(K * R + 1)``; ``observation["action_mask"]`` says which are possible.

        Args:
            observation: as the environment's, not batched (shapes: `aragog_env.env.StageDispatchEnv`).
        """

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Forget the last episode."""
        self._encoder = ViewEncoder(compile_scenario(scenario))
        self.rng = np.random.default_rng(seed)

    def act(self, view: DispatchView) -> Dispatch | Wait:
        """Encode and choose; an action that is not possible is replaced as the environment does."""
        observation = self._encoder.encode(view)
        return to_action(observation, self.choose(observation))
