"""The meta-queue: which requests are known, what each may still do, and in which order their calls are looked at.

Aragog, section 3.2: one global queue, first in first out by request arrival. A request keeps its place across stages, and
inside a request the stage farthest from the leaf goes first. The environment's view is that queue already; what is added
here is the viable set of each request, found once when it arrives, and the moment at which its router is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError, did_you_mean
from aragog_env.jit import njit
from aragog_env.view import DispatchView

from .narrowing import Space, narrow

# mypy: disable-error-code="no-untyped-def"

ORDERS: Final = ("fifo", "lifo", "fewest_left")
_LEAST_ENTRIES: Final = 1024
_PER_REQUEST_IN_FLIGHT: Final = 8

Route = Callable[[DispatchView, int], tuple[NDArray[np.bool_], float]]
"""Finds the viable set of the request of call i, (C,), and the second at which it is known."""


@njit(cache=True, nogil=True)
def unknown(request, owner, found):
    """Write the calls whose request has no entry to `found`, one per request; return how many. `request` is ascending."""
    count = 0
    capacity = owner.shape[0]
    for i in range(request.shape[0]):
        if owner[request[i] % capacity] != request[i] and (i == 0 or request[i] != request[i - 1]):
            found[count] = i
            count += 1
    return count


class MetaQueue:
    """Viable sets of the requests in flight, in a ring indexed by arrival rank.

    A new request overwrites the one that arrived a ring's length earlier, so finished requests go away by themselves. The ring
    is several times as long as there are requests in flight. Should a slow request be overwritten all the same, it is
    looked up again: what remains of a set is computed from `view.served_by` each time, never stored.
    """

    def __init__(self, space: Space, order: str = "fifo") -> None:
        if order not in ORDERS:
            raise SpecError(
                f"policy 'aragog': order must be one of {', '.join(ORDERS)}, got '{order}'.{did_you_mean(order, ORDERS)}"
            )
        self.space = space
        self.order = order
        self._resize(_LEAST_ENTRIES)

    def _resize(self, entries: int) -> None:
        self._owner = np.full(entries, -1, np.int64)
        self._bits = np.zeros((entries, self.space.words), np.uint64)
        self._known_s = np.zeros(entries)

    def clear(self) -> None:
        """Forget every request: a new episode begins."""
        self._resize(_LEAST_ENTRIES)

    def admit(self, view: DispatchView, route: Route) -> None:
        """Find the viable set of every request that is seen for the first time."""
        if view.in_flight * _PER_REQUEST_IN_FLIGHT > len(self._owner):
            self._grow(view.in_flight * _PER_REQUEST_IN_FLIGHT)
        request = np.ascontiguousarray(view.calls["request"])
        found = np.empty(len(request), np.int64)
        for i in found[: unknown(request, self._owner, found)].tolist():
            members, known_s = route(view, i)
            slot = int(request[i]) % len(self._owner)
            self._owner[slot] = request[i]
            self._bits[slot] = self.space.bits(int(view.calls["workflow"][i]), members)
            self._known_s[slot] = known_s

    def _grow(self, least: int) -> None:
        owner, bits, known_s = self._owner, self._bits, self._known_s
        self._resize(1 << (least - 1).bit_length())
        kept = np.flatnonzero(owner >= 0)
        kept = kept[np.argsort(owner[kept])]  # where two meet, the later request stays
        slot = owner[kept] % len(self._owner)
        self._owner[slot], self._bits[slot], self._known_s[slot] = owner[kept], bits[kept], known_s[kept]

    def entries(self, view: DispatchView) -> NDArray[np.int64]:
        """Return where each call's request stands in the ring, (n,)."""
        slots: NDArray[np.int64] = view.calls["request"].astype(np.int64) % len(self._owner)
        return slots

    def known_s(self, view: DispatchView) -> NDArray[np.float64]:
        """Return the second at which each call's request is routed, (n,)."""
        return self._known_s[self.entries(view)]

    def kinds(self, view: DispatchView) -> NDArray[np.int32]:
        """Return each call's row of the space's masks, (n,)."""
        kinds: NDArray[np.int32] = view.calls["workflow"] * np.int32(self.space.nodes) + view.calls["node"]
        return kinds

    def remaining(self, view: DispatchView, kinds: NDArray[np.int32]) -> NDArray[np.uint64]:
        """Return what is left of each call's viable set, (n, W).

        Raises:
            AssertionError: nothing is left, which only a dispatch outside the set can cause.
        """
        viable = self._bits[self.entries(view)]
        left = np.empty_like(viable)
        empty = narrow(viable, view.served_by, kinds, self.space.masks, left)
        assert empty < 0, f"request {view.calls['request'][empty]} was sent where its viable set does not allow"
        return left

    def arrange(self, view: DispatchView, waiting: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the calls `waiting` (indices, ascending) in queue order; those of one request stay neighbours."""
        if self.order == "fifo":
            return waiting
        calls = view.calls[waiting]
        if self.order == "lifo":
            return waiting[np.argsort(-calls["request"], kind="stable")]
        # Fewest stages left first; calls of a request are equal in this, so the arrival order keeps them together.
        return waiting[np.argsort(calls["nodes"] - calls["nodes_done"], kind="stable")]


class MovingAverage:
    """An exponential moving average of a wait (Aragog, section 4: the scheduler keeps such averages of queue metrics)."""

    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight
        self.value = math.nan

    def add(self, sample: float) -> None:
        """Take one more sample."""
        self.value = sample if math.isnan(self.value) else self.value + self.weight * (sample - self.value)

    def clear(self) -> None:
        """Forget everything."""
        self.value = math.nan
