"""Chooses the ready calls that a learned scheduler is shown, narrows their action mask and finds `features.PairExtra`.

In all environments of a vector environment at once, or for the view of one decision: the same numbers to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aragog_env.jit import njit
from aragog_env.observation import CallFeature, Observation, ObservationArrays
from aragog_env.simulation import Simulation
from aragog_env.view import DispatchView

from .features import ORDERS, PAIR_WIDTH, Choices, SlotSets, count, first_of

# mypy: disable-error-code="no-untyped-def"

_FAR = 1e12
_BY_WORK, _BY_PRICE = ORDERS.index("work"), ORDERS.index("price")


class Shown(NamedTuple):
    """What E environments show: K calls, R routes."""

    which: NDArray[np.int64]  # (E, K) which of the ready calls each slot holds, -1 none
    calls: NDArray[np.float32]  # (E, K, F)
    pairs: NDArray[np.float32]  # (E, K, R, P + X)
    mask: NDArray[np.int8]  # (E, K * R + 1)


def allocate_shown(environments: int, slots: int, routes: int) -> Shown:
    """Return empty arrays."""
    return Shown(
        which=np.full((environments, slots), -1),
        calls=np.zeros((environments, slots, len(CallFeature)), np.float32),
        pairs=np.zeros((environments, slots, routes, PAIR_WIDTH), np.float32),
        mask=np.zeros((environments, slots * routes + 1), np.int8),
    )


class _Scratch(NamedTuple):
    """Memory of the kernels. N nodes, M models, W words, L calls looked at."""

    left: NDArray[np.uint64]  # (W,)
    served: NDArray[np.int64]  # (N,)
    by_model: NDArray[np.float64]  # (M, 3) share kept, work, price
    load: NDArray[np.int64]  # (R,)
    lost_s: NDArray[np.float64]  # (V * N, M) price of each node's call
    captive: NDArray[np.int64]  # (M,)
    free: NDArray[np.bool_]  # (M,) whether a server of the model takes calls
    key: NDArray[np.float64]  # (K,)


@njit(cache=True, nogil=True)
def _remaining(tables, bits, served, workflow, left):
    """Write what is left of a request's set, (W,), and return the seconds on idle servers of the calls it had sent."""
    first, spent_s = workflow * served.shape[0], 0.0
    for word in range(bits.shape[0]):
        left[word] = bits[word]
    for k in range(served.shape[0]):
        m = served[k]
        if m >= 0:
            spent_s += tables.node_s[first + k, m]
            for word in range(bits.shape[0]):
                left[word] &= tables.masks[first + k, m, word]
    return spent_s


@njit(cache=True, nogil=True)
def _insert(i, key, index, keys):
    """Put call i at its place among the shown ones, which ascend by key; of equal ones the first stays first."""
    last = index.shape[0] - 1
    if index[last] >= 0 and key >= keys[last]:
        return
    place = last
    while place > 0 and (index[place - 1] < 0 or key < keys[place - 1]):
        index[place], keys[place] = index[place - 1], keys[place - 1]
        place -= 1
    index[place], keys[place] = i, key


@njit(cache=True, nogil=True)
def _set_prices(tables, up, scratch):
    """Find which models take calls, and what a call of each kind costs on each: its own seconds, and what others there lose.

    Where a call takes L = idle (1 + s n) seconds among n, a server completes X = n / L per second. Of a stream that is larger
    by dX, dn = dX / X'(n) = idle (1 + s n)^2 dX more are there, which by Little's law is the time that all lose.
    """
    nodes, models = scratch.lost_s.shape
    for m in range(models):
        least = _FAR
        scratch.free[m] = False
        for r in range(up.shape[0]):
            if up[r] and tables.route_model[r] == m:
                scratch.free[m] |= scratch.load[r] < tables.most[r]
                least = min(least, (1.0 + tables.slowing[r] * scratch.load[r]) ** 2)
        for k in range(nodes):
            scratch.lost_s[k, m] = tables.node_s[k, m] * least


@njit(cache=True, nogil=True)
def _share(tables, first, k, node, c, workflow, scratch):
    """Return how probably node k of a request runs under configuration c, as far as is known when `node` is ready."""
    if k == node:
        return 1.0
    on = tables.skip_on[first + k]
    if on < 0:
        return tables.runs[first + k, 0]
    m = scratch.served[on] if scratch.served[on] >= 0 else tables.digits[workflow, c, on]
    return tables.runs[first + k, max(0, m)]


