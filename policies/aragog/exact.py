"""The best assignment of a round, for comparison with the beam (the paper's brute force, Fig. 10).

Total gain depends only on how many calls each model gets, not on which, so enumerating assignments one by one is not needed:
dynamic programming over requests, whose states are the counts per model, visits every assignment that differs in gain, and
keeps for each vector of counts the most flexible way to reach it. The answer is the one that enumeration finds; the tests
compare the two.
"""

from __future__ import annotations

import itertools
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError
from aragog_env.jit import njit

from .plain import members
from .round import Assignment, Round

# mypy: disable-error-code="no-untyped-def"

MOST_STATES: Final = 40_000_000
"""Requests x vectors of counts: about 0.2 GB."""
_ROUNDING: Final = 1e-12


def exact_search(round_: Round) -> Assignment:
    """Return the assignment with the largest total gain; among equal ones (but for rounding), the most flexible.

    Raises:
        SpecError: the round is too large (see `MOST_STATES`).
    """
    n, models = len(round_.request), round_.masks.shape[1]
    if n == 0:
        return Assignment(np.full(0, -1, np.int32), 0.0, 1.0)
    order = _fill_order(round_)
    size = np.array([min(n, len(order[m])) + 1 for m in range(models)], np.int64)
    groups = np.flatnonzero(np.diff(round_.request, prepend=round_.request[0] - 1))
    if math.prod(size.tolist()) * len(groups) > MOST_STATES:
        raise SpecError(f"a round of {n} calls with {size - 1} slots per model is too large for an exhaustive search")
    options = [_options(round_, begin, end) for begin, end in itertools.pairwise([*groups.tolist(), n])]
    stride = np.append(np.cumprod(size[:0:-1])[::-1], 1).astype(np.int64)
    counts = np.concatenate([o[0] for o in options])
    first = np.cumsum([0, *(len(o[0]) for o in options)]).astype(np.int64)
    kept, choice = _table(counts, np.concatenate([o[1] for o in options]), first, size, stride)
    gain = _total_gain(round_, order, size)
    reached = np.isfinite(kept)
    within = reached & (gain >= (1 - _ROUNDING) * gain[reached].max())
    state = int(np.flatnonzero(within)[np.argmax(kept[within])])
    models_of = _read_back(choice, counts, stride, state, options, first)
    return Assignment(_routes(models_of, order), float(gain[state]), float(kept[state]) / len(options))


def _fill_order(round_: Round) -> list[list[int]]:
    """Return for each model the replicas in the order in which its calls go to them, one entry per free slot."""
    result = []
    for m in range(round_.masks.shape[1]):
        used = {r: 0 for r in np.flatnonzero((round_.route_model == m) & round_.allowed.any(axis=0)).tolist()}
        order: list[int] = []
        while True:
            left = {r: int(round_.free[r]) - u for r, u in used.items() if round_.free[r] > u}
            if not left:
                break
            r = max(left, key=lambda r: (round_.gain_rps[r, round_.occupancy[r] + used[r]], left[r], -r))
            used[r] += 1
            order.append(r)
        result.append(order)
    return result


def _options(
    round_: Round, begin: int, end: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], list[tuple[int, ...]]]:
    """Return what a request's ready calls can do: (k, M) counts, (k,) share kept, and the models (-1 none) of each option."""
    whole = members(round_.remaining[begin])
    models = round_.masks.shape[1]
    allowed = [
        [-1, *(m for m in range(models) if (round_.allowed[i] & (round_.route_model == m)).any())]
        for i in range(begin, end)
    ]
    best: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}
    for chosen in itertools.product(*allowed):
        left = whole
        for i, m in zip(range(begin, end), chosen, strict=True):
            if m >= 0:
                left = left & members(round_.masks[round_.kind[i], m])
        counts = tuple(sum(m == k for m in chosen) for k in range(models))
        share = len(left) / len(whole)
        if left and share > best.get(counts, (0.0, ()))[0]:
            best[counts] = (share, chosen)
    keys = list(best)
    return np.array(keys, np.int64), np.array([best[k][0] for k in keys]), [best[k][1] for k in keys]


@njit(cache=True, nogil=True)
def _table(counts, shares, first, size, stride):
    """Return the largest sum of shares for every vector of counts after the last request, and the option taken at each."""
    models, requests = size.shape[0], first.shape[0] - 1
    states = stride[0] * size[0]
    kept = np.full(states, -np.inf)
    kept[0] = 0.0
    choice = np.full((requests, states), np.int32(-1))
    for q in range(requests):
        following = np.full(states, -np.inf)
        for state in range(states):
            if kept[state] == -np.inf:
                continue
            for o in range(first[q], first[q + 1]):
                target, fits = state, True
                for m in range(models):
                    if state // stride[m] % size[m] + counts[o, m] >= size[m]:
                        fits = False
                    target += counts[o, m] * stride[m]
                if fits and kept[state] + shares[o] > following[target]:
                    following[target] = kept[state] + shares[o]
                    choice[q, target] = o
        kept = following
    return kept, choice


def _total_gain(round_: Round, order: list[list[int]], size: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return U of every vector of counts, flat in the order of the table."""
    total = np.zeros(1)
    for m, replicas in enumerate(order):
        used = dict.fromkeys(replicas, 0)
        steps = [0.0]
        for r in replicas[: int(size[m]) - 1]:
            steps.append(steps[-1] + float(round_.gain_rps[r, round_.occupancy[r] + used[r]]))
            used[r] += 1
        total = np.add.outer(total, np.array(steps)).ravel()
    return total


def _read_back(
    choice: NDArray[np.int32],
    counts: NDArray[np.int64],
    stride: NDArray[np.int64],
    state: int,
    options: list[tuple[NDArray[np.int64], NDArray[np.float64], list[tuple[int, ...]]]],
    first: NDArray[np.int64],
) -> list[int]:
    """Return the model of each call, -1 where it is not placed."""
    result: list[int] = []
    for q in range(len(options) - 1, -1, -1):
        option = int(choice[q, state])
        result = [*options[q][2][option - int(first[q])], *result]
        state -= int(counts[option] @ stride)
    return result


def _routes(models_of: list[int], order: list[list[int]]) -> NDArray[np.int32]:
    """Return the replica of each call."""
    following = [iter(replicas) for replicas in order]
    return np.array([next(following[m]) if m >= 0 else -1 for m in models_of], np.int32)
