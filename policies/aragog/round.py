"""One scheduling round as arrays: the ready calls in queue order, and the room the engines have."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Round(NamedTuple):
    """What a search is given. n ready calls, R routes, M models, W words of a bit set, K kinds of node, L loads."""

    request: NDArray[np.int32]  # (n,) equal neighbours are parallel stages of one request
    kind: NDArray[np.int32]  # (n,) row of `masks`: workflow and node
    remaining: NDArray[np.uint64]  # (n, W) configurations that the call's request still has
    allowed: NDArray[np.bool_]  # (n, R) the route is up and its model is a candidate
    masks: NDArray[np.uint64]  # (K, M, W) configurations with model m at a node
    route_model: NDArray[np.int32]  # (R,)
    occupancy: NDArray[np.int32]  # (R,) calls in each engine, running and waiting
    free: NDArray[np.int32]  # (R,) slots below saturation
    gain_rps: NDArray[np.float64]  # (R, L) [r, b]: throughput gained by raising the load from b to b + 1


class Settings(NamedTuple):
    """How partial assignments are searched and ranked (Aragog, section 3.2)."""

    width: int = 4
    """B: partial assignments kept; 1 is greedy."""
    tie: float = 0.01
    """Two total gains tie when they differ by at most this share of what the better assignment gains per placed call. Of one
    call, not of the total: else a round of a hundred calls would take a whole call more or less for a tie."""
    tie_break: bool = True
    """Whether ties are decided by flexibility."""
    look_ahead: bool = True
    """Whether calls behind one that cannot be placed are tried."""


class Assignment(NamedTuple):
    """What a search answers."""

    route: NDArray[np.int32]  # (n,) -1 where the call is not placed
    gain_rps: float
    """U: total forecast throughput gain."""
    flexibility: float
    """F: mean over the requests that were looked at of the share of its configurations that a request keeps."""