@njit(cache=True, nogil=True)
def _least_work_s(tables, workflow, spent_s, loss_s, left):
    """Return the seconds on idle servers until the answer, by the configuration that is best there; 0 if none is left."""
    best = first_of(left)
    if best < 0:
        return 0.0
    if loss_s.shape[0] > 0:
        least = _FAR
        for word in range(left.shape[0]):
            rest, c = left[word], 64 * word
            while rest != np.uint64(0):
                if rest & np.uint64(1) and tables.cost_s[workflow, c] + loss_s[c] < least:
                    least, best = tables.cost_s[workflow, c] + loss_s[c], c
                rest >>= np.uint64(1)
                c += 1
    return tables.cost_s[workflow, best] - spent_s


@njit(cache=True, nogil=True)
def _rate_models(tables, workflow, node, spent_s, loss_s, scratch):
    """Write, per model that could serve a call: share of configurations kept, work and price until the answer."""
    words, width = scratch.left.shape[0], scratch.served.shape[0]
    first, total = workflow * width, 0
    for m in range(scratch.by_model.shape[0]):
        kept, cheapest = 0, -1
        for word in range(words):
            both = scratch.left[word] & tables.masks[first + node, m, word]
            if both != np.uint64(0):
                kept += count(both)
                if cheapest < 0:
                    cheapest = 64 * word + count((both & (~both + np.uint64(1))) - np.uint64(1))
        total += kept
        scratch.by_model[m, 0] = kept
        scratch.by_model[m, 1] = max(0.0, tables.cost_s[workflow, cheapest] - spent_s) if cheapest >= 0 else 0.0
        scratch.by_model[m, 2] = _FAR
    for m in range(scratch.by_model.shape[0]):
        scratch.by_model[m, 0] = scratch.by_model[m, 0] / total if total > 0 else 0.0
    for word in range(words):
        rest, c = scratch.left[word], 64 * word
        while rest != np.uint64(0):
            if rest & np.uint64(1):
                price = loss_s[c] if loss_s.shape[0] > 0 else 0.0
                for k in range(width):
                    m = tables.digits[workflow, c, k]
                    if m >= 0 and scratch.served[k] < 0:
                        price += scratch.lost_s[first + k, m] * _share(tables, first, k, node, c, workflow, scratch)
                m = tables.digits[workflow, c, node]
                if price < scratch.by_model[m, 2]:
                    scratch.by_model[m, 2] = price
                    if (
                        loss_s.shape[0] > 0
                    ):  # not the cheapest one, which may be much worse, but the one that it would run
                        scratch.by_model[m, 1] = max(0.0, tables.cost_s[workflow, c] - spent_s)
            rest >>= np.uint64(1)
            c += 1


@njit(cache=True, nogil=True)
def _look_at(tables, bits, loss_s, i, workflow, node, index, scratch):
    """Let ready call i compete for a slot, and count it if one model alone may serve it; `scratch.served` is its request's."""
    spent_s = _remaining(tables, bits, scratch.served, workflow, scratch.left)
    kind = workflow * scratch.served.shape[0] + node
    models, only, can_go = 0, -1, False
    for m in range(tables.masks.shape[1]):
        for word in range(bits.shape[0]):
            if scratch.left[word] & tables.masks[kind, m, word]:
                models, only = models + 1, m
                can_go |= scratch.free[m]
                break
    if models == 1:
        scratch.captive[only] += 1
    key = float(i)
    if tables.order == _BY_WORK:
        key = _least_work_s(tables, workflow, spent_s, loss_s, scratch.left)
    elif tables.order == _BY_PRICE:
        _rate_models(tables, workflow, node, spent_s, loss_s, scratch)
        key = scratch.by_model[:, 2].min()
    if tables.window > 0 and models > 0 and not can_go:
        key += _FAR
    _insert(i, key, index, scratch.key)


@njit(cache=True, nogil=True)
def _price(tables, kind, r, scratch):
    """Return the price of a call on one route: `by_model` has that of the model's least loaded route."""
    m = tables.route_model[r]
    here_s = tables.node_s[kind, m] * (1.0 + tables.slowing[r] * scratch.load[r]) ** 2
    return scratch.by_model[m, 2] + here_s - scratch.lost_s[kind, m]


