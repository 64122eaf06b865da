"""A toy scenario whose right answers a test writes down: two calls in a row, three models, 16 queries.

Alone a call takes 10 iterations: 10 ms on toy-s, 20 on toy-m, 40 on toy-l. Each server runs 8 calls at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from aragog_env.backends.sim import SimBackend
from aragog_env.episode import EpisodeLog
from aragog_env.outcomes import OutcomeTable
from aragog_env.policy import Policy
from aragog_env.registry import make_policy
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.workload.tape import Tape

S, M, L = 0, 1, 2


def configuration(draft: int, revise: int) -> int:
    """Return the index of a configuration."""
    return 3 * draft + revise


def backend(requests: int) -> SimBackend:
    return SimBackend(override(load_scenario("toy"), requests=requests, warmup_requests=0))


def table_with(sim: SimBackend, viable: Mapping[int, Sequence[tuple[int, int]]]) -> OutcomeTable:
    """Return the scenario's table with these viable configurations per query; the largest always is one."""
    (table,) = sim.outcomes
    p = np.zeros_like(table.p_correct)
    p[:, -1] = 0.9
    for query, members in viable.items():
        for member in members:
            p[query, configuration(*member)] = 0.9
    return replace(table, p_correct=p)


def ready(policy: str | Policy, sim: SimBackend, table: OutcomeTable, arrivals_ms: Sequence[float]) -> Policy:
    """Return a policy at the start of an episode in which request k asks query k."""
    n = len(arrivals_ms)
    tape = Tape(np.array(arrivals_ms) / 1e3, np.zeros(n, np.int32), np.arange(n, dtype=np.int32) % 16, np.full(n, 0.5))
    sim.simulation.load(0, tape)
    made = make_policy(policy) if isinstance(policy, str) else policy
    made.receive_outcomes((table,))  # type: ignore[attr-defined]
    made.reset(sim.scenario, 0)
    return made


def served(
    policy: str | Policy, viable: Mapping[int, Sequence[tuple[int, int]]], arrivals_ms: Sequence[float]
) -> tuple[list[tuple[int, int]], EpisodeLog]:
    """Run an episode; return the models of each request, and the log."""
    sim = backend(len(arrivals_ms))
    made = ready(policy, sim, table_with(sim, viable), arrivals_ms)
    while not sim.done:
        sim.step(made.act(sim.view()))
    log = sim.log()
    models = [
        tuple(int(log.calls["model"][(log.calls["request"] == r) & (log.calls["node"] == n)][0]) for n in (0, 1))
        for r in range(len(arrivals_ms))
    ]
    return models, log
