"""The reference engine: what one vLLM 0.32 server does, one iteration at a time, written to be read.

It defines the truth for the compiled engine and is itself held to the real scheduler without tolerance
(`python -m scripts.compare_with_vllm`). File names below are under ``vllm/v1``.

**Scheduling an iteration** (`core/sched/scheduler.py:Scheduler.schedule`). There are no phases: every request
has tokens to compute (prompt and outputs so far) and a count of those already computed. One token budget
serves, in this order,

1. the running list from its start: each request gets what it lacks, cut to the budget left, so an unfinished
   older prompt precedes younger generating requests. If blocks are missing, victims are preempted until they
   suffice: the last of the list (fcfs), or the first one in list order with the largest (priority, arrival).
   A victim that was already scheduled in this iteration gives its tokens back to the budget, but its blocks
   stay known to the prefix cache. If the request itself is the victim, the walk ends there.
2. the waiting queue, unless somebody was preempted in this iteration, while the list is shorter than
   `max_num_seqs`. The first request that does not fit ends admission. It fits if the blocks of its *whole*
   present sequence, minus cache hits, plus those hits that nobody uses at the moment (they leave the free
   list), are free; only its first chunk is allocated.

**Prefix cache.** A hit covers at most all tokens but the last, in whole blocks. Full blocks become hittable
when they are scheduled, so a later admission of the same iteration can hit them. Tokens whose value is not
known yet do not count.

**Preemption** (`_preempt_request`). All blocks are freed, the generated tokens are kept, everything is
computed again. The victim goes to the front of the queue (fcfs), or back into the heap ordered by (priority,
arrival, id).

**The end of an iteration** (`update_from_output`). In the order of scheduling, every request that caught up
gets a token; a request with its last token frees its blocks at once and leaves the list. The last token is
never computed.

**Asynchronous scheduling** (`core/sched/async_scheduler.py`, `engine/core.py:step_with_batch_queue`). Up to
two iterations are in flight: at the end of iteration k, with k + 1 already decided and starting, k + 2 is
decided. It sees the outputs of k but not of k + 1: a token in flight is a *placeholder*, a request whose last
token is in flight still occupies its place in the list and its blocks, is not scheduled again, and may even
be preempted (its token arrives nevertheless). From idle, two iterations are decided at once. If nothing can
be scheduled while one iteration is in flight, the engine waits for its end. With one iteration in flight at
most, the very same code is synchronous scheduling.

**An empty schedule** that preempted somebody (priority policy: the first of the list is its own victim) is
followed by another one at the same instant, unless an iteration is in flight.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import SpecError
from ..latency.compiled import CompiledLatency, iteration_ps
from .config import CallTimes, EngineConfig, EngineRequest, EngineRun, Iteration
from .reference_kv import BlockKey, BlockPool, ContentNames
from .reference_loop import OpenLoop


@dataclass(slots=True, eq=False)
class _Call:
    """A request on its way through the engine."""

    request: EngineRequest
    keys: list[BlockKey]
    prompt_tokens: int
    generated: int = 0
    """Tokens delivered."""
    placeholders: int = 0
    """Tokens being sampled by an iteration in flight."""
    computed: int = 0
    """Tokens computed, or scheduled to be (it advances when an iteration is scheduled)."""
    blocks: list[int] = field(default_factory=list)
    registered: int = 0
    """How many of the first `blocks` the prefix cache knows."""
    preemptions: int = 0
    arrival_ps: int = 0
    start_ps: int = -1
    first_token_ps: int = -1
    cached_tokens: int = -1

    @property
    def known_tokens(self) -> int:
        return self.prompt_tokens + self.generated

    @property
    def lacking(self) -> int:
        """Tokens to compute until the next one can be sampled."""
        return self.known_tokens + self.placeholders - self.computed

    @property
    def last_token_in_flight(self) -> bool:
        return self.generated + self.placeholders >= self.request.output_tokens

    @property
    def rank(self) -> tuple[int, int, int]:
        """Order of the priority queue (`request.py:Request.__lt__`)."""
        return (self.request.priority, self.arrival_ps, self.request.request_id)


@dataclass(slots=True)
class _Plan:
    """The schedule of one iteration while it is being made."""

    budget: int
    tokens: dict[int, int] = field(default_factory=dict)
    preempted: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _InFlight:
    iteration: Iteration
    entries: list[tuple[_Call, int]]
    """Every scheduled call with its preemptions so far: if it has more later, its output is stale."""


class ReferenceEngine:
    """One vLLM server on a virtual clock.

    The caller owns the clock. At an instant it first ends every iteration that is due (`finish_iteration`
    while `next_end_ps` has come), then adds arrivals, then calls `fill`. Between two such instants the engine
    does nothing.
    """

    def __init__(self, config: EngineConfig, latency: CompiledLatency) -> None:
        self.config = config
        self.latency = latency
        self.pool = BlockPool(config)
        self.iterations = 0
        self._names = ContentNames(config.block_size)
        self._calls: dict[int, _Call] = {}
        self._running: list[_Call] = []
        self._waiting: list[_Call] = []
        self._in_flight: deque[_InFlight] = deque()
        self._depth = 2 if config.async_scheduling else 1
        self._stalled = False
        self._preempted: list[int] = []

    @property
    def running(self) -> tuple[int, ...]:
        """Ids of the running requests in list order."""
        return tuple(call.request.request_id for call in self._running)

    @property
    def waiting(self) -> tuple[int, ...]:
        """Ids of the waiting requests in queue order."""
        return tuple(call.request.request_id for call in self._waiting)

    @property
    def free_blocks(self) -> int:
        """KV blocks that could be allocated, idle cached ones included."""
        return self.pool.free_blocks

    @property
    def next_end_ps(self) -> int | None:
        """End of the oldest iteration in flight, None if there is none."""
        return self._in_flight[0].iteration.end_ps if self._in_flight else None

    @property
    def blocked(self) -> bool:
        """Whether the scheduler waits for the end of an iteration and looks at nothing before it."""
        return self._stalled or len(self._in_flight) == self._depth

    def check(self) -> None:
        """Assert the invariants of the state (for tests)."""
        self.pool.check([call.blocks for call in self._calls.values()])
        assert {*self.running} | {*self.waiting} == self._calls.keys()
        assert len(self._running) + len(self._waiting) == len(self._calls) <= len(self._running) + len(self._waiting)
        assert len(self._running) <= self.config.max_num_seqs
        for call in self._running:
            assert len(call.blocks) == self.config.blocks_for(call.computed)
        for call in self._waiting:
            assert not call.blocks and not call.computed and not call.placeholders

    def add(self, request: EngineRequest) -> None:
        """Submit a request that has arrived."""
        request.check(self.config)
        if request.request_id in self._calls:
            raise SpecError("this id is already in the engine", where=f"request {request.request_id}")
        keys = self._names.keys_of(request) if self.config.enable_prefix_caching else []
        call = _Call(request, keys, request.prompt_tokens, arrival_ps=request.arrival_ps)
        self._calls[request.request_id] = call
        self._enqueue(call, front=False)

    def fill(self, now_ps: int) -> list[Iteration]:
        """Schedule iterations at `now_ps` until the engine has enough in flight or nothing to do."""
        begun = []
        while (iteration := self.step(now_ps)) is not None:
            begun.append(iteration)
        return begun

    def step(self, now_ps: int) -> Iteration | None:
        """Schedule one iteration at `now_ps`, if possible; it starts now or when the one in flight ends."""
        while not self.blocked:
            plan = _Plan(budget=self.config.max_num_batched_tokens)
            self._schedule_running(plan)
            if not plan.preempted:
                self._schedule_waiting(plan)
            self._preempted.extend(plan.preempted)
            if plan.tokens:
                return self._launch(plan, now_ps)
            if self._in_flight:
                self._stalled = True
            elif not plan.preempted:
                break
        return None

    def finish_iteration(self) -> tuple[CallTimes, ...]:
        """End the oldest iteration in flight (at `next_end_ps`) and return the requests it completed."""
        done = self._in_flight.popleft()
        self._stalled = False
        end_ps = done.iteration.end_ps
        finished = []
        for call, preemptions in done.entries:
            if call.request.request_id not in done.iteration.sampled:
                continue
            call.generated += 1
            if call.generated == 1:
                call.first_token_ps = end_ps
            if call.preemptions == preemptions:
                # The token is known now, so the blocks it completes can be cached (`AsyncScheduler.
                # _update_request_with_output`); nothing to do if it was known when it was scheduled.
                call.placeholders -= 1
                self._register(call, call.computed - call.placeholders)
            if call.generated == call.request.output_tokens:
                finished.append(self._retire(call, end_ps))
        return tuple(finished)

    def _schedule_running(self, plan: _Plan) -> None:
        index = 0
        while index < len(self._running) and plan.budget > 0:
            call = self._running[index]
            if call.last_token_in_flight:
                index += 1
                continue
            new = min(call.lacking, plan.budget)
            missing = self.config.blocks_for(call.computed + new) - len(call.blocks)
            while missing > self.pool.free_blocks:
                victim = self._victim()
                position = self._running.index(victim)
                del self._running[position]
                if position < index:
                    index -= 1
                plan.budget += plan.tokens.pop(victim.request.request_id, 0)
                self._preempt(victim)
                plan.preempted.append(victim.request.request_id)
                if victim is call:
                    return
            self._grant(plan, call, new, missing)
            index += 1

    def _schedule_waiting(self, plan: _Plan) -> None:
        block_size = self.config.block_size
        while plan.budget > 0 and self._waiting and len(self._running) < self.config.max_num_seqs:
            call = self._waiting[0]
            hit = self.pool.longest_hit(call.keys, (call.known_tokens - 1) // block_size)
            lacking_blocks = self.config.blocks_for(call.known_tokens) - len(hit)
            if lacking_blocks + self.pool.idle_among(hit) > self.pool.free_blocks:
                return
            self._waiting.pop(0)
            self._running.append(call)
            self.pool.touch(hit)
            call.blocks = hit
            call.registered = len(hit)
            call.computed = len(hit) * block_size
            if call.cached_tokens < 0:
                call.cached_tokens = call.computed
            new = min(call.lacking, plan.budget)
            self._grant(plan, call, new, self.config.blocks_for(call.computed + new) - len(hit))

    def _victim(self) -> _Call:
        if self.config.scheduling_policy == "fcfs":
            return self._running[-1]
        return max(self._running, key=lambda call: call.rank[:2])  # the first of equals, as Python's max says

    def _grant(self, plan: _Plan, call: _Call, new: int, missing_blocks: int) -> None:
        """Schedule `new` tokens of a running call whose blocks are known to fit."""
        call.blocks.extend(self.pool.allocate(max(missing_blocks, 0)))
        self._register(call, min(call.computed + new, call.known_tokens))
        plan.tokens[call.request.request_id] = new
        plan.budget -= new

    def _register(self, call: _Call, tokens: int) -> None:
        """Make the full blocks among the call's first `tokens` tokens hittable (`single:cache_blocks`)."""
        if not self.config.enable_prefix_caching:
            return
        full = tokens // self.config.block_size
        for index in range(call.registered, full):
            self.pool.register(call.blocks[index], call.keys[index])
        call.registered = max(call.registered, full)

    def _preempt(self, call: _Call) -> None:
        self._release(call)
        call.computed = 0
        call.placeholders = 0
        call.preemptions += 1
        self._enqueue(call, front=True)

    def _release(self, call: _Call) -> None:
        self.pool.free(call.blocks)
        call.blocks = []
        call.registered = 0

    def _enqueue(self, call: _Call, *, front: bool) -> None:
        if self.config.scheduling_policy == "priority":
            insort(self._waiting, call, key=lambda other: other.rank)
        else:
            self._waiting.insert(0 if front else len(self._waiting), call)

    def _launch(self, plan: _Plan, now_ps: int) -> Iteration:
        """Advance the scheduled calls and put the iteration in flight (`_update_after_schedule`)."""
        start_ps = max(now_ps, self._in_flight[-1].iteration.end_ps) if self._in_flight else now_ps
        calls = [self._calls[request_id] for request_id in plan.tokens]
        cached = {call.request.request_id: call.computed for call in calls}
        chunks: list[tuple[int, int]] = []
        sampled: list[int] = []
        decodes = kv_tokens = 0
        for call in calls:
            new = plan.tokens[call.request.request_id]
            if call.lacking == 1 and call.generated + call.placeholders > 0:
                decodes += 1
                kv_tokens += call.computed + 1
            else:
                chunks.append((new, call.computed))
            if call.lacking == new:
                sampled.append(call.request.request_id)
                call.placeholders += 1
            call.computed += new
            if call.start_ps < 0:
                call.start_ps = start_ps
        iteration = Iteration(
            index=self.iterations,
            scheduled_ps=now_ps,
            start_ps=start_ps,
            end_ps=start_ps + iteration_ps(self.latency, chunks, decodes, kv_tokens, len(sampled)),
            tokens=plan.tokens,
            cached=cached,
            sampled=frozenset(sampled),
            decodes=decodes,
            kv_tokens=kv_tokens,
            preempted=tuple(self._preempted),
            running=len(self._running),
            waiting=len(self._waiting),
            free_blocks=self.free_blocks,
        )
        self._preempted.clear()
        self.iterations += 1
        self._in_flight.append(_InFlight(iteration, [(call, call.preemptions) for call in calls]))
        return iteration

    def _retire(self, call: _Call, end_ps: int) -> CallTimes:
        """Take a call that has its last token out of the engine."""
        self._release(call)
        # A preempted call can be completed by the token that was in flight when it was preempted.
        (self._running if call in self._running else self._waiting).remove(call)
        del self._calls[call.request.request_id]
        return CallTimes(
            request_id=call.request.request_id,
            arrival_ps=call.arrival_ps,
            start_ps=call.start_ps,
            first_token_ps=call.first_token_ps,
            finish_ps=end_ps,
            preemptions=call.preemptions,
            cached_tokens=call.cached_tokens,
        )


def run_reference(
    config: EngineConfig, latency: CompiledLatency, requests: Sequence[EngineRequest], *, log: bool = False
) -> EngineRun:
    """Serve `requests` on one engine until all are done.

    An arrival is visible at an iteration boundary of the same instant; an idle engine jumps to the next
    arrival.

    Args:
        config: the engine's limits.
        latency: its iteration times.
        requests: the workload; ids must be distinct.
        log: whether to keep every iteration in the result.
    """
    engine = ReferenceEngine(config, latency)
    traffic = OpenLoop(requests)
    calls: list[CallTimes] = []
    iterations: list[Iteration] = []
    while True:
        now_ps = engine.next_end_ps
        if now_ps is not None:
            finished = engine.finish_iteration()
            traffic.completed(finished)
            calls.extend(finished)
        else:
            now_ps = traffic.next_ps
            if now_ps is None:
                break
        for request in traffic.take(now_ps):
            engine.add(request)
        begun = engine.fill(now_ps)
        if log:
            iterations.extend(begun)
    calls.sort(key=lambda call: call.request_id)
    return EngineRun(calls=tuple(calls), iterations=engine.iterations, log=tuple(iterations))