@njit(cache=True, nogil=True)
def _refine_slot(tables, kind, allowed, source, target, mask, scratch):
    """Write pair features and mask of one call; return whether it can be sent now.

    Args:
        tables: `SlotTables`.
        kind: of the call, its row in the tables.
        allowed: (R,) routes that are up and serve a candidate.
        source: (R, P) features of the observation.
        target: (R, P + X) the features with the extra ones behind them.
        mask: (R,) the call's part of the action mask.
        scratch: `_Scratch`, with `by_model` of this call.
    """
    features, by_model, load = source.shape[1], scratch.by_model, scratch.load
    any_viable, any_open, best = False, False, _FAR
    for r in range(allowed.shape[0]):
        m = tables.route_model[r]
        if allowed[r] and by_model[m, 0] > 0:
            any_viable, best = True, min(best, _price(tables, kind, r, scratch))
    for r in range(allowed.shape[0]):
        m = tables.route_model[r]
        viable = allowed[r] and by_model[m, 0] > 0
        # Nothing viable is up, or the request was sent outside its set: an answer of lesser quality beats none.
        is_open = allowed[r] and (viable or not any_viable) and load[r] < tables.most[r]
        any_open |= is_open
        mask[r] = is_open
        for f in range(features):
            target[r, f] = source[r, f]
        target[r, features] = is_open
        target[r, features + 1] = by_model[m, 0] if allowed[r] else 0.0
        target[r, features + 2] = by_model[m, 1] / (by_model[m, 1] + 10.0) if allowed[r] else 0.0
        target[r, features + 3] = load[r] / (load[r] + tables.saturation[r])
        price = _price(tables, kind, r, scratch)
        target[r, features + 4] = price / (price + 30.0) if viable else 0.0
        target[r, features + 5] = best / max(price, 1e-9) if viable and best > 0 else 0.0
        target[r, features + 6] = scratch.captive[m] / (scratch.captive[m] + tables.saturation[r])
    return any_open


@njit(cache=True, nogil=True)
def _show_all(
    tables, bits, loss_s, by_rank, call_model, valid, request, workflow, node, running, waiting, up, allowed, encoded,
    source, wait, shown, scratch,
):  # fmt: skip
    """Choose calls and write them in every environment. See `SlotRefiner.refine_all`."""
    routes, width = allowed.shape[2], scratch.served.shape[0]
    for e in range(bits.shape[0]):
        index = shown.which[e]
        index[:] = -1
        scratch.captive[:] = 0
        for r in range(routes):
            scratch.load[r] = running[e, r] + waiting[e, r]
        _set_prices(tables, up[e], scratch)
        for i in range(valid.shape[1]):
            if valid[e, i] == 0:
                break
            q = by_rank[e, request[e, i]]
            for k in range(width):
                scratch.served[k] = call_model[e, q * width + k]
            _look_at(tables, bits[e, q], loss_s[e, q], i, workflow[e, i], node[e, i], index, scratch)
        any_open = False
        for slot in range(index.shape[0]):
            part = shown.mask[e, slot * routes : (slot + 1) * routes]
            i = index[slot]
            if i < 0:
                shown.calls[e, slot] = 0.0
                shown.pairs[e, slot] = 0.0
                part[:] = 0
                continue
            q = by_rank[e, request[e, i]]
            for k in range(width):
                scratch.served[k] = call_model[e, q * width + k]
            spent_s = _remaining(tables, bits[e, q], scratch.served, workflow[e, i], scratch.left)
            _rate_models(tables, workflow[e, i], node[e, i], spent_s, loss_s[e, q], scratch)
            shown.calls[e, slot] = encoded[e, i]
            target = shown.pairs[e, slot]
            kind = workflow[e, i] * width + node[e, i]
            any_open |= _refine_slot(tables, kind, allowed[e, i], source[e, i], target, part, scratch)
        shown.mask[e, -1] = wait[e] if tables.wait or not any_open else 0


