"""The vector environment as learners want it: viable masks, more features, what the critic may foresee, no copies."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from aragog_env.jit import njit
from aragog_env.specs.scenario import Scenario
from aragog_env.vector_env import Array, StageDispatchVectorEnv

from .features import NONE, PAIR_WIDTH, SlotRefiner, SlotSets

# mypy: disable-error-code="no-untyped-def"

FIRST_SEED: Final = 1_000_000
"""Of training traffic; evaluations use small seeds."""
WINDOWS: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Of foreseen arrivals, in latencies of the SLO."""


class Foresight(IntEnum):
    """What the critic is told beside the observation, and no policy ever: training knows the traffic to come.

    How long requests wait depends on arrivals more than on any one decision. A critic that knows them takes this noise out
    of the advantages and biases nothing, since arrivals do not depend on actions (arXiv 1807.02264).
    """

    LEFT = 0  # requests still to arrive, per 64
    IN_FLIGHT = 1  # requests, per 64
    READY = 2  # ready calls, per 64
    STAGES = 3  # stages that requests in flight still have to go through, per 256
    TOKENS = 4  # tokens that the calls in the servers will have written, per 16384
    ARRIVALS = 5  # and the following: arrivals within each of `WINDOWS`, per 16


FORESIGHT_WIDTH: Final = Foresight.ARRIVALS + len(WINDOWS)


class TrainingEnv(StageDispatchVectorEnv):
    """`num_envs` environments whose observations have pairs of shape (E, K, R, P + X), see `features.PairExtra`.

    Under NEXT_STEP autoreset, as here, the observation after an episode's last step is its final one, whose value a learner
    needs for bootstrapping where the episode was cut; the step after that begins anew and is no decision (`begins`).
    Observations are views that the next step overwrites.

    A completed request is paid the probability that its answer is right, not whether it is: the mean is the same, and the luck
    of grading, which no decision explains, is gone.

    Args:
        num_envs: how many.
        scenario: what they simulate.
        viable: source of viable sets, or `none`; masks allow only what keeps a request viable.
    """

    def __init__(self, num_envs: int, scenario: Scenario, viable: str = NONE) -> None:
        super().__init__(num_envs, scenario, autoreset_mode=AutoresetMode.NEXT_STEP, copy=False)
        self.viable = viable
        self._prepare()
        slots, routes = self._slots, len(self.compiled.replicas)
        self.pairs = np.zeros((num_envs, slots, routes, PAIR_WIDTH), np.float32)
        self._bits = np.zeros((num_envs, scenario.horizon.requests, self._sets.words), np.uint64)
        self.foresight = np.zeros((num_envs, FORESIGHT_WIDTH), np.float32)
        self._graded = np.zeros((num_envs, scenario.horizon.requests), np.bool_)
        self._windows_ps = np.round(np.array(WINDOWS) * self.reward.reference_s * 1e12).astype(np.int64)

    def _prepare(self) -> None:
        self._sets = SlotSets(self.compiled, self.viable)
        if not self._sets.is_oracle:
            self._sets.receive_outcomes(self.compiled.outcomes)
        self._refiner = SlotRefiner(self._sets)

    @property
    def arrays(self) -> tuple[Array, Array, Array, Array, Array, Array]:
        """Calls (E, K, F), routes (E, R, G), pairs (E, K, R, P + X), globals, masks (E, A), foresight: the memory itself."""
        out = self._out
        return out.calls, out.routes, self.pairs, out.globals, out.mask, self.foresight

    @property
    def begins(self) -> NDArray[np.bool_]:
        """(E,) whether the next step begins an episode and ignores its action."""
        return self._done

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
            self.step(random_actions(self._out.mask, rng))

    def _episode_length(self, rng: np.random.Generator) -> int:
        """Return the number of decisions until the first episode ends, under random actions."""
        decisions = 0
        while not self._done.any():
            self.step(random_actions(self._out.mask, rng))
            decisions += 1
        return decisions

    def step(self, actions: Array) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]:
        """Step all environments; see `StageDispatchVectorEnv.step`."""
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
        self._bits[e] = self._sets.of_tape(tape)

    def _observations(self) -> dict[str, Array]:
        progress = self.simulation.progress
        self._refiner.refine_all(self.simulation, self._out, self._bits, self.pairs)
        env, request, call = progress.env, progress.request, self.simulation.state.call
        _foresee(
            env["now_ps"], env["arrived"], env["ready"], request["arrival_ps"], request["finish_ps"], request["done"],
            request["workflow"], progress.by_rank, self.compiled.workflow.nodes, call["model"], call["output"], self._windows_ps, self.foresight,
        )  # fmt: skip
        return {**super()._observations(), "pairs": self.pairs}

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
def _foresee(
    now_ps, arrived, ready, arrival_ps, finish_ps, done, workflow, by_rank, nodes, model, output, windows_ps, out
):
    """Write `Foresight` of every environment. In a closed loop no arrival is known before it happens."""
    requests = arrival_ps.shape[1]
    width = model.shape[1] // requests
    for e in range(out.shape[0]):
        flying, stages, tokens = 0, 0, 0
        for rank in range(arrived[e]):
            q = by_rank[e, rank]
            if finish_ps[e, q] >= 0:
                continue
            flying += 1
            for node in range(nodes[workflow[e, q]]):
                if done[e, q] >> node & 1 == 0:
                    stages += 1
                    if model[e, q * width + node] >= 0:
                        tokens += output[e, q * width + node]
        out[e, 0] = (requests - arrived[e]) / 64.0
        out[e, 1] = flying / 64.0
        out[e, 2] = ready[e] / 64.0
        out[e, 3] = stages / 256.0
        out[e, 4] = tokens / 16384.0
        q = arrived[e]
        for k in range(windows_ps.shape[0]):
            while q < requests and 0 <= arrival_ps[e, q] <= now_ps[e] + windows_ps[k]:
                q += 1
            out[e, 5 + k] = (q - arrived[e]) / 16.0


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
