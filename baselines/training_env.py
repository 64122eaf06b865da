"""The vector environment as learners want it: viable masks, more features, what the critic may foresee, no copies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from aragog_env.jit import njit
from aragog_env.specs.scenario import Scenario
from aragog_env.vector_env import Array, StageDispatchVectorEnv

from .features import Rules, SlotSets
from .foresight import Foreseer
from .refiner import Shown, SlotRefiner, allocate_shown

# mypy: disable-error-code="no-untyped-def"

FIRST_SEED: Final = 1_000_000
"""Of training traffic; evaluations use small seeds."""


class TrainingEnv(StageDispatchVectorEnv):
    """`num_envs` environments whose observations have pairs of shape (E, K, R, P + X), see `features.PairExtra`.

    Under NEXT_STEP autoreset, as here, the observation after an episode's last step is its final one, whose value a learner
    needs for bootstrapping where the episode was cut; the step after that begins anew and is no decision (`begins`).
    Observations are views that the next step overwrites.

    A completed request is paid the probability that its answer is right, not whether it is: the mean is the same, and the luck
    of grading, which no decision explains, is gone.

    Of the ready calls that are looked at (`Rules.looked_at`) the scenario's `ready_slots` are shown. What the environment
    itself observes and returns is all that is looked at; actions, masks and `arrays` are about what is shown.

    Args:
        num_envs: how many.
        scenario: what they simulate.
        rules: which actions the masks leave open, and which calls are shown.
    """

    def __init__(self, num_envs: int, scenario: Scenario, rules: Rules) -> None:
        self.slots = scenario.observation.ready_slots
        looked_at = replace(scenario.observation, ready_slots=rules.looked_at(self.slots))
        super().__init__(
            num_envs, replace(scenario, observation=looked_at), autoreset_mode=AutoresetMode.NEXT_STEP, copy=False
        )
        self.rules = rules
        self._prepare()
        self.shown: Shown = allocate_shown(num_envs, self.slots, len(self.compiled.replicas))
        self._choices = self._sets.no_choices(num_envs, scenario.horizon.requests)
        self._foreseer = Foreseer(self.compiled, num_envs, self._sets.words, self.reward.reference_s)
        self._graded = np.zeros((num_envs, scenario.horizon.requests), np.bool_)

    def _prepare(self) -> None:
        self._sets = SlotSets(self.compiled, self.rules)
        if not self._sets.is_oracle:
            self._sets.receive_outcomes(self.compiled.outcomes)
        self._refiner = SlotRefiner(self._sets, self.slots)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The memory itself: calls (E, K, F), routes (E, R, G), pairs (E, K, R, P + X), globals, masks (E, A), foresight.

        The latter are `requests` and `servers` of `foresight.Foreseer`.
        """
        out, shown, foreseen = self._out, self.shown, self._foreseer
        return shown.calls, out.routes, shown.pairs, out.globals, shown.mask, foreseen.requests, foreseen.servers

    @property
    def begins(self) -> NDArray[np.bool_]:
        """(E,) whether the next step begins an episode and ignores its action."""
        return self._done

    @property
    def choices(self) -> NDArray[np.bool_]:
        """(E,) whether more than one action is open."""
        return np.asarray(self.shown.mask.sum(axis=1, dtype=np.int64) > 1)

    def begin(self, seed: int, policy_seed: int = 0) -> None:
        """Begin all environments, each at another point of its episode, by random valid actions.

        Else all episodes would be in the same phase, from an empty cluster to a full one, in every batch.
        """
        rng = np.random.default_rng([seed, policy_seed])
        self.reset(seed=FIRST_SEED + seed * 1000)
        decisions = self._episode_length(rng)
        restart = np.sort(rng.integers(0, max(1, decisions), self.num_envs))
        for now in range(decisions):
            due = restart == now
            if due.any():
                self.reset(options={"reset_mask": due})
            self.step(random_actions(self.shown.mask, rng))

    def _episode_length(self, rng: np.random.Generator) -> int:
        """Return the number of decisions until the first episode ends, under random actions."""
        decisions = 0
        while not self._done.any():
            self.step(random_actions(self.shown.mask, rng))
            decisions += 1
        return decisions

    def step(self, actions: Array) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]:
        """Step all environments; see `StageDispatchVectorEnv.step`. Actions are about the calls that are shown."""
        routes = len(self.compiled.replicas)
        slot, route = np.divmod(np.asarray(actions, np.int64), routes)
        sends = slot < self.slots
        call = self.shown.which[np.arange(self.num_envs), np.where(sends, slot, 0)]
        actions = np.where(sends & (call >= 0), call * routes + route, self._slots * routes)
        self._foreseer.note_actions(self.simulation, self._out.view_calls, actions, routes)
        observations, rewards, terminated, truncated, info = super().step(actions)
        if self.reward.accuracy_weight > 0:
            progress, table, request = (
                self.simulation.progress,
                self.compiled.workflow,
                self.simulation.progress.request,
            )
            expected = np.zeros(self.num_envs)
            _expect_right(
                progress.env["finished"], progress.env["arrived"], request["finish_ps"], request["workflow"], request["row"],
                request["configuration"], table.first_row, table.first_configuration, table.configurations, table.p_correct,
                self._graded, expected,
            )  # fmt: skip
            rewards += self.reward.accuracy_weight * expected - info["reward/accuracy"]
        return observations, rewards, terminated, truncated, info

    def _begin(self, e: int, seed: int | None) -> None:
        super()._begin(e, seed)
        self._graded[e] = False
        tape = self.simulation.tapes[e]
        assert tape is not None
        mine = self._sets.of_tape(tape)
        self._choices.bits[e], self._choices.loss_s[e] = mine
        self._foreseer.begin(e, self.simulation, self._sets, mine.bits)

    def _observations(self) -> dict[str, Array]:
        self._refiner.refine_all(self.simulation, self._out, self._choices, self.shown)
        self._foreseer.write(self.simulation, self._sets, self._choices.bits)
        return super()._observations()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made again from the scenario."""
        state = super().__getstate__()
        del state["_sets"], state["_refiner"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()


def random_actions(mask: NDArray[np.int8], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return one valid action per row of (E, A) masks, any dispatch rather than waiting."""
    weight = rng.random(mask.shape) * mask
    weight[:, -1] *= 1e-9
    return np.asarray(weight.argmax(axis=1))


@njit(cache=True, nogil=True)
def _expect_right(
    finished, arrived, finish_ps, workflow, row, configuration, first_row, first, configurations, p_correct, graded, out
):
    """Add up, per environment, the probabilities that answers given since the last step are right."""
    for e in range(out.shape[0]):
        if finished[e] == 0:
            continue
        for q in range(arrived[e]):
            if finish_ps[e, q] >= 0 and not graded[e, q]:
                graded[e, q] = True
                w = workflow[e, q]
                query = row[e, q] - first_row[w]
                out[e] += p_correct[first[w] + query * configurations[w] + configuration[e, q]]
