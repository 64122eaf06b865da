"""Rounds written down call by call, and the exhaustive search in its plainest form."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from aragog_env.outcomes import configuration_digits
from policies.aragog.narrowing import pack
from policies.aragog.plain import members
from policies.aragog.round import Round


def make_round(
    calls: Sequence[tuple[int, int, set[tuple[int, ...]]]],
    gains: Sequence[Sequence[float]],
    free: Sequence[int],
    *,
    stages: int = 1,
    models: int | None = None,
    route_model: Sequence[int] | None = None,
    occupancy: Sequence[int] | None = None,
) -> Round:
    """Return a round.

    Args:
        calls: (request, stage, remaining configurations as tuples of models) in queue order.
        gains: per route, what the next calls gain: [r][b] raises the load from b to b + 1.
        free: free slots per route.
        stages: LLM stages of the workflow.
        models: number of models; as many as routes if not given.
        route_model: the model of each route; route r serves model r if not given.
        occupancy: calls in each engine; none if not given.
    """
    routes = len(gains)
    count = models or routes
    digits = configuration_digits(count, stages)
    words = -(-len(digits) // 64)
    place = count ** np.arange(stages - 1, -1, -1)
    remaining = np.zeros((len(calls), len(digits)), np.bool_)
    for i, (_, _, configurations) in enumerate(calls):
        remaining[i, [int(np.array(c) @ place) for c in configurations]] = True
    length = max(map(len, gains))
    return Round(
        request=np.array([c[0] for c in calls], np.int32),
        kind=np.array([c[1] for c in calls], np.int32),
        remaining=pack(remaining, words),
        allowed=np.ones((len(calls), routes), np.bool_),
        masks=np.stack([pack(digits[:, k] == np.arange(count)[:, None], words) for k in range(stages)]),
        route_model=np.array(route_model if route_model is not None else range(routes), np.int32),
        occupancy=np.array(occupancy or [0] * routes, np.int32),
        free=np.array(free, np.int32),
        gain_rps=np.array([[*g, *[0.0] * (length - len(g))] for g in gains], np.float64),
    )


def enumerate_best(round_: Round) -> float:
    """Return the largest total gain over every way to place or skip every call."""
    n = len(round_.request)
    best = 0.0
    for routes in itertools.product(range(-1, len(round_.free)), repeat=n):
        used = np.array([routes.count(r) for r in range(len(round_.free))])
        if (used > np.maximum(round_.free, 0)).any() or not _possible(round_, routes):
            continue
        gain = sum(round_.gain_rps[r, round_.occupancy[r] + k] for r, count in enumerate(used) for k in range(count))
        best = max(best, float(gain))
    return best


def _possible(round_: Round, routes: tuple[int, ...]) -> bool:
    left: dict[int, frozenset[int]] = {}
    for i, r in enumerate(routes):
        if r < 0:
            continue
        if not round_.allowed[i, r]:
            return False
        request = int(round_.request[i])
        before = left.get(request, members(round_.remaining[i]))
        left[request] = before & members(round_.masks[round_.kind[i], round_.route_model[r]])
        if not left[request]:
            return False
    return True
