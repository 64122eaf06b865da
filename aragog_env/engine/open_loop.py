"""Run the compiled engine on one replica and a list of requests: the twin of `reference.run_reference`."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..jit import kernel, njit
from ..latency.compiled import CompiledLatency
from .config import CallTimes, EngineConfig, EngineRequest, EngineRun
from .kv import hash_segments
from .replica import clear_call, clear_replica, close_segment, plan, submit
from .state import ALL_SHARED, BOUNDARY, IDLE, NEVER, EngineState, EngineTables, allocate, build_tables


class RequestArrays(NamedTuple):
    """Requests as flat arrays; n requests, ordered by (arrival, id) where they have an arrival."""

    arrival_ps: NDArray[np.int64]  # (n,) NEVER when it follows another request
    open_order: NDArray[np.int64]  # (m,) indices of requests with an arrival, in order
    prompt: NDArray[np.int32]  # (n,)
    output: NDArray[np.int32]  # (n,)
    priority: NDArray[np.int32]  # (n,)
    first_child: NDArray[np.int32]  # (n,) a request that follows this one, -1 none
    next_sibling: NDArray[np.int32]  # (n,)
    delay_ps: NDArray[np.int64]  # (n,)
    segment_start: NDArray[np.int64]  # (n + 1,) into the two below
    segment_id: NDArray[np.int64]
    segment_length: NDArray[np.int64]
    arena: NDArray[np.int64]  # (n + 1,) first block hash of each request
    shared: NDArray[np.int32]  # (n,) leading blocks that another request might ask for


def pack_requests(requests: Sequence[EngineRequest]) -> RequestArrays:
    """Lay out `requests` as arrays; the output is each request's last segment."""
    n = len(requests)
    index = {request.request_id: i for i, request in enumerate(requests)}
    first_child, next_sibling = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
    for i, request in enumerate(requests):
        if request.after is not None:
            parent = index[request.after]
            next_sibling[i], first_child[parent] = first_child[parent], i
    segments = [[*r.prompt, (r.output_content_id, r.output_tokens)] for r in requests]
    blocks = [(r.prompt_tokens + r.output_tokens) // 16 + 1 for r in requests]
    opened = [i for i, r in enumerate(requests) if r.after is None]
    opened.sort(key=lambda i: (requests[i].arrival_ps, requests[i].request_id))
    flat = np.array([pair for group in segments for pair in group], np.int64).reshape(-1, 2)
    return RequestArrays(
        arrival_ps=np.array([r.arrival_ps if r.after is None else NEVER for r in requests], np.int64),
        open_order=np.array(opened, np.int64),
        prompt=np.array([r.prompt_tokens for r in requests], np.int32),
        output=np.array([r.output_tokens for r in requests], np.int32),
        priority=np.array([r.priority for r in requests], np.int32),
        first_child=first_child,
        next_sibling=next_sibling,
        delay_ps=np.array([r.delay_ps for r in requests], np.int64),
        segment_start=np.cumsum([0, *map(len, segments)]).astype(np.int64),
        segment_id=np.ascontiguousarray(flat[:, 0]),
        segment_length=np.ascontiguousarray(flat[:, 1]),
        arena=np.cumsum([0, *blocks]).astype(np.int64),
        shared=np.array(shared_blocks(segments), np.int32),
    )


def shared_blocks(requests: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
    """Return for each request, given as segments (content id, tokens), how many leading blocks others might ask for."""
    owners = Counter(content for segments in requests for content in {content for content, _ in segments})
    shared = []
    for segments in requests:
        own = (k for k, (content, _) in enumerate(segments) if owners[content] == 1)
        shared.append(sum(tokens for _, tokens in segments[: next(own, len(segments))]) >> 4)
    return shared


@kernel
def _arrive(state, e, tables, req, c, now):
    """Submit request `c` to replica 0."""
    call = state.call[e]
    call[c].prompt, call[c].output, call[c].priority = req.prompt[c], req.output[c], req.priority[c]
    call[c].ready_ps, call[c].sequence, call[c].arena = now, c, req.arena[c]
    if tables.spec[0].prefix != 0:
        begin, end = req.segment_start[c], req.segment_start[c + 1]
        call[c].shared = req.shared[c]
        if tables.spec[0].priority != 0 or tables.spec[0].lag != 0:
            call[c].shared = ALL_SHARED  # see `progress._shared_blocks`
        ids, lengths = req.segment_id[begin:end], req.segment_length[begin:end]
        hash_segments(state, e, req.arena[c], ids, lengths, end - begin, call[c].shared)
    submit(state, e, 0, tables, c, now)


@njit(cache=True)
def run_open_loop(state, e, tables, req):
    """Serve all requests on replica 0 of environment `e`; results stay in `state.call[e]`."""
    clear_replica(state, e, 0, tables)
    for c in range(req.prompt.shape[0]):
        clear_call(state, e, c)
    replica = state.replica[e, 0]
    waiting = [(NEVER, np.int64(-1))]
    following = 0
    while True:
        t_open = req.arrival_ps[req.open_order[following]] if following < req.open_order.shape[0] else NEVER
        t_arrival = min(t_open, waiting[0][0])
        now = min(replica.end_ps, t_arrival)
        if now == NEVER:
            return
        if replica.end_ps == now and replica.mode != BOUNDARY:
            for k in range(close_segment(state, e, 0, tables)):
                child = req.first_child[state.finished[e, k]]
                while child >= 0:
                    heapq.heappush(waiting, (now + req.delay_ps[child], np.int64(child)))
                    child = req.next_sibling[child]
        while True:
            t_open = req.arrival_ps[req.open_order[following]] if following < req.open_order.shape[0] else NEVER
            if min(t_open, waiting[0][0]) > now:
                break
            # Simultaneous arrivals enter in order of their number, whether they were planned or follow another request.
            planned = (t_open, req.open_order[following]) if t_open != NEVER else (NEVER, np.int64(-1))
            if planned[0] < waiting[0][0] or (planned[0] == waiting[0][0] and planned[1] < waiting[0][1]):
                c = planned[1]
                following += 1
            else:
                c = heapq.heappop(waiting)[1]
            _arrive(state, e, tables, req, c, now)
        if replica.mode == BOUNDARY and replica.end_ps <= now:
            plan(state, e, 0, tables, now)
        elif replica.mode == IDLE:
            replica.end_ps = NEVER


def collect(state: EngineState, requests: Sequence[EngineRequest], e: int = 0) -> EngineRun:
    """Return what `run_open_loop` left in the state, in the form the reference engine uses."""
    calls = tuple(
        CallTimes(
            request_id=request.request_id,
            arrival_ps=int(record["ready_ps"]),
            start_ps=int(record["start_ps"]),
            first_token_ps=int(record["first_ps"]),
            finish_ps=int(record["finish_ps"]),
            preemptions=int(record["preemptions"]),
            cached_tokens=int(record["cached"]),
        )
        for request, record in sorted(
            zip(requests, state.call[e, : len(requests)], strict=True), key=lambda p: p[0].request_id
        )
    )
    return EngineRun(calls=calls, iterations=int(state.replica[e, 0]["iterations"]))


def prepare(
    config: EngineConfig, latency: CompiledLatency, requests: Sequence[EngineRequest]
) -> tuple[EngineTables, EngineState, RequestArrays]:
    """Allocate everything `run_open_loop` needs."""
    for request in requests:
        request.check(config)
    packed = pack_requests(requests)
    tables = build_tables([config], [latency])
    return tables, allocate(tables, 1, len(requests), int(packed.arena[-1])), packed


def run_compiled(config: EngineConfig, latency: CompiledLatency, requests: Sequence[EngineRequest]) -> EngineRun:
    """Serve `requests` on one compiled engine; the same results as `reference.run_reference`.

    Raises:
        SpecError: a request that the server would reject.
    """
    tables, state, packed = prepare(config, latency, requests)
    run_open_loop(state, 0, tables, packed)
    return collect(state, requests)
