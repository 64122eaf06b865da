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
"""A threshold that no score reaches: only the largest configuration is kept."""


@dataclass(frozen=True, eq=False)
class SetLoss:
    """Accuracy that sets of configurations lose against the largest one, in probability of a right answer.

    What a set loses depends on who picks from it. Thresholds go by two ways of picking stage by stage, as the scheduler does:
    any model equally often, and the smallest one, since small engines have free slots first and gain most by filling them.
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

    def late_binding(self, sets: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the loss of choosing stage by stage, each time any model that keeps a member of `sets` (Q, C); (Q,).

        Under load every engine has the next free slot about equally often.
        """
        value, alive = self.gap, sets
        while value.shape[1] > 1:
            # From the last stage to the first: C = M^N shrinks by a factor of M.
            split = (len(value), -1, self.models)
            value, alive = value.reshape(split), alive.reshape(split)
            options = alive.sum(axis=2)
            value, alive = (value * alive).sum(axis=2) / np.maximum(options, 1), options > 0
        return np.asarray(value[:, 0])

    def smallest_first(self, sets: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the loss of choosing stage by stage, each time the smallest model that keeps a member of `sets` (Q, C); (Q,).

        Members are numbered as if models were digits, the first stage first: that is each set's first member.
        """
        return np.asarray(self.gap[np.arange(len(sets)), sets.argmax(axis=1)])

    def any_member(self, sets: NDArray[np.bool_]) -> float:
        """Return the loss of a member of `sets` (Q, C) picked at random, averaged over queries; sets are not empty."""
        return float(((self.gap * sets).sum(axis=1) / sets.sum(axis=1)).mean())

    def cheapest(self, sets: NDArray[np.bool_]) -> float:
        """Return the loss of the cheapest member of `sets` (Q, C), averaged over queries; sets are not empty."""
        chosen = np.where(sets, self.cost, np.inf).argmin(axis=1)
        return float(self.gap[np.arange(len(sets)), chosen].mean())

    def __call__(self, sets: NDArray[np.bool_]) -> float:
        """Return the loss of `sets` (Q, C): that of the worse way of picking."""
        return float(max(self.late_binding(sets).mean(), self.smallest_first(sets).mean()))

    def upper(self, sets: NDArray[np.bool_]) -> float:
        """Return the loss plus one standard error over questions (Breiman's rule): what thresholds hold down.

        They are chosen on these questions for others. With 164 of them the error is as large as the loss.
        """
        ways = (self.late_binding(sets), self.smallest_first(sets))
        return float(max(way.mean() + way.std() / np.sqrt(len(way)) for way in ways))


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


def choose_threshold(scores: Floats, loss: SetLoss, most: float, steps: int = 200) -> float:
    """Return the lowest threshold on scores (Q, C) from which on no higher one's `SetLoss.upper` is above `most`.

    Candidates are quantiles of the scores. Going down from the top and stopping at the first excess is the cautious choice:
    further down the loss may happen to fall again.
    """
    candidates = np.unique(np.quantile(scores[:, :-1], np.linspace(0, 1, steps)))[::-1]
    chosen = NEVER
    for candidate in candidates:
        if loss.upper(with_largest(scores >= candidate)) > most:
            break
        chosen = float(candidate)
    return chosen


def blind_sets(
    gap: NDArray[np.float64], fold_of: NDArray[np.int16], loss: Callable[[NDArray[np.bool_]], float], most: float
) -> NDArray[np.bool_]:
    """Return the largest sets (Q, C) that do not depend on the query and lose at most `most`: what a router must beat.

    Configurations join by their mean accuracy, the best first, as far as the other folds' questions tell it: like a router's
    thresholds it is learned elsewhere. How far to go is chosen with hindsight, to compare at equal loss. It may go past sets
    that lose more, if larger ones do not.

    Args:
        gap: (Q, C) accuracy lost by configurations, see `SetLoss`.
        fold_of: (Q,) fold of each question.
        loss: of sets (Q, C).
        most: loss allowed.
    """
    mean = np.stack([gap[fold_of != k].mean(axis=0) for k in range(int(fold_of.max()) + 1)])[fold_of]
    best = with_largest(np.zeros(gap.shape, np.bool_))
    for level in np.unique(np.quantile(mean[:, :-1], np.linspace(0, 1, 200))):
        candidate = with_largest(mean <= level)
        if loss(candidate) <= most:
            best = candidate
    return best
