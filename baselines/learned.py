"""Trained networks as policies by name, over any backend, without torch.

``ppo:PATH``, ``dqn:PATH`` and ``imitation:PATH``; ``ppo`` and ``imitation`` alone take the model that is shipped for the
workflow.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aragog_env.compiled_scenario import compile_scenario
from aragog_env.encoding import ViewEncoder
from aragog_env.errors import SpecError, did_you_mean
from aragog_env.outcomes import OutcomeTable
from aragog_env.policy import WAIT, Dispatch, Wait
from aragog_env.specs.load import scenario_workflows
from aragog_env.specs.scenario import Scenario
from aragog_env.view import DispatchView

from .decider import Decider
from .features import NONE, Choices, Rules, SlotSets
from .model_file import Kind, ModelFile
from .refiner import SlotRefiner, allocate_shown

MODES: Final = ("greedy", "sample")
SHIPPED: Final = Path(__file__).resolve().parent / "checkpoints"
"""Trained models that are part of this project, made by `python -m scripts.train_baselines`."""
SHIPPED_KINDS: Final = ("ppo", "imitation")


class Seen(NamedTuple):
    """One decision as the network's inputs. K slots, R routes."""

    calls: NDArray[np.float32]  # (K, F)
    routes: NDArray[np.float32]  # (R, G)
    pairs: NDArray[np.float32]  # (K, R, P + X)
    globals: NDArray[np.float32]  # (L,)
    mask: NDArray[np.int8]  # (K * R + 1,)
    chosen: NDArray[np.int64]  # (at most K,) which of the view's calls are shown

    def action(self, number: int) -> Dispatch | Wait:
        """Return what an action number means: ``slot * R + route``, the last one waits."""
        slot, route = divmod(number, len(self.routes))
        return WAIT if slot >= len(self.calls) else Dispatch(int(self.chosen[slot]), route)

    def number(self, action: Dispatch | Wait) -> int:
        """Return the number of an action, -1 where its call is not shown."""
        if isinstance(action, Wait):
            return len(self.mask) - 1
        slot = np.flatnonzero(self.chosen == action.call)
        return int(slot[0]) * len(self.routes) + action.route if len(slot) else -1


class SlotEncoder:
    """A view as the network's inputs, with calls chosen and masks narrowed as in `training_env.TrainingEnv`.

    Args:
        scenario: what is scheduled.
        rules: which actions are open.
        ready_slots: how many ready calls are shown.
    """

    def __init__(self, scenario: Scenario, rules: Rules, ready_slots: int) -> None:
        observation = replace(scenario.observation, ready_slots=rules.looked_at(ready_slots))
        self.compiled = compile_scenario(replace(scenario, observation=observation))
        self.sets = SlotSets(self.compiled, rules)
        self.slots = ready_slots
        self._looked_at = observation.ready_slots
        self._refiner = SlotRefiner(self.sets, ready_slots)
        self._shown = allocate_shown(1, ready_slots, len(self.compiled.replicas))
        self._choices: dict[tuple[int, int], Choices] = {}
        self.begin()

    def receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        """Hand the outcome tables to the source of viable sets; an oracle's differ from episode to episode."""
        self.sets.receive_outcomes(tables, draws)
        if self.sets.is_oracle:
            self._choices.clear()

    def begin(self) -> None:
        """Begin an episode."""
        self._encoder = ViewEncoder(self.compiled)

    def blocked(self, view: DispatchView) -> bool:
        """Return whether no server takes calls, whatever they are: nothing but waiting is left."""
        routes = view.routes
        free = (routes["up"] > 0) & (routes["running"] + routes["waiting"] < self.sets.tables.most)
        return not free.any()

    def encode(self, view: DispatchView) -> Seen:
        """Return what the network sees of a decision."""
        observation = self._encoder.encode(view)
        calls = view.calls[: self._looked_at]
        choices = self.sets.no_choices(len(calls))
        for i, key in enumerate(zip(calls["workflow"].tolist(), calls["query"].tolist(), strict=True)):
            found = self._choices.get(key)
            if found is None:
                found = self._choices[key] = self.sets.choices(key[0], np.array([key[1]]))
            choices.bits[i], choices.loss_s[i] = found.bits[0], found.loss_s[0]
        shown = self._shown
        chosen = self._refiner.refine_view(view, choices, observation, shown)
        parts = (shown.calls[0].copy(), observation["routes"], shown.pairs[0].copy(), observation["globals"])
        return Seen(*parts, shown.mask[0].copy(), chosen)


