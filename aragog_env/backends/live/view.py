"""What a policy sees of a live cluster: the arrays of a `DispatchView`, from what servers say and what we sent them.

A reading of /metrics is up to its interval old, and between two readings every decision would see the same queues. What we
have sent and got back we know to the moment. So a server's load is our own calls there, plus what the last reading shows
beyond those we had there then (other clients); what does not fit into `max_num_seqs` waits, and more where the server says so
(no KV blocks left).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...compiled_scenario import CompiledScenario
from ...engine.state import BLOCK_TOKENS
from ...servers.metrics import ServerMetrics
from ...servers.pool import RouteState
from ...view import VIEW_CALL, VIEW_ROUTE, ClusterInfo, DispatchView
from .progress import LiveCall


@dataclass(eq=False)
class Sent:
    """A call on its way."""

    call: LiveCall
    route: int
    model: int
    dispatch_s: float
    priority: int
    number: int = -1
    """In the recording."""


class Routing:
    """Where calls may go, by what the scenario says and by which servers are up."""

    def __init__(self, compiled: CompiledScenario) -> None:
        table = compiled.workflow
        self._model = [int(m) for m in table.route_model]
        self._candidates = [[tuple(np.flatnonzero(row).tolist()) for row in rows] for rows in table.allowed]

    def candidates(self, call: LiveCall) -> list[int]:
        """Return the routes whose model may serve the call and has not refused it, up or down."""
        routes = self._candidates[call.request.workflow][call.node]
        return [r for r in routes if self._model[r] not in call.refused]

    def planned(self, call: LiveCall) -> int:
        """Return how many routes the scenario has for the call, whatever became of them."""
        return len(self._candidates[call.request.workflow][call.node])

    def permitted(self, states: Sequence[RouteState], call: LiveCall) -> list[int]:
        """Return the routes that a call may take now.

        Those that failed it before are the last resort: they may have recovered, or have been the only ones.
        """
        up = [r for r in self.candidates(call) if states[r].up]
        return [r for r in up if r not in call.excluded] or up


def build_view(
    compiled: CompiledScenario,
    info: ClusterInfo,
    now_s: float,
    calls: Sequence[LiveCall],
    routing: Routing,
    states: Sequence[RouteState],
    sent: Mapping[int, Sent],
    started: Callable[[int], bool],
    in_flight: int,
) -> DispatchView:
    """Return the view of a decision about `calls`, each of which some server can take."""
    n, routes, width = len(calls), len(states), compiled.max_nodes
    rows = np.zeros(n, VIEW_CALL)
    allowed = np.zeros((n, routes), np.bool_)
    served = np.full((n, width), -1, np.int32)
    for i, call in enumerate(calls):
        request = call.request
        graph = request.runtime.graph
        rows[i] = (
            request.rank,
            request.workflow,
            request.query,
            call.node,
            graph.nodes[call.node].depth,
            len(request.finished),
            len(graph.nodes),
            call.prompt_tokens,
            request.arrival_s,
            call.ready_s,
        )
        allowed[i, routing.permitted(states, call)] = True
        for node, model in request.served.items():
            served[i, node] = model
    return DispatchView(info, now_s, rows, view_routes(compiled, states, sent, started), allowed, in_flight, served)


def _blocks(metrics: ServerMetrics) -> int:
    """Return the usable KV blocks of 16 tokens that a server says it has, 0 where it does not say.

    vLLM on the CPU has larger blocks. One block is the null block (`v1/core/block_pool.py`).
    """
    if not metrics.kv_blocks:
        return 0
    return (metrics.kv_blocks - 1) * (metrics.block_size or BLOCK_TOKENS) // BLOCK_TOKENS


def view_routes(
    compiled: CompiledScenario, states: Sequence[RouteState], sent: Mapping[int, Sent], started: Callable[[int], bool]
) -> NDArray[np.void]:
    """Return (R,) of VIEW_ROUTE."""
    result = np.zeros(len(states), VIEW_ROUTE)
    for r, (state, view) in enumerate(zip(states, result, strict=True)):
        spec, metrics = compiled.engine.spec[r], state.metrics
        own = [(ticket, s) for ticket, s in sent.items() if s.route == r]
        unstarted = [s.call.prompt_tokens for ticket, s in own if not started(ticket)]
        foreign = max(0, (metrics.running or 0) + (metrics.waiting or 0) - state.in_flight)
        total = len(own) + foreign
        waiting = max(0, total - int(spec["max_seqs"]))
        waiting = max(waiting, min(metrics.waiting or 0, len(unstarted) + foreign))
        blocks = _blocks(metrics) or int(spec["blocks"])
        view["model"], view["up"] = compiled.workflow.route_model[r], state.up
        view["running"], view["waiting"], view["max_seqs"] = total - waiting, waiting, spec["max_seqs"]
        view["kv_blocks"], view["kv_blocks_used"] = blocks, round((metrics.kv_usage or 0.0) * blocks)
        # The last ones sent are the ones that wait.
        view["waiting_tokens"] = sum(unstarted[max(0, len(unstarted) - waiting) :]) if waiting else 0
    return result
