"""The simulated cluster in plain Python, with what surrounds its engines: client, HTTP, and servers that share a processor.

On a machine with few cores the engines are only part of the time. What a calibration (`aragog_env.calibration`) finds of the
rest stands in the cluster: `decision_ms` of the client, `submit_ms` and `close_ms` of each server, and `sharing`. Here it is
played exactly; without any of it this backend equals the reference backend, hence the compiled simulator, to the picosecond.

**Client.** It decides about one call after the other, each decision takes `decision_ms`, and what happens meanwhile it sees
at the next one. A call reaches its engine `submit_ms` after it was dispatched, and is over for the client `close_ms` after its
last token.

**Shared processor.** Each server has a clock of its own for its iterations. While k other servers have work it runs slower
than the wall clock by the factor `slowdown[k]`, from one moment to the next, also in the middle of an iteration. What lies
outside the engines takes `outside[k]` times as long, by the k of the moment when it begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from enum import IntEnum

from ..compiled_scenario import compile_scenario
from ..engine.config import EngineConfig, EngineRequest, Iteration
from ..latency.compiled import PS_PER_MS, PS_PER_S, CompiledLatency
from ..policy import Dispatch, Wait
from ..specs.cluster import ClusterSpec
from ..specs.scenario import Scenario
from ..view import DispatchView
from ..workload.tape import Tape
from .reference import ReferenceBackend
from .reference_server import Call, Server


class Outside(IntEnum):
    """Events outside the engines; at one instant after those of `reference.Event`."""

    SUBMIT = 2
    CLOSE = 3
    FREE = 4
    """The client is free to decide again."""


def engines_only(cluster: ClusterSpec) -> ClusterSpec:
    """Return a cluster without anything that surrounds its engines."""
    replicas = tuple(replace(replica, submit_ms=0.0, close_ms=0.0) for replica in cluster.replicas)
    return replace(cluster, replicas=replicas, decision_ms=0.0, sharing=None)


class HostedServer(Server):
    """A server with a clock of its own, which stands at `_own_ps` when the wall clock stands at `_wall_ps`."""

    def __init__(self, config: EngineConfig, latency: CompiledLatency) -> None:
        super().__init__(config, latency)
        self._wall_ps = self._own_ps = 0
        self._factor = 1.0
        """How much slower than the wall clock the server's own clock runs."""
        self.token_ps: dict[int, list[int]] = {}
        """When each token of a call was written."""

    def own_ps(self, now_ps: int) -> int:
        """Return the time of the server's own clock; it stands still at the end of an iteration."""
        passed_ps = now_ps - self._wall_ps
        own_ps = self._own_ps + (passed_ps if self._factor == 1.0 else round(passed_ps / self._factor))
        end_ps = self.engine.next_end_ps
        return own_ps if end_ps is None else min(own_ps, end_ps)

    def set_factor(self, now_ps: int, factor: float) -> None:
        """Let the clock run at another speed from now on."""
        if factor != self._factor:
            self._own_ps, self._wall_ps, self._factor = self.own_ps(now_ps), now_ps, factor

    def next_end_ps(self) -> int | None:
        """Return when the iteration under way will end as things stand, None without one."""
        end_ps = self.engine.next_end_ps
        if end_ps is None:
            return None
        left_ps = end_ps - self._own_ps
        return self._wall_ps + (left_ps if self._factor == 1.0 else math.ceil(left_ps * self._factor))

    def pass_time(self, wall_ps: int) -> None:
        """Count time as busy when an iteration is under way."""
        if self.in_flight:
            self.ended_ps += wall_ps

    def schedule(self, now_ps: int) -> None:
        """Schedule iterations at `now_ps`, if the server is not waiting for the end of one."""
        if not self.in_flight:
            self._own_ps, self._wall_ps = self.own_ps(now_ps), now_ps
        for iteration in self.engine.fill(self.own_ps(now_ps)):
            self.in_flight.append(iteration)
            for number, cached in iteration.cached.items():
                if number not in self.token_ps:
                    self.token_ps[number] = []
                    self.calls[number].cached_tokens = cached
            for number in iteration.preempted:
                self.calls[number].preemptions += 1
            if len(self.in_flight) == 1:
                self._begin(iteration, now_ps)

    def _begin(self, iteration: Iteration, now_ps: int) -> None:
        for number in iteration.cached:
            if self.calls[number].start_ps < 0:
                self.calls[number].start_ps = now_ps

    def end_iterations(self, now_ps: int) -> list[Call]:
        """End the iterations whose time has come and return the calls they complete."""
        completed = []
        while (end_ps := self.engine.next_end_ps) is not None and end_ps <= self.own_ps(now_ps):
            self._own_ps, self._wall_ps = end_ps, now_ps
            iteration = self.in_flight.popleft()
            for number in iteration.sampled:
                call = self.calls[number]
                call.generated += 1
                self.token_ps[number].append(now_ps)
                if call.generated == 1:
                    call.first_token_ps = now_ps
            for times in self.engine.finish_iteration():
                call = self.calls[times.request_id]
                call.finish_ps = now_ps
                completed.append(call)
            if self.in_flight:
                self._begin(self.in_flight[0], now_ps)
        return completed

    def busy_ps(self, now_ps: int) -> int:
        """Return the time spent in iterations so far."""
        return self.ended_ps


