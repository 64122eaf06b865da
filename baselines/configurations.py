"""The configurations of one workflow as arrays, for rules that work on sets of them (bool arrays over C).

Node order, model order and configuration numbers are those of `OutcomeTable`: a mixed-radix number with one digit per LLM
node, the first node most significant.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aragog_env.outcomes import configuration_digits
from aragog_env.specs.graph import WorkflowGraph


class Configurations:
    """All M ** n_llm configurations of a workflow with N nodes.

    Args:
        graph: the workflow.
        models: number of models, M.
        feasible: (C,) configurations that candidates and constraints allow (`policies.aragog.narrowing.Space`).
        fallback: the largest of them.
    """

    def __init__(self, graph: WorkflowGraph, models: int, feasible: NDArray[np.bool_], fallback: int) -> None:
        llm = np.flatnonzero(graph.llm_slot >= 0)
        chosen = configuration_digits(models, graph.n_llm)
        self.models, self.feasible, self.fallback = models, feasible, fallback
        self.digits: NDArray[np.int64] = np.full(
            (len(chosen), len(graph.nodes)), -1
        )  # (C, N) model of a node, -1 for tools
        self.digits[:, llm] = chosen
        self.member = self.digits.T[:, None, :] == np.arange(models)[:, None]  # (N, M, C)

    def usable(self, viable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return (C,) the feasible viable configurations; the largest feasible one where there are none."""
        usable: NDArray[np.bool_] = viable & self.feasible
        if not usable.any():
            usable[self.fallback] = True
        return usable

    def consistent(self, served_by: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return (C,) the configurations in which every node served so far has the model that served it.

        A skipped stage was served by none (-1) and narrows nothing.
        """
        result = np.ones(len(self.digits), bool)
        for node, model in enumerate(served_by[: self.digits.shape[1]].tolist()):
            if model >= 0:
                result &= self.member[node, model]
        return result

    def options(self, configurations: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return (N,) the models that each node has in some configuration of the set, as bits; 0 for tools."""
        found = (self.member & configurations).any(axis=2)
        return np.asarray(found @ (1 << np.arange(self.models)))

    def chosen(self, configuration: int) -> NDArray[np.int64]:
        """Return (N,) the one model of each node as a bit; 0 for tools."""
        digits = self.digits[configuration]
        return np.where(digits >= 0, 1 << np.maximum(digits, 0), 0)