@njit(cache=True, nogil=True)
def _choose_view(tables, bits, loss_s, served, workflow, node, load, up, index, scratch):
    """Choose among the calls of a view. See `SlotRefiner.choose_view`."""
    index[:] = -1
    scratch.captive[:] = 0
    for r in range(load.shape[0]):
        scratch.load[r] = load[r]
    _set_prices(tables, up, scratch)
    for i in range(bits.shape[0]):
        for k in range(served.shape[1]):
            scratch.served[k] = served[i, k]
        _look_at(tables, bits[i], loss_s[i], i, workflow[i], node[i], index, scratch)


@njit(cache=True, nogil=True)
def _refine_view(tables, bits, loss_s, served, workflow, node, allowed, source, target, mask, scratch):
    """`_refine_slot` for chosen calls, of which there are as many as `bits` has rows; empty slots are zero."""
    routes, any_open = allowed.shape[1], False
    for slot in range(target.shape[0]):
        if slot >= bits.shape[0]:
            target[slot] = 0.0
            continue
        for k in range(served.shape[1]):
            scratch.served[k] = served[slot, k]
        spent_s = _remaining(tables, bits[slot], scratch.served, workflow[slot], scratch.left)
        _rate_models(tables, workflow[slot], node[slot], spent_s, loss_s[slot], scratch)
        part = mask[slot * routes : (slot + 1) * routes]
        kind = workflow[slot] * served.shape[1] + node[slot]
        any_open |= _refine_slot(tables, kind, allowed[slot], source[slot], target[slot], part, scratch)
    if any_open and not tables.wait:
        mask[-1] = 0


class SlotRefiner:
    """Calls the kernels; owns their scratch memory.

    Args:
        sets: rules and viable sets.
        slots: calls that are shown, K.
    """

    def __init__(self, sets: SlotSets, slots: int) -> None:
        self.sets = sets
        models, routes = len(sets.compiled.models), len(sets.compiled.replicas)
        self._scratch = _Scratch(
            left=np.zeros(sets.words, np.uint64),
            served=np.zeros(sets.nodes, np.int64),
            by_model=np.zeros((models, 3)),
            load=np.zeros(routes, np.int64),
            lost_s=np.zeros(sets.tables.node_s.shape),
            captive=np.zeros(models, np.int64),
            free=np.zeros(models, np.bool_),
            key=np.zeros(slots),
        )

    def refine_all(self, simulation: Simulation, out: ObservationArrays, choices: Choices, shown: Shown) -> None:
        """Write what all environments show.

        Args:
            simulation: E environments.
            out: their observations, of all the calls that are looked at.
            choices: (E, n, ...) of the requests of the tapes (`SlotSets.of_tape`).
            shown: the result.
        """
        calls, routes = out.view_calls, out.view_routes
        _show_all(
            self.sets.tables, *choices, simulation.progress.by_rank, simulation.state.call["model"], out.calls[:, :, 0],
            calls["request"], calls["workflow"], calls["node"], routes["running"], routes["waiting"], routes["up"],
            out.allowed, out.calls, out.pairs, out.mask[:, -1], shown, self._scratch,
        )  # fmt: skip

    def refine_view(
        self, view: DispatchView, choices: Choices, looked_at: Observation, shown: Shown
    ) -> NDArray[np.int64]:
        """Write what is shown of a view; returns which of its calls, at most K.

        Args:
            view: the decision.
            choices: of the requests of its first n calls, those that are looked at.
            looked_at: their observation.
            shown: the result, of one environment.
        """
        bits, loss_s = choices
        calls, tables, scratch = view.calls[: len(bits)], self.sets.tables, self._scratch
        served, load = view.served_by[: len(bits)], (view.routes["running"] + view.routes["waiting"]).astype(np.int64)
        everything = shown.which[0]
        _choose_view(
            tables, bits, loss_s, served, calls["workflow"], calls["node"], load, view.routes["up"], everything, scratch
        )
        chosen: NDArray[np.int64] = everything[everything >= 0]
        pairs = looked_at["pairs"].reshape(len(looked_at["calls"]), len(view.routes), -1)
        shown.calls[0], shown.mask[0] = 0.0, 0
        shown.calls[0, : len(chosen)] = looked_at["calls"][chosen]
        shown.mask[0, -1] = looked_at["action_mask"][-1]
        _refine_view(
            tables, bits[chosen], loss_s[chosen], served[chosen], calls["workflow"][chosen], calls["node"][chosen],
            view.allowed[chosen], pairs[chosen], shown.pairs[0], shown.mask[0], scratch,
        )  # fmt: skip
        return chosen