class SharedHostBackend(ReferenceBackend):
    """A virtual cluster with its client and its machine, in virtual time (see `backends.base.Backend`)."""

    _servers: Sequence[HostedServer]

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        cluster = scenario.cluster
        engines = compile_scenario(replace(scenario, cluster=engines_only(cluster)))
        self._latencies = [
            table.compile(config.max_num_seqs, config.max_num_batched_tokens)
            for table, config in zip(engines.latencies, engines.engines, strict=True)
        ]
        self._decision_ps = round(cluster.decision_ms * PS_PER_MS)
        self._submit_ps = [round(replica.submit_ms * PS_PER_MS) for replica in self.compiled.replicas]
        self._close_ps = [round(replica.close_ms * PS_PER_MS) for replica in self.compiled.replicas]
        sharing = cluster.sharing
        self._slowdown = sharing.slowdown if sharing and sharing.slowdown else (1.0,)
        self._outside = sharing.outside if sharing and sharing.outside else (1.0,)

    def load(self, tape: Tape) -> None:
        """Begin an episode with given traffic and go to its first decision."""
        self._free_ps = 0
        self._due = False
        self._on_the_way: dict[int, EngineRequest] = {}
        self._held = [0] * len(self.compiled.replicas)
        super().load(tape)

    def _make_servers(self) -> Sequence[HostedServer]:
        engines = zip(self.compiled.engines, self._latencies, strict=True)
        return [HostedServer(config, latency) for config, latency in engines]

    # --- time -----------------------------------------------------------------------------------------------

    def _advance(self, until_s: float = math.inf) -> None:
        """Go on until the client is free and an event has left a call ready, or `until_s`, or the episode is over."""
        until = [] if until_s == math.inf else [round(until_s * PS_PER_S)]
        while True:
            for server in self._servers:
                server.schedule(self._now_ps)
            self._set_speeds()
            times = [server.next_end_ps() for server in self._servers]
            ends = [time for time in times if time is not None] + [event[0] for event in self._events[:1]] + until
            if not ends or (self._horizon_ps is not None and min(ends) > self._horizon_ps):
                self.done = self.truncated = True
                self._pass_to(self._now_ps if self._horizon_ps is None else self._horizon_ps)
                return
            self._pass_to(min(ends))
            self._due = self._live_through_instant() or self._due
            if self._completed == len(self._requests):
                self.done = True
                return
            if (self._due and self._ready and self._now_ps >= self._free_ps) or self._now_ps in until:
                self._due = False
                return

    def _pass_to(self, time_ps: int) -> None:
        for server in self._servers:
            server.pass_time(time_ps - self._now_ps)
        self._now_ps = time_ps

    def _set_speeds(self) -> None:
        """Slow each server down by the others that have work."""
        busy = sum(server.has_work for server in self._servers)
        for server in self._servers:
            others = busy - server.has_work
            server.set_factor(self._now_ps, self._slowdown[min(others, len(self._slowdown) - 1)])

    def _outside_ps(self, time_ps: int, route: int | None) -> int:
        """Return what something outside the engines takes now, at a server or at the client."""
        busy = sum(server.has_work for server in self._servers)
        own = min(busy, 1) if route is None else int(self._servers[route].has_work)
        factor = self._outside[min(busy - own, len(self._outside) - 1)]
        return time_ps if factor == 1.0 else round(time_ps * factor)

    def _ended(self, call: Call) -> bool:
        close_ps = self._outside_ps(self._close_ps[call.route], call.route)
        if not close_ps:
            self._held[call.route] -= 1
            return super()._ended(call)
        call.finish_ps += close_ps
        self._at(call.finish_ps, Outside.CLOSE, call.sequence)
        return False

    def _happen(self, kind: int, index: int, node: int) -> bool:
        if kind < Outside.SUBMIT:
            return super()._happen(kind, index, node)
        if kind == Outside.SUBMIT:
            super()._send(self._dispatched[index], self._on_the_way.pop(index))
        elif kind == Outside.CLOSE:
            self._held[self._dispatched[index].route] -= 1
            self._complete(self._dispatched[index])
        return kind == Outside.CLOSE

    # --- decisions ------------------------------------------------------------------------------------------

    def step(self, action: Dispatch | Wait) -> None:
        """Carry out a decision and go on to the next one."""
        super().step(action)
        if not self.done and self._ready and self._now_ps < self._free_ps:
            self._due = True
            self._advance()

    def _send(self, call: Call, asked: EngineRequest) -> None:
        self._held[call.route] += 1
        self._free_ps = call.dispatch_ps = self._now_ps + self._outside_ps(self._decision_ps, None)
        arrival_ps = call.dispatch_ps + self._outside_ps(self._submit_ps[call.route], call.route)
        if arrival_ps == self._now_ps:
            super()._send(call, asked)
            return
        self._on_the_way[call.sequence] = replace(asked, arrival_ps=arrival_ps)
        self._at(arrival_ps, Outside.SUBMIT, call.sequence)
        if self._decision_ps:
            self._at(self._free_ps, Outside.FREE, call.sequence)

    def view(self) -> DispatchView:
        """Return the current decision; the client knows what it has sent and what has come back."""
        view = super().view()
        on_the_way = [self._dispatched[number] for number in self._on_the_way]
        for r, row in enumerate(view.routes):
            mine = [call.prompt_tokens for call in on_the_way if call.route == r]
            row["waiting"] += len(mine)
            row["waiting_tokens"] += sum(mine)
            row["running"] = self._held[r] - row["waiting"]
        return view
