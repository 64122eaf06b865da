"""The search of a round in plain Python, to be read: the compiled search must agree with it on every round.

Aragog, section 3.2. A partial assignment is extended call by call in queue order with every allowed model; the B best by U
(total forecast throughput gain), ties by F (mean share of configurations kept), are kept. Configurations are Python sets.

Readings of ours, where the paper is silent:

* Of several replicas of a model, a call goes to the one that gains most, then the one with most free slots, then the first:
  the paper ranks models, and has one engine per model.
* F is a mean over all requests the round has looked at; a request that was not placed keeps everything.
* Without look-ahead, a partial assignment in which a call cannot be placed is not extended any further.
* Equal candidates keep their order: that of their parents, then smaller models first. So a round has one answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .narrowing import WORD_BITS
from .round import Assignment, Round, Settings


@dataclass(frozen=True)
class _State:
    """A partial assignment."""

    routes: tuple[int, ...]
    """One per call so far, -1 not placed."""
    used: tuple[int, ...]
    """Slots taken on each route."""
    gain_rps: float
    kept: float
    """Sum over requests of the share of configurations kept."""
    share: float
    """The same of the present request alone."""
    remaining: frozenset[int]
    """Configurations of the present request."""
    stopped: bool = False


def members(words: np.ndarray) -> frozenset[int]:
    """Return a bit set as a Python set."""
    bits = np.unpackbits(np.ascontiguousarray(words, "<u8").view(np.uint8), bitorder="little")
    assert len(bits) == WORD_BITS * len(words)
    return frozenset(np.flatnonzero(bits).tolist())


def plain_search(round_: Round, settings: Settings = Settings()) -> Assignment:  # noqa: B008 - a constant
    """Return the assignment that the beam search of `settings` finds."""
    n, routes = len(round_.request), range(len(round_.free))
    beam = [_State((), tuple(0 for _ in routes), 0.0, 0.0, 1.0, frozenset())]
    requests = 0
    for i in range(n):
        if not any(_has_room(state, round_) for state in beam):
            break
        if i == 0 or round_.request[i] != round_.request[i - 1]:
            requests += 1
            whole = members(round_.remaining[i])
            beam = [replace(s, kept=s.kept + 1.0, share=1.0, remaining=whole) for s in beam]
        size = len(members(round_.remaining[i]))
        following: list[_State] = []
        for state in beam:
            extended = [] if state.stopped else _extend(state, round_, i, size)
            if not extended:
                blocked = state.stopped or not settings.look_ahead
                extended = [replace(state, routes=(*state.routes, -1), stopped=blocked)]
            following += extended
        beam = _best(following, settings)
    best = beam[0]
    route = np.array([*best.routes, *[-1] * (n - len(best.routes))], np.int32)
    return Assignment(route, best.gain_rps, best.kept / requests if requests else 1.0)


def _has_room(state: _State, round_: Round) -> bool:
    return not state.stopped and any(round_.free[r] > used for r, used in enumerate(state.used))


def _extend(state: _State, round_: Round, i: int, size: int) -> list[_State]:
    """Return `state` with call i on every model that it may go to, smallest first; `size` = its set before the round."""
    result = []
    for m in range(round_.masks.shape[1]):
        kept = state.remaining & members(round_.masks[round_.kind[i], m])
        r = _replica(state, round_, i, m)
        if r < 0 or not kept:
            continue
        share = len(kept) / size
        used = tuple(u + (k == r) for k, u in enumerate(state.used))
        gain = float(round_.gain_rps[r, round_.occupancy[r] + state.used[r]])
        result.append(
            _State(
                routes=(*state.routes, r),
                used=used,
                gain_rps=state.gain_rps + gain,
                kept=state.kept - state.share + share,
                share=share,
                remaining=kept,
            )
        )
    return result


def _replica(state: _State, round_: Round, i: int, m: int) -> int:
    """Return the replica of model m that call i goes to, -1 when none has a slot."""
    best, key = -1, (-1.0, -1)
    for r, used in enumerate(state.used):
        left = int(round_.free[r]) - used
        if round_.route_model[r] == m and round_.allowed[i, r] and left > 0:
            mine = (float(round_.gain_rps[r, round_.occupancy[r] + used]), left)
            if mine > key:
                best, key = r, mine
    return best


def _best(states: list[_State], settings: Settings) -> list[_State]:
    """Return the B best: by gain, and among those that tie with the first of their group, by flexibility."""
    queue = sorted(states, key=lambda s: -s.gain_rps)  # stable
    result: list[_State] = []
    while queue and len(result) < settings.width:
        count = 1
        if settings.tie_break:
            placed = sum(r >= 0 for r in queue[0].routes)
            limit = queue[0].gain_rps - settings.tie * queue[0].gain_rps / max(placed, 1)
            count = sum(s.gain_rps >= limit for s in queue)
        result += sorted(queue[:count], key=lambda s: -s.kept)
        queue = queue[count:]
    return result[: settings.width]
