"""Which configurations answer a query as well as the largest one: known exactly by an oracle, or predicted by a router.

Aragog (section 3.1) finds this set once, when a request arrives. Everything after that (the scheduler, the per-input
baselines) chooses among its members. So all policies share this one interface, and differ in what they do with the set.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from aragog_env.outcomes import OutcomeTable
    from aragog_env.specs.scenario import Scenario
    from aragog_env.view import ClusterInfo

POINTS: Final = 100.0
"""Points of accuracy: 100 are all answers."""


@runtime_checkable
class ViableSets(Protocol):
    """The viable configurations of each query. C configurations; see `OutcomeTable` for their numbering."""

    name: str
    """How results name it: 'oracle' or 'router'."""

    def receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        """Take one table per workflow, and the episode's draws (`policy.NeedsOutcomes`): what an oracle reads.

        A router's training data come from the tables, never from the draws.
        """

    def reset(self, scenario: Scenario) -> None:
        """Begin a new episode."""

    def viable(self, info: ClusterInfo, workflow: int, query: int, budget_s: float = math.inf) -> NDArray[np.bool_]:
        """Return the viable set of a query, (C,), read-only; the largest configuration is always in it.

        A router stops after `budget_s` seconds of its own (modelled) time; what it has not decided by then is not viable.
        Cheap when asked again.
        """

    def losses(self, workflow: int, queries: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the expected accuracy loss of every configuration against the largest one, (n, C), in points.

        What sets are made of, for policies that weigh it against time instead (`baselines.features.Rules.point_s`). Below 0
        where a configuration is expected to do better.
        """

    def routing_s(self, workflow: int, query: int) -> float:
        """Return the seconds that the last `viable` of this query took on the clock of the cluster; 0 for an oracle."""


class OracleViableSets:
    """The true viable sets of an episode. A policy that uses it is an oracle and says so.

    It knows which answers will be right, as the paper's baselines do ("oracle accuracy", section 5.1): a configuration is
    viable when its answer is right in this episode, or the largest one's is wrong.
    """

    name = "oracle"

    def __init__(self) -> None:
        self._viable: list[NDArray[np.bool_]] = []  # per workflow (Q, C)

    def receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        """Label every configuration of every query."""
        draws = draws or tuple(np.full(table.queries, 0.5) for table in tables)
        self._viable = [table.match_largest(draw) for table, draw in zip(tables, draws, strict=True)]
        for sets in self._viable:
            sets.setflags(write=False)

    def reset(self, scenario: Scenario) -> None:
        """Nothing more to do.

        Raises:
            SpecError: no tables were handed over.
        """
        if not self._viable:
            raise SpecError("the oracle has no outcome tables; call receive_outcomes before reset")

    def viable(self, info: ClusterInfo, workflow: int, query: int, budget_s: float = math.inf) -> NDArray[np.bool_]:
        """Return the true set, (C,); an oracle takes no time, so the budget does not matter."""
        viable: NDArray[np.bool_] = self._viable[workflow][query]
        return viable

    def losses(self, workflow: int, queries: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return 100 points for what is not viable, 0 for what is."""
        return np.where(self._viable[workflow][queries], np.float32(0), np.float32(POINTS))

    def routing_s(self, workflow: int, query: int) -> float:
        """Return 0."""
        return 0.0


def make_viable_sets(name: str = "router") -> ViableSets:
    """Make the source of viable sets that a policy's `viable=` argument names.

    Args:
        name: 'oracle'; 'router' (shipped checkpoints, else trained once and kept in the user's cache folder); or the path
            of a checkpoint file or of a folder of them, as `aragog train-router` writes them.

    Raises:
        SpecError: no such source.
    """
    if name == "oracle":
        return OracleViableSets()
    from pathlib import Path

    if name == "router" or Path(name).exists():
        try:
            from .aragog.router import RouterViableSets
        except ModuleNotFoundError as error:
            raise SpecError(f"viable sets '{name}': no module named '{error.name}'") from error
        sets: ViableSets = RouterViableSets() if name == "router" else RouterViableSets(checkpoints=Path(name))
        return sets
    hint = did_you_mean(name, ("oracle", "router"))
    raise SpecError(f"viable sets must be 'oracle', 'router' or the path of a checkpoint, got '{name}'.{hint}")