def model_for(scenario: Scenario, folder: Path, kind: Kind) -> Path:
    """Return ``KIND-WORKFLOW.safetensors`` in a folder of models; several workflows are joined by ``+``.

    Raises:
        SpecError: there is none for the scenario's workflows.
    """
    name = "+".join(sorted(workflow.name for workflow in scenario_workflows(scenario)))
    path = folder / f"{kind}-{name}.safetensors"
    if not path.is_file():
        known = sorted(file.stem.partition("-")[2] for file in folder.glob(f"{kind}-*.safetensors"))
        raise SpecError(
            f"there is no model of '{kind}' for '{name}', only for {', '.join(known) or 'nothing'}; "
            f"train one and name it: {kind}:PATH",
            where=str(folder),
        )
    return path


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
        model: the file; the folder of a training run; or a folder of models, of which the one for the scenario's workflows is
            taken (`model_for`); empty: the folder of those that are shipped.
        mode: `greedy`, or `sample` to draw actions as in training.
        viable: source of viable sets; empty: as in training, but Aragog's router for a model out of a folder of models, which
            are shared by all sources.

    Raises:
        SpecError: no such model, or one of another kind or schema.
    """

    kind: Kind | None = None

    def __init__(self, model: str = "", mode: str = "greedy", viable: str = "") -> None:
        name = self.kind or "learned"
        if not isinstance(model, str) or (not model and self.kind not in SHIPPED_KINDS):
            raise SpecError(f"policy '{name}' needs a trained model: {name}:PATH")
        if mode not in MODES:
            raise SpecError(f"policy '{name}': unknown mode '{mode}'.{did_you_mean(str(mode), MODES)}")
        self.mode = mode
        self._scenario: Scenario | None = None
        self._outcomes: tuple[tuple[OutcomeTable, ...], tuple[NDArray[np.float64], ...]] | None = None
        folder = Path(model) if model else SHIPPED
        self._folder = folder if any(folder.glob(f"{self.kind}-*.safetensors")) or not model else None
        self._viable = viable or ("" if self._folder is None else "router")
        if self._folder is None:
            self._take(model)
        if self._folder is not None or self.rules.viable != NONE:
            # What makes it a `policy.NeedsOutcomes`, which one that chooses freely is not.
            self.receive_outcomes = self._receive_outcomes

    def _take(self, path: str | Path) -> None:
        """Load a model."""
        self.model = ModelFile.load(path, self.kind)
        self.decide = Decider(self.model.weights)
        try:
            rules = Rules(**self.model.rules)
        except TypeError as error:
            raise SpecError("this model has other rules than this version knows", where=str(path)) from error
        self.rules = replace(rules, viable=self._viable or rules.viable)

    def _receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        self._outcomes = (tables, draws)

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Forget the last episode; `seed` decides what is drawn in the mode `sample`.

        Raises:
            SpecError: no model was named, and none is shipped for the scenario's workflows.
        """
        if scenario != self._scenario:
            if self._folder is not None:
                self._take(model_for(scenario, self._folder, self.kind or "ppo"))
            self._scenario = scenario
            self._encoder = SlotEncoder(scenario, self.rules, self.model.ready_slots)
        if self._outcomes is not None:
            self._encoder.receive_outcomes(*self._outcomes)
        self._encoder.begin()
        self._rng = np.random.default_rng(seed)

    def act(self, view: DispatchView) -> Dispatch | Wait:
        """Encode, score, choose."""
        if self._encoder.blocked(view):
            return WAIT
        seen = self._encoder.encode(view)
        logits = self.decide(*seen[:4], seen.mask[-1] != 0)
        if self.mode == "greedy":
            # Values of actions are compared one by one, probabilities of waiting and dispatching first.
            return seen.action(int(logits.argmax()) if self.model.kind == "dqn" else likeliest_action(logits))
        race = logits + self._rng.gumbel(size=len(logits))
        return seen.action(int(race.argmax()))


class PPOPolicy(LearnedPolicy):
    """A model of `baselines.ppo`."""

    kind = "ppo"


class DQNPolicy(LearnedPolicy):
    """A model of `baselines.dqn`."""

    kind = "dqn"


class ImitationPolicy(LearnedPolicy):
    """A model of `baselines.imitation`."""

    kind = "imitation"
