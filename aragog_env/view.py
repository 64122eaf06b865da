"""What a policy may see at a decision: nothing that a client of a live vLLM cluster could not know.

True output lengths, correctness and future arrivals are absent. Per route it is what vLLM's `/metrics` shows (running and
waiting requests, KV use) plus what a client knows because it sent it (waiting prompt tokens).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine.replica import free_now
from .engine.state import EngineTables
from .jit import inlined, kernel
from .latency.compiled import PS_PER_S
from .prediction import predict_ps
from .progress import ready_call
from .queries import QuerySet

# mypy: disable-error-code="no-untyped-def"

VIEW_CALL = np.dtype(
    [
        ("request", "i4"),  # requests by order of arrival: 0, 1, ...
        ("workflow", "i4"),
        ("query", "i4"),  # index into info.queries[workflow]: a client knows the text that it sends
        ("node", "i4"),  # unrolled stage
        ("depth", "i4"),  # nodes on the longest path to a leaf, this one included
        ("nodes_done", "i4"),
        ("nodes", "i4"),  # of the workflow
        ("prompt_tokens", "i4"),
        ("arrival_s", "f8"),  # of the request
        ("ready_s", "f8"),
    ],
    align=True,
)

VIEW_ROUTE = np.dtype(
    [
        ("model", "i4"),
        ("up", "i4"),
        ("running", "i4"),
        ("waiting", "i4"),
        ("max_seqs", "i4"),
        ("kv_blocks", "i4"),
        ("kv_blocks_used", "i4"),
        ("waiting_tokens", "i8"),
    ],
    align=True,
)


@inlined
def fill_calls(wt, state, progress, e, count, calls, allowed):
    """Write the first `count` ready calls and where they may go."""
    width = wt.parents.shape[1]
    for slot in range(count):
        q, node = ready_call(progress, e, slot)
        request = progress.request[e, q]
        w = request.workflow
        view = calls[slot]
        view.request, view.workflow, view.node, view.depth = request.rank, w, node, wt.depth[w, node]
        view.query = request.row - wt.first_row[w]
        done, left = 0, request.done
        while left:
            done += left & 1
            left >>= 1
        view.nodes_done, view.nodes = done, wt.nodes[w]
        call = state.call[e, q * width + node]
        view.prompt_tokens = call.prompt
        view.arrival_s = request.arrival_ps / PS_PER_S
        view.ready_s = call.ready_ps / PS_PER_S
        for r in range(allowed.shape[1]):
            allowed[slot, r] = wt.allowed[w, node, r] & state.replica[e, r].up


@inlined
def fill_routes(wt, tables, state, e, now, routes):
    """Write the state of every route."""
    for r in range(routes.shape[0]):
        replica, spec, view = state.replica[e, r], tables.spec[r], routes[r]
        view.model, view.up = wt.route_model[r], replica.up
        view.running, view.waiting = replica.running, replica.waiting
        view.max_seqs = spec.max_seqs
        view.kv_blocks, view.kv_blocks_used = spec.blocks, spec.blocks - free_now(state, e, r, tables, now)
        view.waiting_tokens = replica.waiting_tokens


@inlined
def predict_call_ps(tables, expected_output, call, routes, r):
    """Return the predicted time of a viewed call on route `r`, in picoseconds."""
    route = routes[r]
    return predict_ps(
        tables,
        r,
        route.running,
        route.waiting,
        route.waiting_tokens,
        route.kv_blocks_used * 16,
        call.prompt_tokens,
        expected_output[call.workflow, call.node, route.model],
    )


@kernel
def _predict_all(tables, expected_output, calls, routes, allowed, result):
    for slot in range(calls.shape[0]):
        for r in range(routes.shape[0]):
            result[slot, r] = np.inf
            if allowed[slot, r]:
                result[slot, r] = predict_call_ps(tables, expected_output, calls[slot], routes, r) / PS_PER_S


@dataclass(frozen=True, eq=False)
class ClusterInfo:
    """What stays the same during an episode and is known to every policy. W workflows, N nodes, M models, R routes."""

    models: tuple[str, ...]
    """Smallest first."""
    model_sizes_b: tuple[float, ...]
    routes: tuple[str, ...]
    route_gpus: tuple[int, ...]
    workflows: tuple[str, ...]
    nodes: tuple[tuple[str, ...], ...]
    """nodes[workflow][node]"""
    queries: tuple[QuerySet, ...]
    """queries[workflow]: texts and features, nothing of the answers."""
    radix: NDArray[np.int64]  # (W, N) weight of a node's model in the configuration index, 0 for tools
    expected_output_tokens: NDArray[np.float64]  # (W, N, M) from the length model
    engine: EngineTables
    """vLLM settings and iteration times of every replica."""


class DispatchView:
    """One decision, as arrays. n ready calls, R routes, M models.

    Attributes:
        now_s: seconds since the episode began.
        calls: (n,) of VIEW_CALL: ready calls, oldest request first, inside a request the deepest stage first.
        routes: (R,) of VIEW_ROUTE.
        allowed: (n, R) bool: the route is up and its model is a candidate of the call's stage.
        in_flight: requests that arrived and are not complete.
        served_by: (n, N) model that each node of the call's request was sent to so far, -1 where it was not.
        info: what never changes during an episode.
    """

    __slots__ = ("allowed", "calls", "in_flight", "info", "now_s", "routes", "served_by")

    def __init__(
        self,
        info: ClusterInfo,
        now_s: float,
        calls: NDArray[np.void],
        routes: NDArray[np.void],
        allowed: NDArray[np.bool_],
        in_flight: int,
        served_by: NDArray[np.int32],
    ) -> None:
        self.info = info
        self.now_s = now_s
        self.calls = calls
        self.routes = routes
        self.allowed = allowed
        self.in_flight = in_flight
        self.served_by = served_by

    @property
    def expected_output_tokens(self) -> NDArray[np.float64]:
        """(n, M) mean output tokens of each call on each model, from the workflow's length model."""
        result: NDArray[np.float64] = self.info.expected_output_tokens[self.calls["workflow"], self.calls["node"]]
        return result

    def predicted_latency_s(self) -> NDArray[np.float64]:
        """Return (n, R) predicted seconds from dispatch to the last token, inf where not allowed."""
        result = np.empty(self.allowed.shape)
        info = self.info
        _predict_all(info.engine, info.expected_output_tokens, self.calls, self.routes, self.allowed, result)
        return result

    def __repr__(self) -> str:
        return f"DispatchView(t={self.now_s:.6f} s, ready={len(self.calls)}, in_flight={self.in_flight})"

    def __reduce__(self) -> Any:
        raise TypeError("a view is a window on one decision; copy the arrays you need")
