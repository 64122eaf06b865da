"""Where to draw the line: thresholds biased to precision, and what a set of configurations costs in accuracy.

A false positive costs accuracy, a false negative only freedom. So the threshold is the lowest one with which the sets lose
at most a stated accuracy against the largest configuration (`TrainSettings.most_loss`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.outcomes import OutcomeTable, configuration_digits

Floats = NDArray[np.float32]
NEVER: Final = 1e3
"""A threshold that no logit reaches: only the largest configuration is kept."""


@dataclass(frozen=True, eq=False)
class SetLoss:
    """Accuracy that sets of configurations lose against the largest one, in probability of a right answer.

    What a set loses depends on who picks from it. Thresholds go by `late_binding`, as the scheduler does it under load.
    """

    gap: NDArray[np.float64]  # (Q, C) accuracy of the largest minus that of the configuration
    cost: NDArray[np.float64]  # (C,) rank of configurations by cost
    models: int

    @classmethod
    def of(cls, table: OutcomeTable) -> SetLoss:
        """Return the loss under an outcome table, with the cost of `relative_cost`."""
        p = table.p_correct.astype(np.float64)
        return cls(p[:, -1:] - p, relative_cost(table), len(table.models))

    def rows(self, queries: NDArray[np.int64]) -> SetLoss:
        """Return the same for some of the queries."""
        return SetLoss(self.gap[queries], self.cost, self.models)

    def late_binding(self, sets: NDArray[np.bool_]) -> float:
        """Return the loss of choosing stage by stage, each time any model that keeps a member of `sets` (Q, C).

        Under load every engine has the next free slot about equally often.
        """
        value, alive = self.gap, sets
        while value.shape[1] > 1:
            # From the last stage to the first: C = M^N shrinks by a factor of M.
            split = (len(value), -1, self.models)
            value, alive = value.reshape(split), alive.reshape(split)
            options = alive.sum(axis=2)
            value, alive = (value * alive).sum(axis=2) / np.maximum(options, 1), options > 0
        return float(value.mean())

    def any_member(self, sets: NDArray[np.bool_]) -> float:
        """Return the loss of a member of `sets` (Q, C) picked at random, averaged over queries; sets are not empty."""
        return float(((self.gap * sets).sum(axis=1) / sets.sum(axis=1)).mean())

    def cheapest(self, sets: NDArray[np.bool_]) -> float:
        """Return the loss of the cheapest member of `sets` (Q, C), averaged over queries; sets are not empty."""
        chosen = np.where(sets, self.cost, np.inf).argmin(axis=1)
        return float(self.gap[np.arange(len(sets)), chosen].mean())

    def __call__(self, sets: NDArray[np.bool_]) -> float:
        """Return the loss that thresholds hold down."""
        return self.late_binding(sets)


def relative_cost(table: OutcomeTable) -> NDArray[np.float64]:
    """Return a static cost of every configuration, (C,): expected output tokens times the model's size.

    A table knows models by name and order only; sizes of a family about double from one to the next.
    """
    nodes = np.array(table.llm_nodes)
    size = 2.0 ** np.arange(len(table.models))
    per_call = table.expected_output_tokens[nodes].astype(np.float64) * size  # (n_llm, M)
    digits = configuration_digits(len(table.models), len(nodes))
    return np.asarray(per_call[np.arange(len(nodes)), digits].sum(axis=1))


def with_largest(sets: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the sets with the largest configuration in each."""
    sets = sets.copy()
    sets[:, -1] = True
    return sets


def choose_threshold(logits: Floats, loss: SetLoss, most: float, steps: int = 200) -> float:
    """Return the lowest threshold on logits (Q, C) from which on no higher one loses more than `most`.

    Candidates are quantiles of the logits. Going down from the top and stopping at the first excess is the cautious choice:
    further down the loss may happen to fall again.
    """
    candidates = np.unique(np.quantile(logits[:, :-1], np.linspace(0, 1, steps)))[::-1]
    chosen = NEVER
    for candidate in candidates:
        if loss(with_largest(logits >= candidate)) > most:
            break
        chosen = float(candidate)
    return chosen


def blind_sets(
    marginal: NDArray[np.float64], loss: Callable[[NDArray[np.bool_]], float], questions: int, most: float
) -> NDArray[np.bool_]:
    """Return the largest set that ignores the query and loses at most `most`, (C,).

    Configurations join by their marginal viability (C,), the most viable first: the baseline that a router must beat. It may
    go past sets that lose more, if a larger set does not. `loss` takes sets (questions, C).
    """
    best = np.zeros(len(marginal), np.bool_)
    best[-1] = True
    for level in np.unique(marginal)[::-1]:
        candidate = marginal >= level
        candidate[-1] = True
        if loss(np.broadcast_to(candidate, (questions, len(marginal)))) <= most:
            best = candidate
    return best
