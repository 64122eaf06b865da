"""The simulated cluster: compiled state of one or many environments, and its reset from a tape of traffic."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled_scenario import CompiledScenario
from .engine.replica import clear_call, clear_replica
from .engine.state import NEVER, EngineState, allocate
from .events import advance
from .jit import kernel
from .latency.compiled import PS_PER_S
from .progress import ENVIRONMENT, REQUEST, ProgressState
from .workload.tape import Tape, draw_tape

# mypy: disable-error-code="no-untyped-def"


class Simulation:
    """E environments of one scenario. Deep copies and pickles continue bit-equal, mid-episode too.

    Attributes:
        state: engine arrays; `progress`: request arrays; both with leading axis E.
        tapes: the traffic of each environment's current episode.
    """

    def __init__(self, compiled: CompiledScenario, environments: int = 1) -> None:
        self.compiled = compiled
        self.environments = environments
        requests, width = compiled.scenario.horizon.requests, compiled.max_nodes
        self.state: EngineState = allocate(compiled.engine, environments, requests * width, 1)
        self.progress = ProgressState(
            env=np.zeros(environments, ENVIRONMENT),
            request=np.zeros((environments, requests), REQUEST),
            by_rank=np.zeros((environments, requests), np.int32),
            ready=np.zeros((environments, requests * width), np.int64),
            timer_ps=np.zeros((environments, requests * (width + 1)), np.int64),
            timer_id=np.zeros((environments, requests * (width + 1)), np.int64),
            segment_id=np.zeros((environments, width + 3), np.int64),
            segment_length=np.zeros((environments, width + 3), np.int64),
        )
        self.tapes: list[Tape | None] = [None] * environments

    def reset(self, e: int, seed: int) -> None:
        """Begin an episode in environment `e` with the traffic of `seed`, and go to its first decision."""
        self.load(e, draw_tape(self.compiled.scenario, self.compiled.outcomes, seed))

    def load(self, e: int, tape: Tape) -> None:
        """Begin an episode in environment `e` with given traffic, and go to its first decision."""
        compiled = self.compiled
        self.tapes[e] = tape
        rows = compiled.workflow.first_row[tape.workflow] + tape.query
        if compiled.engine.spec["prefix"].any():
            self._reserve(int(compiled.arena_bound[rows].sum()))
        requests = self.progress.request[e]
        requests["arrival_ps"], requests["workflow"], requests["row"] = -1, tape.workflow, rows
        requests["uniform"] = tape.uniform
        _, which, times = np.unique(rows, return_inverse=True, return_counts=True)
        requests["repeated"] = times[which] > 1
        requests["successor"], requests["delay_ps"] = -1, 0
        opened = _set_arrivals(requests, tape)
        duration = compiled.scenario.horizon.duration_s
        horizon = NEVER - 1 if duration is None else np.int64(round(duration * PS_PER_S))
        _begin(compiled.workflow, compiled.engine, self.state, self.progress, e, opened, horizon)

    def _reserve(self, entries: int) -> None:
        """Make the block arena at least `entries` long."""
        if self.state.arena_hash.shape[1] < entries:
            size = int(entries * 1.25)
            arenas = {}
            for name in ("arena_hash", "arena_block"):
                old = getattr(self.state, name)
                arenas[name] = np.zeros((self.environments, size), old.dtype)
                arenas[name][:, : old.shape[1]] = old
            self.state = self.state._replace(**arenas)

    def __deepcopy__(self, memo: dict[int, Any]) -> Simulation:
        """Copy the arrays; the compiled scenario and the tapes never change and are shared."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.compiled, twin.environments = self.compiled, self.environments
        twin.tapes = list(self.tapes)
        twin.state = EngineState._make(a.copy() for a in self.state)
        twin.progress = ProgressState._make(a.copy() for a in self.progress)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Leave the compiled scenario out of pickles: it is made again from the scenario."""
        return {**self.__dict__, "compiled": self.compiled.scenario}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from .compiled_scenario import compile_scenario

        self.__dict__.update(state)
        self.compiled = compile_scenario(state["compiled"])

    def copy(self) -> Simulation:
        """Return a deep copy."""
        return copy.deepcopy(self)


def _set_arrivals(requests: NDArray[np.void], tape: Tape) -> int:
    """Write the arrival times, or who follows whom in a closed loop; return how many arrive on their own."""
    if tape.think_s is None:
        requests["arrival_ps"] = np.round(tape.arrival_s * PS_PER_S)
        return len(requests)
    # Closed loop: request i belongs to user i % users; each user's first request follows its first think time.
    users = tape.think_s.shape[0]
    n = len(requests)
    index = np.arange(n)
    delay = np.round(tape.think_s[index % users, index // users] * PS_PER_S).astype(np.int64)
    first = delay[: min(users, n)]
    requests["arrival_ps"][: len(first)] = first
    follows = index + users < n
    requests["successor"][follows] = index[follows] + users
    requests["delay_ps"][follows] = delay[index[follows] + users]
    return len(first)


@kernel
def _begin(wt, tables, state, progress, e, opened, horizon_ps):
    """Clear environment `e` and go to its first decision."""
    env, request = progress.env[e], progress.request[e]
    for q in range(request.shape[0]):
        request[q].finish_ps = request[q].configuration = -1
        request[q].done = request[q].started = 0
        request[q].rank = request[q].correct = -1
    for c in range(state.call.shape[1]):
        clear_call(state, e, c)
    for r in range(tables.spec.shape[0]):
        clear_replica(state, e, r, tables)
    env.now_ps = env.in_flight_ps = env.arena = 0
    env.horizon_ps = horizon_ps
    env.requests = request.shape[0]
    env.open = opened
    env.next = env.arrived = env.completed = env.ready = env.timers = env.correct = env.finished = 0
    env.dispatched = env.decisions = env.invalid = env.overflow = env.done = env.truncated = 0
    advance(wt, tables, state, progress, e, NEVER)
