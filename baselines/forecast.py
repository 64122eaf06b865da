"""How long a request would take under each configuration if the load stayed as it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aragog_env.specs.graph import WorkflowGraph
from aragog_env.view import VIEW_CALL, ClusterInfo, DispatchView

from .configurations import Configurations
from .costs import expected_prompt_tokens


class WorkflowForecast:
    """Predicts the latency of the rest of a workflow: its critical path, each call at the present load of its server.

    Tools take the same time under every configuration and are left out.

    Args:
        info: what is known of the cluster and its workflows.
        workflow: which workflow.
        graph: the same workflow, unrolled.
        configurations: its configurations.
    """

    def __init__(self, info: ClusterInfo, workflow: int, graph: WorkflowGraph, configurations: Configurations) -> None:
        self.graph, self.digits = graph, configurations.digits
        nodes = len(graph.nodes)
        self._query_tokens = info.queries[workflow].tokens
        self._prompt = expected_prompt_tokens(info, workflow, graph, 0.0)[:nodes]
        self._reads_query = np.array([s.prompt is not None and s.prompt.query for s in graph.stage_of])
        self._calls = np.zeros(nodes, VIEW_CALL)
        self._calls["workflow"], self._calls["node"] = workflow, np.arange(nodes)
        is_llm = graph.llm_slot[:, None] >= 0
        self._allowed = np.ascontiguousarray(np.broadcast_to(is_llm, (nodes, len(info.routes))))

    def call_latency_s(
        self, view: DispatchView, query: int, held: NDArray[np.int64], held_tokens: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return (N, M) the predicted seconds of each LLM node on each model, on its best server; inf for tools.

        Args:
            view: the decision.
            query: which query.
            held: (M,) calls in the queue that are bound to a model, as if they waited at its servers.
            held_tokens: (M,) their prompt tokens.
        """
        routes = view.routes.copy()
        model = routes["model"]
        models = len(view.info.models)
        servers = np.bincount(model, minlength=models)[model]
        routes["waiting"] += (held[model] // servers).astype(np.int32)
        routes["waiting_tokens"] += held_tokens[model] // servers
        calls = self._calls.copy()
        calls["prompt_tokens"] = self._prompt + self._reads_query * self._query_tokens[query]
        allowed = self._allowed & (routes["up"] > 0)
        forecast = DispatchView(view.info, view.now_s, calls, routes, allowed, view.in_flight, view.served_by)
        by_route = forecast.predicted_latency_s()  # (N, R)
        return np.stack([by_route[:, model == m].min(axis=1, initial=np.inf) for m in range(models)], axis=1)

    def workflow_latency_s(
        self, call_latency_s: NDArray[np.float64], served_by: NDArray[np.int32]
    ) -> NDArray[np.float64]:
        """Return (C,) the predicted seconds until the answer, along the longest path; nodes sent already take none."""
        finish = np.zeros(self.digits.shape)
        for k, node in enumerate(self.graph.nodes):
            if node.parents:
                finish[:, k] = finish[:, list(node.parents)].max(axis=1)
            if node.llm_slot >= 0 and served_by[k] < 0:
                finish[:, k] += call_latency_s[k, self.digits[:, k]]
        return np.asarray(finish.max(axis=1))
