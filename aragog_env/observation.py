"""Observation arrays for learned policies: what `view.DispatchView` holds, as padded float32 arrays in [0, 1].

Unbounded quantities x are squashed to x / (x + scale), so that bounds are true for any load; scales are chosen so that usual
values fall in the middle. The columns have names: `CallFeature`, `RouteFeature`, `PairFeature`, `GlobalFeature`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypedDict

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from .engine.state import NEVER
from .events import next_event_ps
from .jit import inlined, kernel
from .latency.compiled import PS_PER_S
from .view import VIEW_CALL, VIEW_ROUTE, fill_calls, fill_routes, predict_call_ps

# mypy: disable-error-code="no-untyped-def"


class CallFeature(IntEnum):
    """Columns of `calls` (K, F)."""

    VALID = 0  # 1 where the slot holds a ready call
    AGE = 1  # seconds since the request arrived, scale 10 s
    WAITED = 2  # seconds since the call became ready, scale 1 s
    DEPTH = 3  # nodes to the leaf, scale 4
    DONE = 4  # share of the workflow's nodes that are done
    PROMPT = 5  # prompt tokens, scale 1024
    WORKFLOW = 6  # (index + 1) / W
    NODE = 7  # (index + 1) / N


class RouteFeature(IntEnum):
    """Columns of `routes` (R, G)."""

    UP = 0
    RUNNING = 1  # requests, scale 16
    WAITING = 2  # requests, scale 4
    WAITING_TOKENS = 3  # prompt tokens in the queue, scale 4096
    KV_USED = 4  # share of KV blocks
    SEQUENCES_USED = 5  # share of max_num_seqs
    MODEL = 6  # (index + 1) / M, smallest first
    GPUS = 7  # scale 4


class PairFeature(IntEnum):
    """Columns of `pairs` (K, R, P)."""

    ALLOWED = 0  # the route serves a candidate model of the call
    LATENCY = 1  # predicted seconds to the last token, scale 5 s
    RELATIVE = 2  # best predicted latency over all routes / this one's
    OUTPUT = 3  # expected output tokens on that model, scale 256


class GlobalFeature(IntEnum):
    """Entries of `globals`."""

    IN_FLIGHT = 0  # requests, scale 32
    READY = 1  # ready calls, scale 8
    OVERFLOW = 2  # ready calls beyond the K slots, scale 8


class Observation(TypedDict):
    """One observation; K ready-call slots, R routes. With a leading axis E in the vector environment."""

    calls: NDArray[np.float32]  # (K, len(CallFeature))
    routes: NDArray[np.float32]  # (R, len(RouteFeature))
    pairs: NDArray[np.float32]  # (K, R, len(PairFeature))
    globals: NDArray[np.float32]  # (len(GlobalFeature),)
    action_mask: NDArray[np.int8]  # (K * R + 1,)


class ObservationArrays(NamedTuple):
    """Observations of E environments, and scratch for the views they are made from."""

    calls: NDArray[np.float32]  # (E, K, F)
    routes: NDArray[np.float32]  # (E, R, G)
    pairs: NDArray[np.float32]  # (E, K, R, P)
    globals: NDArray[np.float32]  # (E, L)
    mask: NDArray[np.int8]  # (E, K * R + 1)
    view_calls: NDArray[np.void]  # (E, K) of VIEW_CALL
    view_routes: NDArray[np.void]  # (E, R) of VIEW_ROUTE
    allowed: NDArray[np.bool_]  # (E, K, R)


def allocate_observations(environments: int, slots: int, routes: int) -> ObservationArrays:
    """Allocate observations of `environments` environments with `slots` ready-call slots."""
    return ObservationArrays(
        calls=np.zeros((environments, slots, len(CallFeature)), np.float32),
        routes=np.zeros((environments, routes, len(RouteFeature)), np.float32),
        pairs=np.zeros((environments, slots, routes, len(PairFeature)), np.float32),
        globals=np.zeros((environments, len(GlobalFeature)), np.float32),
        mask=np.zeros((environments, slots * routes + 1), np.int8),
        view_calls=np.zeros((environments, slots), VIEW_CALL),
        view_routes=np.zeros((environments, routes), VIEW_ROUTE),
        allowed=np.zeros((environments, slots, routes), np.bool_),
    )


def observation_space(slots: int, routes: int) -> gym.spaces.Dict:
    """Return the space of one observation."""

    def unit(*shape: int) -> gym.spaces.Box:
        return gym.spaces.Box(0.0, 1.0, shape, np.float32)

    return gym.spaces.Dict(
        {
            "calls": unit(slots, len(CallFeature)),
            "routes": unit(routes, len(RouteFeature)),
            "pairs": unit(slots, routes, len(PairFeature)),
            "globals": unit(len(GlobalFeature)),
            "action_mask": gym.spaces.MultiBinary(slots * routes + 1),
        }
    )


@inlined
def squash(x, scale):
    """Map [0, inf) to [0, 1)."""
    return np.float32(x / (x + scale))


@inlined
def _encode_routes(wt, tables, out, e):
    routes = out.view_routes[e]
    models = wt.expected_output.shape[2]
    for r in range(routes.shape[0]):
        route, row = routes[r], out.routes[e, r]
        row[RouteFeature.UP] = route.up
        row[RouteFeature.RUNNING] = squash(route.running, 16.0)
        row[RouteFeature.WAITING] = squash(route.waiting, 4.0)
        row[RouteFeature.WAITING_TOKENS] = squash(route.waiting_tokens, 4096.0)
        row[RouteFeature.KV_USED] = np.float32(route.kv_blocks_used / route.kv_blocks)
        row[RouteFeature.SEQUENCES_USED] = np.float32(route.running / route.max_seqs)
        row[RouteFeature.MODEL] = np.float32((route.model + 1) / models)
        row[RouteFeature.GPUS] = squash(float(tables.spec[r].gpus), 4.0)


@inlined
def _encode_call(wt, tables, out, e, slot, now_s):
    view, row, pairs = out.view_calls[e, slot], out.calls[e, slot], out.pairs[e, slot]
    row[CallFeature.VALID] = 1.0
    row[CallFeature.AGE] = squash(now_s - view.arrival_s, 10.0)
    row[CallFeature.WAITED] = squash(now_s - view.ready_s, 1.0)
    row[CallFeature.DEPTH] = squash(float(view.depth), 4.0)
    row[CallFeature.DONE] = np.float32(view.nodes_done / view.nodes)
    row[CallFeature.PROMPT] = squash(float(view.prompt_tokens), 1024.0)
    row[CallFeature.WORKFLOW] = np.float32((view.workflow + 1) / wt.nodes.shape[0])
    row[CallFeature.NODE] = np.float32((view.node + 1) / wt.parents.shape[1])
    best = np.inf
    routes = out.view_routes[e]
    for r in range(routes.shape[0]):
        pairs[r, PairFeature.ALLOWED] = out.allowed[e, slot, r]
        if not out.allowed[e, slot, r]:
            pairs[r, PairFeature.LATENCY] = pairs[r, PairFeature.RELATIVE] = pairs[r, PairFeature.OUTPUT] = 0.0
            continue
        latency_s = predict_call_ps(tables, wt.expected_output, view, routes, r) / PS_PER_S
        best = min(best, latency_s)
        pairs[r, PairFeature.LATENCY] = squash(latency_s, 5.0)
        pairs[r, PairFeature.RELATIVE] = np.float32(1.0 / latency_s)
        pairs[r, PairFeature.OUTPUT] = squash(wt.expected_output[view.workflow, view.node, routes[r].model], 256.0)
    for r in range(routes.shape[0]):
        pairs[r, PairFeature.RELATIVE] = min(np.float32(1.0), pairs[r, PairFeature.RELATIVE] * np.float32(best))


@kernel
def observe(wt, tables, state, progress, e, out):
    """Write the observation and the action mask of environment `e`."""
    env = progress.env[e]
    slots, routes = out.allowed.shape[1], out.allowed.shape[2]
    shown = min(env.ready, slots)
    if env.done:
        shown = 0
    fill_routes(wt, tables, state, e, progress.env[e].now_ps, out.view_routes[e])
    fill_calls(wt, state, progress, e, shown, out.view_calls[e], out.allowed[e])
    _encode_routes(wt, tables, out, e)
    now_s = env.now_ps / PS_PER_S
    mask = out.mask[e]
    for slot in range(slots):
        if slot < shown:
            _encode_call(wt, tables, out, e, slot, now_s)
            for r in range(routes):
                mask[slot * routes + r] = out.allowed[e, slot, r]
        else:
            out.calls[e, slot, :] = 0.0
            out.pairs[e, slot, :, :] = 0.0
            mask[slot * routes : (slot + 1) * routes] = 0
    # Waiting must end: something has to be running or about to come. After the end it is the one thing left to do.
    mask[slots * routes] = env.done or next_event_ps(wt, state, progress, e) < NEVER
    out.globals[e, GlobalFeature.IN_FLIGHT] = squash(float(env.arrived - env.completed), 32.0)
    out.globals[e, GlobalFeature.READY] = squash(float(env.ready), 8.0)
    out.globals[e, GlobalFeature.OVERFLOW] = squash(float(max(0, env.ready - slots)), 8.0)
