"""Per-workflow: one configuration for all requests, the cheapest that matches the largest one's accuracy.

The class of Cognify, LLMSelector and Murakkab in Aragog's evaluation (section 5).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError
from aragog_env.outcomes import OutcomeTable
from aragog_env.specs.scenario import Scenario
from aragog_env.view import ClusterInfo, DispatchView

from .costs import expected_prompt_tokens, static_cost
from .meta_queue import MetaQueuePolicy

_PROFILING_SEED = 0


class PerWorkflowPolicy(MetaQueuePolicy):
    """The configuration of least static cost whose mean accuracy over the data set is the largest configuration's.

    Args:
        viable: 'oracle' knows the exact mean accuracy over the very queries that are served. Anything else stands for offline
            profiling: each configuration is run once on half of the queries, and those answers are counted.
        tolerance: how far below the largest configuration the mean accuracy may be. The paper says "matches the top
            accuracy", so 0; with 0.02 it has the freedom that the other policies have on each query.
        same: stages that must use one model.
        hold: keep calls back while the server is at its saturation point.
    """

    def __init__(self, viable: str = "router", *, tolerance: float = 0.0, same: str = "", hold: bool = True) -> None:
        if not 0 <= tolerance < 1:
            raise SpecError(f"the tolerance of 'per_workflow' must be at least 0 and below 1, got {tolerance}")
        # Means need no viable sets; an oracle's are the ones that cost nothing to make.
        super().__init__("oracle", same=same, hold=hold)
        self.exact, self.tolerance = viable == "oracle", tolerance
        self.tables: tuple[OutcomeTable, ...] = ()

    def receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        """Keep the tables."""
        super().receive_outcomes(tables, draws)
        self.tables = tables

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Forget the last scenario."""
        super().reset(scenario, seed)
        if not self.tables:
            raise SpecError("'per_workflow' has no outcome tables; call receive_outcomes before reset")

    def prepare(self, info: ClusterInfo) -> None:
        """Choose the configuration of each workflow."""
        self.configuration = [self._cheapest(info, w) for w in range(len(info.workflows))]

    def admit(self, view: DispatchView, call: int, row: int) -> None:
        """Give every request of a workflow the same configuration."""
        workflow = int(view.calls[call]["workflow"])
        chosen = self.configurations[workflow].chosen(self.configuration[workflow])
        self.models[row, : len(chosen)] = chosen

    def _cheapest(self, info: ClusterInfo, workflow: int) -> int:
        graph, configurations = self.graphs[workflow], self.configurations[workflow]
        table = self.tables[workflow]
        accuracy = table.accuracy if self.exact else profiled_accuracy(table)
        # 1e-6: p_correct has single precision, so that equal configurations may differ in the last digit.
        matching = accuracy >= accuracy[-1] - self.tolerance - 1e-6
        usable = configurations.usable(matching)
        cost = static_cost(info, workflow, expected_prompt_tokens(info, workflow, graph))
        return int(np.where(usable, cost, np.inf).argmin())


def profiled_accuracy(table: OutcomeTable) -> NDArray[np.float64]:
    """Return the share of right answers of each configuration, (C,), one run each on a random half of the queries.

    One uniform number per query decides the answers of all its configurations, as in an episode.
    """
    rng = np.random.default_rng(_PROFILING_SEED)
    half = rng.permutation(table.queries)[: max(1, table.queries // 2)]
    right = rng.random((len(half), 1)) < table.p_correct[half]
    return np.asarray(right.mean(axis=0))
