"""The beam search of a round, compiled: the same answer as `plain.plain_search`, hundreds of times faster.

Aragog, sections 3.2 and 4: beam search over the queue, width B = 4, states as bit vectors. A partial assignment is a row of
flat arrays; what a call was given is kept as (parent, route) per step and read back from the end, so nothing is copied but
the slots used and the present request's set. Memory is allocated once per round, so the kernels inside need no reference
counts (counting them for every slice took five times as long as the search).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aragog_env.jit import inlined, kernel, njit

from .round import Assignment, Round, Settings

# mypy: disable-error-code="no-untyped-def"


def beam_search(round_: Round, settings: Settings = Settings()) -> Assignment:  # noqa: B008 - a constant
    """Return the assignment that a beam of `settings.width` partial assignments finds; deterministic."""
    route, gain, kept = search(*round_, *settings)
    return Assignment(route, gain, kept)


class _Beam(NamedTuple):
    """Partial assignments: the present ones in one half, and in the other those that the next call makes of them."""

    used: NDArray[np.int32]  # (2, B, R) slots taken
    bits: NDArray[np.uint64]  # (2, B, W) what is left of the present request's set
    gain: NDArray[np.float64]  # (2, B) U
    kept: NDArray[np.float64]  # (2, B) sum over requests of the share of configurations kept
    share: NDArray[np.float64]  # (2, B) the same of the present request alone
    placed: NDArray[np.int64]  # (2, B) calls placed
    left: NDArray[np.int64]  # (2, B) free slots; 0 once the assignment is not extended any further


class _Candidates(NamedTuple):
    """Extensions of the present assignments by one call, at most one per assignment and model."""

    gain: NDArray[np.float64]
    kept: NDArray[np.float64]
    share: NDArray[np.float64]
    placed: NDArray[np.int64]
    parent: NDArray[np.int32]
    route: NDArray[np.int32]  # -1: the call is skipped


@inlined
def _copy(source, target):
    """Copy one array into another."""
    for k in range(source.shape[0]):
        target[k] = source[k]


@inlined
def _members(words):
    """Return the number of ones in a bit set."""
    count = np.int64(0)
    for k in range(words.shape[0]):
        x = words[k]
        x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
        x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
        x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        count += np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))
    return count


@inlined
def _common(a, b):
    """Return the number of members that two bit sets share."""
    count = np.int64(0)
    for k in range(a.shape[0]):
        x = a[k] & b[k]
        x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
        x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
        x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        count += np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))
    return count


@inlined
def _replica(m, allowed, route_model, used, occupancy, free, gain_rps):
    """Return the replica of model m that gains most (then: most free slots, then the first), -1 when none has a slot."""
    best, best_gain, best_left = -1, 0.0, 0
    for r in range(free.shape[0]):
        left = free[r] - used[r]
        if route_model[r] != m or not allowed[r] or left <= 0:
            continue
        gain = gain_rps[r, occupancy[r] + used[r]]
        if best < 0 or gain > best_gain or (gain == best_gain and left > best_left):
            best, best_gain, best_left = r, gain, left
    return best


@inlined
def _rank(gain, kept, placed, count, tie, tie_break, width, order):
    """Write the indices of the best `width` of `count` candidates to `order`, best first; return how many there are.

    Sorted by gain; where ties are broken, every candidate that ties with the leader of its group is sorted by what it keeps.
    """
    for i in range(count):
        k = i
        while k > 0 and gain[order[k - 1]] < gain[i]:
            order[k] = order[k - 1]
            k -= 1
        order[k] = i
    begin = 0
    while tie_break and begin < min(width, count):
        end = begin + 1
        limit = gain[order[begin]] - tie * gain[order[begin]] / max(placed[order[begin]], 1)
        while end < count and gain[order[end]] >= limit:
            chosen = order[end]
            k = end
            while k > begin and kept[order[k - 1]] < kept[chosen]:
                order[k] = order[k - 1]
                k -= 1
            order[k] = chosen
            end += 1
        begin = end
    return min(width, count)


@inlined
def _extend(beam, now, s, whole, allowed, masks, route_model, occupancy, free, gain_rps, new, count):
    """Append assignment `s` with one call on every model that may take it; return the new number of candidates.

    `whole` is the size of the request's set before the round, `masks` (M, W) are those of the call's node, `allowed` (R,) is
    where the call may go, `count` is the number of candidates so far.
    """
    used = beam.used[now, s]
    for m in range(masks.shape[0]):
        r = _replica(m, allowed, route_model, used, occupancy, free, gain_rps)
        if r < 0:
            continue
        kept = _common(beam.bits[now, s], masks[m])
        if kept == 0:
            continue
        share = kept / whole
        new.gain[count] = beam.gain[now, s] + gain_rps[r, occupancy[r] + used[r]]
        new.kept[count] = beam.kept[now, s] - beam.share[now, s] + share
        new.share[count] = share
        new.placed[count] = beam.placed[now, s] + 1
        new.parent[count], new.route[count] = s, r
        count += 1
    return count


@inlined
def _skip(beam, now, s, new, count):
    """Append assignment `s` without the call."""
    new.gain[count], new.kept[count], new.share[count] = beam.gain[now, s], beam.kept[now, s], beam.share[now, s]
    new.placed[count], new.parent[count], new.route[count] = beam.placed[now, s], s, -1
    return count + 1


@inlined
def _keep(beam, now, s, new, c, masks, route_model):
    """Make candidate `c` assignment `s` of the other half."""
    p, r, following = new.parent[c], new.route[c], 1 - now
    beam.gain[following, s], beam.kept[following, s] = new.gain[c], new.kept[c]
    beam.share[following, s], beam.placed[following, s] = new.share[c], new.placed[c]
    beam.left[following, s] = beam.left[now, p]
    _copy(beam.used[now, p], beam.used[following, s])
    _copy(beam.bits[now, p], beam.bits[following, s])
    if r >= 0:
        beam.left[following, s] -= 1
        beam.used[following, s, r] += 1
        for k in range(masks.shape[1]):
            beam.bits[following, s, k] &= masks[route_model[r], k]


@njit(cache=True, nogil=True)
def _begin(width, routes, words, models, free):
    """Return the empty assignment, and room for candidates."""
    room = np.int64(0)
    for r in range(routes):
        room += max(free[r], 0)
    two, most = (2, width), width * max(models, 1)
    beam = _Beam(
        np.zeros((2, width, routes), np.int32),
        np.zeros((2, width, words), np.uint64),
        np.zeros(two),
        np.zeros(two),
        np.ones(two),
        np.zeros(two, np.int64),
        np.full(two, room),
    )
    new = _Candidates(
        np.empty(most),
        np.empty(most),
        np.empty(most),
        np.empty(most, np.int64),
        np.empty(most, np.int32),
        np.empty(most, np.int32),
    )
    return beam, new


@kernel
def _run(
    request, kind, remaining, allowed, masks, route_model, occupancy, free, gain_rps,
    width, tie, tie_break, look_ahead, beam, new, order, parent, taken,
):  # fmt: skip
    """Search; who came from whom and went where is left in `parent` and `taken`. Return calls tried, requests, half."""
    now, size, requests, whole = 0, 1, 0, np.int64(1)
    for i in range(request.shape[0]):
        open_ = False
        for s in range(size):
            open_ = open_ or beam.left[now, s] > 0
        if not open_:
            return i, requests, now
        if i == 0 or request[i] != request[i - 1]:
            requests += 1
            whole = _members(remaining[i])
            for s in range(size):
                beam.kept[now, s] += 1.0
                beam.share[now, s] = 1.0
                _copy(remaining[i], beam.bits[now, s])
        node, count, blocked = masks[kind[i]], 0, True
        for s in range(size):
            before = count
            if beam.left[now, s] > 0:
                count = _extend(
                    beam, now, s, whole, allowed[i], node, route_model, occupancy, free, gain_rps, new, count
                )
            if count > before:
                blocked = False
                continue
            if not look_ahead:
                beam.left[now, s] = 0
            count = _skip(beam, now, s, new, count)
        if blocked:
            # Nobody can take this call: the beam stays as it is, in its order.
            for s in range(size):
                parent[i, s], taken[i, s] = s, -1
            continue
        size = _rank(new.gain, new.kept, new.placed, count, tie, tie_break, width, order)
        for s in range(size):
            parent[i, s], taken[i, s] = new.parent[order[s]], new.route[order[s]]
            _keep(beam, now, s, new, order[s], node, route_model)
        now = 1 - now
    return request.shape[0], requests, now


@njit(cache=True, nogil=True)
def search(
    request, kind, remaining, allowed, masks, route_model, occupancy, free, gain_rps, width, tie, tie_break, look_ahead
):
    """Search one round (the fields of `Round`, then those of `Settings`).

    Returns:
        Routes (n,), -1 where a call is not placed; total gain; mean share of configurations kept.
    """
    n = request.shape[0]
    beam, new = _begin(width, free.shape[0], masks.shape[2], masks.shape[1], free)
    order = np.empty(new.route.shape[0], np.int32)
    parent, taken = np.empty((n, width), np.int32), np.empty((n, width), np.int32)
    steps, requests, now = _run(
        request, kind, remaining, allowed, masks, route_model, occupancy, free, gain_rps,
        width, tie, tie_break, look_ahead, beam, new, order, parent, taken,
    )  # fmt: skip
    route = np.full(n, -1, np.int32)
    s = 0
    for i in range(steps - 1, -1, -1):
        route[i] = taken[i, s]
        s = parent[i, s]
    return route, beam.gain[now, 0], beam.kept[now, 0] / requests if requests > 0 else 1.0
