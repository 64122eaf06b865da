"""The tape of an episode: all its randomness, drawn from the seed before anything happens.

Nothing on the tape depends on what a policy does, so all policies meet the same traffic at a given seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ..outcomes import OutcomeTable
from ..specs.scenario import Scenario
from .arrivals import draw_arrivals, draw_think_times


class Stream(IntEnum):
    """Independent random streams of an episode; new ones go to the end, so that old episodes stay."""

    ARRIVALS = 0
    MIX = 1
    QUERIES = 2
    OUTCOMES = 3
    THINKING = 4


@dataclass(frozen=True, eq=False)
class Tape:
    """Traffic of one episode: n requests in order of arrival."""

    arrival_s: NDArray[np.float64]  # (n,) ascending; in a closed loop infinite, since completions decide
    workflow: NDArray[np.int32]  # (n,) index into the scenario's mix
    query: NDArray[np.int32]  # (n,) index into the workflow's queries
    uniform: NDArray[np.float64]  # (n,) in [0, 1): the answer is right where it is below `p_correct`
    think_s: NDArray[np.float64] | None = None  # (users, ceil(n / users)), closed loop only
    """Request i belongs to user i % users and is that user's (i // users)-th; [u, j] passes before request j,
    after the start of the episode or after the completion of the user's request before."""
    draws: tuple[NDArray[np.float64], ...] = ()
    """Per workflow (Q,): `uniform` by query."""


def stream(seed: int, kind: Stream, *index: int) -> np.random.Generator:
    """Return the generator of one stream of an episode, independent of all others."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(int(kind), *index))))


def draw_tape(scenario: Scenario, tables: Sequence[OutcomeTable], seed: int) -> Tape:
    """Draw the traffic of an episode.

    Queries of a workflow are shuffled and used without repetition; when all have been used, they are shuffled
    again. The number that decides about right or wrong belongs to the query, so that the same query under the
    same configuration has the same outcome within an episode, for every policy.

    Args:
        scenario: gives the arrivals, the mix and the number of requests.
        tables: one outcome table per entry of the mix; only the number of queries is used.
        seed: of the episode.
    """
    n = scenario.horizon.requests
    workload = scenario.workload
    weights = np.array([entry.weight for entry in workload.mix], dtype=np.float64)
    edges = np.cumsum(weights)[:-1] / weights.sum()
    workflow = np.searchsorted(edges, stream(seed, Stream.MIX).random(n), side="right").astype(np.int32)
    query = np.empty(n, dtype=np.int32)
    uniform = np.empty(n, dtype=np.float64)
    draws = tuple(stream(seed, Stream.OUTCOMES, w).random(table.queries) for w, table in enumerate(tables))
    for w, table in enumerate(tables):
        mine = np.flatnonzero(workflow == w)
        query[mine] = draw_queries(table.queries, len(mine), stream(seed, Stream.QUERIES, w))
        uniform[mine] = draws[w][query[mine]]
    arrivals = workload.arrivals
    if arrivals.kind == "closed":
        turns = -(-n // max(arrivals.users, 1))
        think = draw_think_times(arrivals, turns, stream(seed, Stream.THINKING))
        think[:, :1].sort(axis=0)  # requests are numbered in order of arrival, and so are the users by their first ones
        return Tape(np.full(n, np.inf), workflow, query, uniform, think, draws)
    return Tape(draw_arrivals(arrivals, n, stream(seed, Stream.ARRIVALS)), workflow, query, uniform, draws=draws)


def draw_queries(queries: int, n: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Return `n` query indices: shuffles of all queries, one after another."""
    rounds = -(-n // queries)
    if rounds == 0:
        return np.empty(0, dtype=np.int32)
    return np.concatenate([rng.permutation(queries) for _ in range(rounds)])[:n].astype(np.int32)
