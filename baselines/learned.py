"""Trained networks as policies by name: ``ppo:PATH``, ``dqn:PATH`` and ``imitation:PATH``, over any backend, without torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.compiled_scenario import compile_scenario
from aragog_env.encoding import ViewEncoder, to_action
from aragog_env.errors import SpecError, did_you_mean
from aragog_env.observation import Observation
from aragog_env.outcomes import OutcomeTable
from aragog_env.policy import Dispatch, Wait
from aragog_env.specs.scenario import Scenario
from aragog_env.view import DispatchView

from .decider import Decider
from .features import NONE, PAIR_WIDTH, Rules, SlotRefiner, SlotSets
from .model_file import Kind, ModelFile

MODES: Final = ("greedy", "sample")


class SlotEncoder:
    """A view as the network's inputs, with the mask narrowed to viable sets as in `training_env.TrainingEnv`.

    Args:
        scenario: what is scheduled.
        rules: which actions are open.
        ready_slots: how many ready calls are shown.
    """

    def __init__(self, scenario: Scenario, rules: Rules, ready_slots: int) -> None:
        observation = replace(scenario.observation, ready_slots=ready_slots)
        self.compiled = compile_scenario(replace(scenario, observation=observation))
        self.sets = SlotSets(self.compiled, rules)
        self._refiner = SlotRefiner(self.sets)
        self._shape = (ready_slots, len(self.compiled.replicas))
        self._bits: dict[tuple[int, int], NDArray[np.uint64]] = {}
        self.begin()

    def receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        """Hand the outcome tables to the source of viable sets; an oracle's differ from episode to episode."""
        self.sets.receive_outcomes(tables, draws)
        if self.sets.is_oracle:
            self._bits.clear()

    def begin(self) -> None:
        """Begin an episode."""
        self._encoder = ViewEncoder(self.compiled)

    def encode(self, view: DispatchView) -> tuple[Observation, NDArray[np.float32]]:
        """Return the observation, its mask narrowed, and the pair features (K, R, P + X)."""
        slots, routes = self._shape
        observation = self._encoder.encode(view)
        calls = view.calls[:slots]
        bits = np.empty((len(calls), self.sets.words), np.uint64)
        for i, key in enumerate(zip(calls["workflow"].tolist(), calls["query"].tolist(), strict=True)):
            found = self._bits.get(key)
            if found is None:
                found = self._bits[key] = self.sets.bits(key[0], np.array([key[1]]))[0]
            bits[i] = found
        pairs = np.empty((slots, routes, PAIR_WIDTH), np.float32)
        source = observation["pairs"].reshape(slots, routes, -1)
        self._refiner.refine_view(view, bits, source, observation["action_mask"], pairs)
        return observation, pairs


def likeliest_action(logits: NDArray[np.float32]) -> int:
    """Return what `network.likeliest` does, for one row of logits (A,)."""
    dispatch = logits[:-1]
    most = dispatch.max()
    if logits[-1] > most + np.log(np.exp(dispatch - most).sum()):
        return len(dispatch)
    return int(dispatch.argmax())


class LearnedPolicy:
    """Does what a trained network scores highest.

    Args:
        model: the file, or the folder of a training run.
        mode: `greedy`, or `sample` to draw actions as in training.
        viable: source of viable sets; empty: as in training.

    Raises:
        SpecError: no such model, or one of another kind or schema.
    """

    kind: Kind | None = None

    def __init__(self, model: str = "", mode: str = "greedy", viable: str = "") -> None:
        name = self.kind or "learned"
        if not isinstance(model, str) or not model:
            raise SpecError(f"policy '{name}' needs a trained model: {name}:PATH")
        if mode not in MODES:
            raise SpecError(f"policy '{name}': unknown mode '{mode}'.{did_you_mean(str(mode), MODES)}")
        self.model = ModelFile.load(model, self.kind)
        self.decide = Decider(self.model.weights)
        try:
            rules = Rules(**self.model.rules)
        except TypeError as error:
            raise SpecError("this model has other rules than this version knows", where=model) from error
        self.mode, self.rules = mode, replace(rules, viable=viable or rules.viable)
        self._scenario: Scenario | None = None
        self._outcomes: tuple[tuple[OutcomeTable, ...], tuple[NDArray[np.float64], ...]] | None = None
        if self.rules.viable != NONE:
            # What makes it a `policy.NeedsOutcomes`, which one that chooses freely is not.
            self.receive_outcomes = self._receive_outcomes

    def _receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        self._outcomes = (tables, draws)

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Forget the last episode; `seed` decides what is drawn in the mode `sample`."""
        if scenario != self._scenario:
            self._scenario = scenario
            self._encoder = SlotEncoder(scenario, self.rules, self.model.ready_slots)
        if self._outcomes is not None:
            self._encoder.receive_outcomes(*self._outcomes)
        self._encoder.begin()
        self._rng = np.random.default_rng(seed)

    def act(self, view: DispatchView) -> Dispatch | Wait:
        """Encode, score, choose."""
        observation, pairs = self._encoder.encode(view)
        mask = observation["action_mask"]
        logits = self.decide(observation["calls"], observation["routes"], pairs, observation["globals"], mask[-1] != 0)
        if self.mode == "greedy":
            # Values of actions are compared one by one, probabilities of waiting and dispatching first.
            best = int(logits.argmax()) if self.model.kind == "dqn" else likeliest_action(logits)
            return to_action(observation, best)
        race = logits + self._rng.gumbel(size=len(logits))
        return to_action(observation, int(race.argmax()))


class PPOPolicy(LearnedPolicy):
    """A model of `baselines.ppo`."""

    kind = "ppo"


class DQNPolicy(LearnedPolicy):
    """A model of `baselines.dqn`."""

    kind = "dqn"


class ImitationPolicy(LearnedPolicy):
    """A model of `baselines.imitation`."""

    kind = "imitation"
