"""Requests, calls and servers of the reference backend: records in plain Python."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ..engine.config import EngineConfig, EngineRequest, Iteration
from ..engine.reference import ReferenceEngine
from ..latency.compiled import CompiledLatency


@dataclass(slots=True, eq=False)
class Request:
    """A request of the tape."""

    index: int
    """Position on the tape."""
    workflow: int
    query: int
    uniform: float
    rank: int = -1
    """Order of arrival."""
    arrival_ps: int = -1
    finish_ps: int = -1
    configuration: int = -1
    correct: int = -1
    started: set[int] = field(default_factory=set)
    """Nodes whose parents are done."""
    done: set[int] = field(default_factory=set)
    """Nodes that are done, skipped ones included."""
    calls: dict[int, Call] = field(default_factory=dict)
    """Calls and tools by node; a skipped node has none."""


@dataclass(slots=True, eq=False)
class Call:
    """An LLM call or a tool of a request."""

    request: Request
    node: int
    ready_ps: int
    prompt_tokens: int = 0
    output_tokens: int = 0
    generated: int = 0
    model: int = -1
    route: int = -1
    sequence: int = -1
    """Order of dispatch."""
    dispatch_ps: int = -1
    start_ps: int = -1
    first_token_ps: int = -1
    finish_ps: int = -1
    cached_tokens: int = 0
    preemptions: int = 0


class Server:
    """A replica, and what becomes of the calls it serves, read from its iterations."""

    def __init__(self, config: EngineConfig, latency: CompiledLatency) -> None:
        self.engine = ReferenceEngine(config, latency)
        self.calls: dict[int, Call] = {}
        """All it ever got: a call may still end up in a list of preempted ones after its last token."""
        self.in_flight: deque[Iteration] = deque()
        self.ended_ps = 0
        """Time spent in iterations that ended."""

    @property
    def waiting_tokens(self) -> int:
        """Tokens that waiting calls must have computed before they get the next one."""
        waiting = [self.calls[number] for number in self.engine.waiting]
        return sum(call.prompt_tokens + call.generated for call in waiting)

    @property
    def has_work(self) -> bool:
        """Whether it holds any call."""
        return bool(self.engine.running or self.engine.waiting)

    def submit(self, call: Call, request: EngineRequest) -> None:
        """Take in a call; iterations scheduled from now on see it."""
        self.calls[request.request_id] = call
        self.engine.add(request)

    def schedule(self, now_ps: int) -> None:
        """Schedule iterations at `now_ps`, if the server is not waiting for the end of one."""
        for iteration in self.engine.fill(now_ps):
            self.in_flight.append(iteration)
            for number, cached in iteration.cached.items():
                call = self.calls[number]
                if call.start_ps < 0:
                    call.start_ps, call.cached_tokens = iteration.start_ps, cached
            for number in iteration.preempted:
                self.calls[number].preemptions += 1

    def preemptions(self, call: Call) -> int:
        """Return how often a call was preempted, by schedules that led to no iteration too."""
        return call.preemptions + self.engine._preempted.count(call.sequence)

    def end_iterations(self, now_ps: int) -> list[Call]:
        """End the iterations that end at `now_ps` and return the calls they complete."""
        completed = []
        while self.engine.next_end_ps == now_ps:
            iteration = self.in_flight.popleft()
            self.ended_ps += iteration.duration_ps
            for number in iteration.sampled:
                call = self.calls[number]
                call.generated += 1
                if call.generated == 1:
                    call.first_token_ps = now_ps
            for times in self.engine.finish_iteration():
                call = self.calls[times.request_id]
                call.finish_ps = times.finish_ps
                completed.append(call)
        return completed

    def busy_ps(self, now_ps: int) -> int:
        """Return the time spent in iterations until `now_ps`."""
        return self.ended_ps + sum(max(0, now_ps - iteration.start_ps) for iteration in self.in_flight)
